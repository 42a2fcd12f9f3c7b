"""Last-word items by hand: where sentences end, which passages count, what is asked of them."""

from __future__ import annotations

import pytest
import torch

from quambench.data import tasks
from quambench.data.corpus import Document
from quambench.data.tasks import MAX_WORDS, MIN_WORDS, Passage, endings, last_word_items, passages, sentences
from quambench.data.tokenizer import Tokenizer


def filler(n: int) -> str:
    """n different words."""
    return " ".join(f"w{chr(97 + i // 26)}{chr(97 + i % 26)}" for i in range(n))


def test_sentences_end_behind_their_marks_and_lose_the_quotes_between() -> None:
    assert sentences('A b.  C "d!" E\n f? (g.) h') == ["A b.", 'C "d!', "E f?", "(g.", "h"]
    assert sentences("One.\n\n") == ["One."]
    assert sentences("") == []


@pytest.mark.parametrize(
    ("last", "word"),
    [
        ("land.", "land"),  # four letters are enough
        ("don't.", "don't"),
        ("men’s!", "men’s"),
        ("well-known.", "well-known"),
        ("Land 1776.", "Land"),
    ],
)
def test_the_last_word_is_a_word_as_people_count_them(last: str, word: str) -> None:
    context = filler(MIN_WORDS - len(last.split()))
    assert list(endings(f"{context} {last}")) == [Passage(context, word, 0.0)]


@pytest.mark.parametrize("last", ["sea.", "(land.", "a/land.", "1776."])
def test_what_is_no_last_word(last: str) -> None:
    assert list(endings(f"{filler(MIN_WORDS)} {last}")) == []


def test_figures_are_no_words() -> None:
    """A passage counts what stands between spaces; its last word, and the earlier ones it may be, are letters."""
    figures = " ".join(map(str, range(MIN_WORDS - 1)))
    assert list(endings(f"{figures} 1776.")) == []
    assert list(endings(f"{figures} land.")) == [Passage(figures, "land", 0.0)]


def test_a_passage_that_is_one_word_is_none() -> None:
    assert list(endings("Land.")) == []


@pytest.mark.parametrize(("n", "counts"), [(MIN_WORDS - 1, 0), (MIN_WORDS, 1), (MAX_WORDS, 1), (MAX_WORDS + 1, 0)])
def test_passages_have_thirty_six_to_ninety_words(n: int, counts: int) -> None:
    assert (MIN_WORDS, MAX_WORDS) == (36, 90)
    assert len(list(endings(f"{filler(n - 1)} land."))) == counts


def test_a_passage_reaches_back_by_as_few_sentences_as_will_do() -> None:
    """Three sentences of twenty words: the second and the third end a passage with the one before each."""
    first, second, third = (f"{filler(19)} {last}." for last in ("land", "tree", "Land"))
    found = list(endings(f"{first} {second} {third}"))
    assert [p.context for p in found] == [f"{first} {filler(19)}", f"{second} {filler(19)}"]
    assert [(p.word, p.chance) for p in found] == [("tree", 0.0), ("Land", 0.0)]


def test_a_sentence_that_is_long_enough_stands_alone() -> None:
    (found,) = endings(f"Short. {filler(MIN_WORDS - 1)} land.")
    assert found.context == filler(MIN_WORDS - 1)


def test_chance_counts_earlier_words_whatever_their_case() -> None:
    (found,) = passages(f"Land LAND {filler(MIN_WORDS - 3)} land.")
    assert found == Passage(f"Land LAND {filler(MIN_WORDS - 3)}", "land", 2 / (MIN_WORDS - 1))


@pytest.fixture(scope="module")
def documents() -> list[Document]:
    """One passage each, of 40, 38, 38 and 37 words."""
    lengths = {"a": 40, "b": 38, "c": 38, "d": 37}
    return [Document.of(name, f"land {filler(n - 2)} land.".encode()) for name, n in lengths.items()]


@pytest.fixture(scope="module")
def words() -> Tokenizer:
    """One token a word, "land" the first."""
    return Tokenizer.of_words(["land", *filler(40).split()])


def test_items_by_hand(documents: list[Document], words: Tokenizer) -> None:
    """The shortest first, those of one length in the order of their documents."""
    items = last_word_items(documents, words)
    assert items.names == ("a", "b", "c", "d")
    assert items.documents.tolist() == [3, 1, 2, 0]
    assert items.inputs.shape == items.targets.shape == (4, 40)
    for inputs, targets, n in zip(items.inputs.tolist(), items.targets.tolist(), (37, 38, 38, 40), strict=True):
        assert inputs == [0, 1, *range(2, n), *[0] * (40 - n)]
        assert targets == [-1] * (n - 1) + [1] + [-1] * (40 - n)
    assert items.chance.dtype == torch.float64
    assert items.chance.tolist() == [1 / 36, 1 / 37, 1 / 37, 1 / 39]


def test_items_are_ordered_by_the_tokens_of_context_and_word_together() -> None:
    """A byte a token: both contexts have 156, the words 13 and 5 with their space."""
    texts = {"a": f"independence {filler(36)} independence.", "b": f"land {filler(38)} land."}
    documents = [Document.of(name, text.encode()) for name, text in texts.items()]
    items = last_word_items(documents, Tokenizer.train([], 257))
    assert items.documents.tolist() == [1, 0]
    assert (items.targets >= 0).sum(1).tolist() == [5, 13]


def test_fewer_items_are_spaced_evenly(documents: list[Document], words: Tokenizer) -> None:
    assert last_word_items(documents, words, 2).documents.tolist() == [2, 0]
    assert last_word_items(documents, words, 3).documents.tolist() == [1, 2, 0]
    assert len(last_word_items(documents, words, 4).inputs) == len(last_word_items(documents, words, 9).inputs) == 4


def test_no_item_is_an_empty_tensor_of_the_same_kind(words: Tokenizer) -> None:
    none = last_word_items([Document.of("d", b"Too short.")], words)
    assert none.inputs.shape == none.targets.shape == (0, 1)
    assert {x.dtype for x in (none.inputs, none.targets, none.documents)} == {torch.int64}
    assert none.chance.dtype == torch.float64


def test_the_digest_says_which_items_are_asked(documents: list[Document], words: Tokenizer) -> None:
    items = last_word_items(documents, words)
    # Stored results carry it.
    assert items.digest == "7725690187bfc2ec07f70e31e0977bb182a86fd0a24c50d4b1bcac77ffa0b9dc"
    renamed = [Document(d.name + "x", d.text, d.digest) for d in documents]
    assert len({items.digest, last_word_items(renamed, words).digest, last_word_items(documents, words, 3).digest}) == 3


def test_the_rest_is_what_a_first_look_left_and_of_a_large_corpus_some_of_it(monkeypatch) -> None:
    """Fifty passages, ten of them looked at first: the other forty, or of these eight."""
    text = " ".join(f"The land {filler(MIN_WORDS)} land." for _ in range(50))
    documents, tokenizer = [Document.of("x", text.encode())], Tokenizer.train([text], 300)
    n = len(last_word_items(documents, tokenizer).inputs)
    first = last_word_items(documents, tokenizer, 10)
    rest = last_word_items(documents, tokenizer, 10, rest=True)
    assert (len(first.inputs), len(rest.inputs)) == (10, n - 10)
    monkeypatch.setattr(tasks, "MOST_REST", 8)
    some = last_word_items(documents, tokenizer, 10, rest=True)
    assert len(some.inputs) == 8
