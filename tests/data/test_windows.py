"""Windows: every token a target once, every byte counted, and items that ask for the last word."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from quambench.core.errors import BadCheckpoint, BadCorpus, BadParameter
from quambench.data.corpus import Document
from quambench.data.recall import sequences
from quambench.data.tasks import MAX_WORDS, MIN_WORDS, last_word_items, passages
from quambench.data.tokenizer import Tokenizer
from quambench.data.windows import full_windows, rest_windows, sequence_windows, spread_windows

LINE = "We the people hold that the union of the people shall stand, and shall stand for all of the people. "


@pytest.fixture(scope="module")
def documents():
    return [Document.of(f"d{i}", (f"Title {i}. " + LINE * (3 + 4 * i) + "Café — naïve.").encode()) for i in range(3)]


@pytest.fixture(scope="module")
def tokenizer(documents):
    return Tokenizer.train((d.text for d in documents), 300)


def test_a_document_as_long_as_a_window_is_one(documents, tokenizer):
    longest = max(len(tokenizer.encode(d.text)) for d in documents)
    assert len(spread_windows(documents, tokenizer, longest, 1).inputs) == 1
    with pytest.raises(BadCorpus, match=f"longest has {longest}"):
        spread_windows(documents, tokenizer, longest + 1, 1)


def test_none_of_them_is_the_same_without_a_window(documents, tokenizer):
    windows = full_windows(documents, tokenizer, 8)
    none = windows.none
    assert none.inputs.shape == none.targets.shape == (0, 8)
    assert none.documents.shape == (0,)
    assert (none.names, none.n_bytes) == (windows.names, 0)


@pytest.mark.parametrize("length", [1, 7, 64, 10_000])
def test_every_token_is_a_target_exactly_once(documents, tokenizer, length):
    windows = full_windows(documents, tokenizer, length)
    for index, document in enumerate(documents):
        rows = windows.targets[windows.documents == index]
        assert rows[rows >= 0].tolist() == tokenizer.encode(document.text)
    assert windows.n_bytes == sum(len(d.text.encode()) for d in documents)
    spelled = tokenizer.byte_lengths()[windows.targets[windows.targets >= 0]].sum()
    assert spelled == windows.n_bytes


def test_inputs_are_the_targets_shifted_behind_the_start_token(documents, tokenizer):
    windows = full_windows(documents, tokenizer, 16)
    assert (windows.inputs[:, 0] == tokenizer.start_id).all()
    complete = (windows.targets >= 0).all(1)
    assert torch.equal(windows.inputs[complete, 1:], windows.targets[complete, :-1])


def test_spread_windows_are_complete_and_taken_in_turn(documents, tokenizer):
    windows = spread_windows(documents, tokenizer, 16, 8)
    assert (windows.targets >= 0).all()
    counts = windows.documents.bincount(minlength=3)
    assert counts.sum() == 8
    assert counts.max() - counts[counts < counts.max()].min() <= 1 or counts.min() < 3  # the short one runs out first
    starts = {tuple(row) for row in windows.targets.tolist()}
    assert len(starts) >= 2


def test_more_windows_than_there_are_gives_them_all(documents, tokenizer):
    room = sum(len(tokenizer.encode(d.text)) // 16 for d in documents)
    assert len(spread_windows(documents, tokenizer, 16, 10_000).inputs) == room


def test_text_shorter_than_a_window_says_how_short(documents, tokenizer):
    longest = max(len(tokenizer.encode(d.text)) for d in documents)
    with pytest.raises(BadCorpus, match=f"the longest has {longest}"):
        spread_windows(documents, tokenizer, longest + 1, 4)
    with pytest.raises(BadCorpus, match=r"no document .* of 16 tokens \(the longest has 0\)"):
        spread_windows([], tokenizer, 16, 4)
    with pytest.raises(BadCorpus, match=r"^the documents hold no token at all$"):
        full_windows([], tokenizer, 16)


def test_windows_of_no_length_and_none_at_all_are_refused(documents, tokenizer):
    for make in (
        lambda: spread_windows(documents, tokenizer, 0, 4),
        lambda: spread_windows(documents, tokenizer, 4, 0),
        lambda: full_windows(documents, tokenizer, 0),
    ):
        with pytest.raises(BadParameter, match=r"^a window length or count must be at least 1 \(got 0\)$"):
            make()
    assert spread_windows(documents, tokenizer, 1, 1).targets.shape == (1, 1)


def test_the_digest_follows_every_token_and_name(documents, tokenizer):
    a = full_windows(documents, tokenizer, 16)
    renamed = [Document(d.name + "x", d.text, d.digest) for d in documents]
    assert a.digest == full_windows(documents, tokenizer, 16).digest
    assert a.digest != full_windows(renamed, tokenizer, 16).digest
    assert a.digest != full_windows(documents, tokenizer, 17).digest
    for other in (
        replace(a, inputs=a.inputs + 1),
        replace(a, targets=a.targets + 1),
        replace(a, documents=a.documents + 1),
        replace(a, targets=a.targets.flatten()),
    ):
        assert other.digest != a.digest


def test_windows_by_hand():
    """One letter a token; documents of five, two and ten of them."""
    letters = Tokenizer.of_words("abcdefghij")
    texts = {"one": "a b c d e", "two": "f g", "three": "h i j a b c d e f g"}
    documents = [Document.of(name, text.encode()) for name, text in texts.items()]
    windows = full_windows(documents, letters, 2)
    assert windows.targets.tolist() == [[1, 2], [3, 4], [5, -1], [6, 7], [8, 9], [10, 1], [2, 3], [4, 5], [6, 7]]
    assert windows.inputs.tolist() == [[0, 1], [0, 3], [0, 0], [0, 6], [0, 8], [0, 10], [0, 2], [0, 4], [0, 6]]
    assert windows.documents.tolist() == [0, 0, 0, 1, 2, 2, 2, 2, 2]
    assert (windows.names, windows.n_bytes) == (("one", "two", "three"), 9 + 3 + 19)
    # Stored results carry it.
    assert windows.digest == "e06766da0edc440f7aadb25c9ff48d7d1239cab6a62920ef723bcb2c64eb9fd5"

    spread = spread_windows(
        documents, letters, 2, 5
    )  # room for two, one and five; the last are the first and the third
    assert spread.targets.tolist() == [[1, 2], [3, 4], [6, 7], [8, 9], [2, 3]]
    assert spread.inputs.tolist() == [[0, 1], [0, 3], [0, 6], [0, 8], [0, 2]]
    assert spread.documents.tolist() == [0, 0, 1, 2, 2]
    assert (spread.names, spread.n_bytes) == (("one", "two", "three"), 5 * 3)


def test_made_sequences_are_windows_of_their_own_documents():
    made = sequences("associative", 2, 3, "test")
    windows = sequence_windows(made)
    assert torch.equal(windows.inputs, made.inputs)
    assert torch.equal(windows.targets, made.tokens)
    assert windows.documents.tolist() == [0, 1, 2]
    assert (windows.names, windows.n_bytes) == (("sequence 0", "sequence 1", "sequence 2"), 0)


@settings(max_examples=50, deadline=None)
@given(st.text(max_size=60))
def test_any_text_survives_the_tokenizer_and_its_bytes_are_counted(tokenizer, text):
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert tokenizer.byte_lengths()[torch.tensor(ids, dtype=torch.int64)].sum() == len(text.encode())


def test_a_vocabulary_is_no_larger_than_asked(tokenizer):
    assert tokenizer.vocab_size <= 300


def test_a_tokenizer_that_cannot_be_read_is_one_line(tmp_path):
    with pytest.raises(BadCheckpoint, match=r"no tokenizer\.json"):
        Tokenizer.load(tmp_path / "tokenizer.json")
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(BadCheckpoint, match="not a readable tokenizer"):
        Tokenizer.load(tmp_path / "tokenizer.json")


def words(n, last):
    """n different filler words, then a sentence that ends in `last`."""
    return " ".join(f"w{chr(97 + i // 26)}{chr(97 + i % 26)}" for i in range(n)) + f" {last}."


def test_a_passage_needs_its_last_word_earlier_in_it():
    last = words(MIN_WORDS - 2, "nation")  # one word short, so the passage reaches back a sentence
    (found,) = passages("The nation stands. " + last)
    assert found.word == "nation"
    assert found.context == "The nation stands. " + last.removesuffix(" nation.")
    assert found.chance == pytest.approx(1 / (MIN_WORDS + 1))  # once among the words before it
    assert list(passages("The people stand. " + last)) == []


@pytest.mark.parametrize(
    "text",
    [
        "The sea. " + words(MIN_WORDS, "sea"),  # three letters
        "The nation. " + words(MAX_WORDS + 1, "nation"),  # too long
        "The nation and nation.",  # too short
        "",
    ],
)
def test_what_is_no_passage(text):
    assert list(passages(text)) == []


def test_items_ask_for_the_word_after_the_context(tokenizer, documents):
    items = last_word_items(documents, tokenizer)
    found = [p for d in documents for p in passages(d.text)]
    assert len(items.inputs) == len(found) > 0
    spelled = []
    for inputs, targets in zip(items.inputs, items.targets, strict=True):
        places = (targets >= 0).nonzero()[:, 0]
        context = tokenizer.decode(inputs[1 : places[0] + 1].tolist())
        # Each target is the next input: the word follows its context without a gap.
        assert inputs[places[1:]].tolist() == targets[places[:-1]].tolist()
        spelled.append((context, tokenizer.decode(targets[places].tolist())))
    assert sorted(spelled) == sorted((p.context, " " + p.word) for p in found)
    assert ((items.chance > 0) & (items.chance < 1)).all()


def test_items_come_by_length_and_can_be_fewer(tokenizer, documents):
    items = last_word_items(documents, tokenizer)
    ends = (items.targets >= 0).long().cumsum(1).argmax(1)
    assert (ends.diff() >= 0).all()
    assert len(last_word_items(documents, tokenizer, max_items=2).inputs) == 2


def test_text_without_a_passage_gives_no_item(tokenizer):
    items = last_word_items([Document.of("d", b"Too short.")], tokenizer)
    assert len(items.inputs) == len(items.targets) == len(items.documents) == 0
    assert items.digest


@pytest.mark.parametrize(("seen", "count"), [(1, 3), (4, 8), (3, 10_000)])
def test_the_rest_is_what_a_first_look_left_out(documents, tokenizer, seen, count):
    def rows(windows):
        return [(d, *row) for d, row in zip(windows.documents.tolist(), windows.targets.tolist(), strict=True)]

    first, whole = (rows(spread_windows(documents, tokenizer, 16, n)) for n in (seen, count))
    rest = rows(rest_windows(documents, tokenizer, 16, count, seen))
    assert len(rest) == len(whole) - sum(row in first for row in whole)  # a place that only the first has is not of it
    assert rest == [row for row in whole if row in rest]


def test_no_window_is_left_of_what_was_seen_whole(documents, tokenizer):
    assert rest_windows(documents, tokenizer, 16, 10_000, 10_000) is None
    assert rest_windows(documents, tokenizer, 16, 4, 4) is None


def test_the_rest_of_the_items_is_every_other(documents, tokenizer):
    def rows(items):
        return [tuple(row[row != tokenizer.start_id].tolist()) for row in items.inputs]

    whole = rows(last_word_items(documents, tokenizer))
    first, rest = (rows(last_word_items(documents, tokenizer, 3, rest=r)) for r in (False, True))
    assert len(first) == 3
    assert sorted(first + rest) == sorted(whole)
    assert rows(last_word_items(documents, tokenizer, 10_000, rest=True)) == []
    assert rows(last_word_items(documents, tokenizer, rest=True)) == []
