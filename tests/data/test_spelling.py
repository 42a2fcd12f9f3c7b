"""Bytes of tokens: their sum is that of the text, however a tokenizer spells them; where it cannot be, that is said."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, models, normalizers, pre_tokenizers
from tokenizers import Tokenizer as Theirs

from quambench.core.errors import BadCheckpoint
from quambench.data.corpus import Document
from quambench.data.spelling import bytes_of_tokens
from quambench.data.tokenizer import END_OF_TEXT, Tokenizer
from quambench.data.windows import bytes_of_windows, full_windows, spread_windows

BYTES = [f"<0x{i:02X}>" for i in range(256)]
WORDS = ["▁", "t", "h", "e", "a", "é", "th", "he", "▁t", "▁a", "▁▁", "▁th"]
MERGES = [("t", "h"), ("h", "e"), ("▁", "t"), ("▁", "a"), ("▁", "▁"), ("▁t", "h")]
# What texts are made of: letters with and without tokens, several spaces, marks of spaces and of bytes as text.
TEXTS = st.text(st.sampled_from("the a éüx▁🙂\n\t e\u0301<0xE2>Ġ")) | st.text(max_size=40)


def by_words(vocabulary: list[str], **model: object) -> Theirs:
    entries = {token: i for i, token in enumerate([END_OF_TEXT, *vocabulary])}
    made = Theirs(models.BPE(entries, MERGES, **model))
    made.add_special_tokens([END_OF_TEXT])
    return made


def llama() -> Theirs:
    """Its normalizer puts a mark in front of the text and one for each space."""
    made = by_words([*BYTES, *WORDS], byte_fallback=True, fuse_unk=True)
    made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    return made


def metaspace(scheme: str) -> Theirs:
    made = by_words([*BYTES, *WORDS], byte_fallback=True)
    made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme)
    return made


def unigram() -> Theirs:
    made = Theirs(models.Unigram([("<unk>", 0.0), *((w, -2.0) for w in [*BYTES, *WORDS])], 0, True))
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    made.add_special_tokens([END_OF_TEXT])
    return made


def gpt2(prefix: bool = False, nfc: bool = False, added: tuple[str, ...] = ()) -> Theirs:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = Theirs(models.BPE({token: i for i, token in enumerate([*alphabet, "th", "Ġa"])}, [("t", "h"), ("Ġ", "a")]))
    split = pre_tokenizers.Split(" ", "merged_with_next")
    level = pre_tokenizers.ByteLevel(add_prefix_space=prefix, use_regex=False)
    made.pre_tokenizer = pre_tokenizers.Sequence([split, level])
    if nfc:
        made.normalizer = normalizers.NFC()
    made.add_special_tokens([END_OF_TEXT])
    made.add_tokens(list(added))
    return made


KINDS = {
    "llama": llama(),
    "metaspace always": metaspace("always"),
    "metaspace first": metaspace("first"),
    "metaspace never": metaspace("never"),
    "unigram": unigram(),
    "gpt2": gpt2(),
    "gpt2 with a space in front": gpt2(prefix=True),
    "gpt-neox": gpt2(nfc=True, added=("  ", "    ")),
    "gpt2 with added letters": gpt2(added=("éé", "🙂🙂", "▁")),
}


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=150, deadline=None)
@given(text=TEXTS)
def test_the_bytes_of_all_tokens_are_those_of_the_text(kind, text):
    words = Tokenizer(KINDS[kind])
    found = words.bytes_of(text)
    assert len(found) == len(words.encode(text))
    assert (found >= 0).all()
    assert found.sum() == (len(text.encode()) if len(found) else 0)
    if words.spelling.exact:
        assert torch.equal(words.byte_lengths()[torch.tensor(words.encode(text), dtype=torch.int64)], found)


def test_a_byte_fallback_by_hand():
    """45 bytes were counted where there are 14, a token's spelling for what it spells."""
    words = Tokenizer(metaspace("never"))
    assert words.bytes_of("the ü🙂 a").tolist() == [2, 1, 1, 1, 1, 1, 1, 1, 1, 2]  # th e ▁ C3 BC F0 9F 99 82 ▁a
    lengths = words.byte_lengths().tolist()
    assert lengths == [0, *[1] * 256, *(len(w.replace("▁", " ").encode()) for w in WORDS)]


def test_a_mark_in_front_of_the_text_is_no_byte_of_it():
    words = Tokenizer(llama())
    assert words.bytes_of("the ü").sum() == 6
    assert words.bytes_of("▁").tolist() == [3]  # ▁▁: one of its own, and the text's, which is a letter of three bytes


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("length", [1, 3, 7])
def test_windows_have_the_bytes_of_their_place_in_the_text(kind, length):
    words = Tokenizer(KINDS[kind])
    documents = [Document.of(f"d{i}", text.encode()) for i, text in enumerate(["the  é e\u0301 🙂 " * 4, "a▁the\n"])]
    whole = full_windows(documents, words, length)
    found = bytes_of_windows(whole, documents, words)
    of_documents = [found[whole.documents == i].sum() for i in range(2)]
    assert of_documents == [len(d.text.encode()) for d in documents]
    spread = spread_windows(documents, words, length, 4)
    at = {(d, s): i for i, (d, s) in enumerate(zip(whole.documents.tolist(), whole.starts.tolist(), strict=True))}
    places = zip(spread.documents.tolist(), spread.starts.tolist(), strict=True)
    assert torch.equal(bytes_of_windows(spread, documents, words), found[[at[place] for place in places]])


def test_one_character_of_several_tokens_is_parted_by_their_spelling():
    assert bytes_of_tokens("é🙂", [1, 1, 2, 2, 2, 2], [1, 1, 1, 1, 1, 1]) == [1, 1, 1, 1, 1, 1]
    assert bytes_of_tokens("aé🙂", [1, 2, 2, 3, 3], [9, 1, 1, 2, 9]) == [1, 1, 1, 4, 0]  # what it spells is not known
    assert bytes_of_tokens("a  b  ", [1, 4], [1, 1]) == [1, 5]  # spaces that no token spells
    assert bytes_of_tokens("", [], []) == []


def lossy() -> dict[str, tuple[Theirs, str]]:
    lower, strip, spaces, drops, alone = (gpt2() for _ in range(5))
    lower.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    strip.normalizer = normalizers.Replace("  ", " ")
    spaces.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.ByteLevel()])
    drops.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(" ", "removed"), pre_tokenizers.ByteLevel()])
    alone.add_tokens([AddedToken("mask", rstrip=True)])
    piece = Theirs(models.WordPiece({END_OF_TEXT: 0, "a": 1, "[UNK]": 2}, unk_token="[UNK]"))
    words = Theirs(models.WordLevel({END_OF_TEXT: 0, "a": 1}, unk_token="a"))
    half = by_words([*BYTES[:200], *WORDS], byte_fallback=True)
    other = by_words([*BYTES, *WORDS], byte_fallback=True)
    other.pre_tokenizer = pre_tokenizers.Metaspace(replacement="_")
    few = Theirs(models.BPE({END_OF_TEXT: 0, "a": 1}, []))
    few.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return {
        "lower": (lower, "its normalizer Lowercase changes the text"),
        "replace": (strip, "its normalizer Replace changes the text"),
        "white space": (spaces, "its pre-tokenizer WhitespaceSplit drops some of the text"),
        "removed": (drops, "its pre-tokenizer Split drops some of the text"),
        "greedy": (alone, "its added token 'mask' takes the spaces beside it"),
        "WordPiece": (piece, "tokens of a WordPiece model do not spell the text"),
        "WordLevel": (words, "tokens of a WordLevel model do not spell the text"),
        "half the bytes": (half, "it drops what it has no token for"),
        "another mark": (other, "its spaces are spelled '_'"),
        "few bytes": (few, "some bytes have no token"),
    }


@pytest.mark.parametrize("what", lossy())
def test_what_cannot_be_counted_is_one_line(what):
    theirs, says = lossy()[what]
    words = Tokenizer(theirs)
    for ask in (words.byte_lengths, lambda: words.bytes_of("a")):
        with pytest.raises(BadCheckpoint) as caught:
            ask()
        assert str(caught.value) == f"tokenizer.json: bits per byte cannot be counted, {says}"


def test_an_unknown_letter_is_said_and_known_text_is_counted():
    pieces = Theirs(models.Unigram([("<unk>", 0.0), *((w, -2.0) for w in WORDS)], 0, False))
    pieces.pre_tokenizer = pre_tokenizers.Metaspace()
    pieces.add_special_tokens([END_OF_TEXT])
    for theirs in (by_words(["<unk>", *WORDS], unk_token="<unk>"), pieces):
        words = Tokenizer(theirs)
        assert words.bytes_of("thé").sum() == 4
        with pytest.raises(BadCheckpoint, match=r"cannot be counted, some of the text is <unk> to it$"):
            words.bytes_of("thü")


def with_ids(ids: dict[str, int]) -> Tokenizer:
    made = gpt2()
    document = json.loads(made.to_str())
    document["model"]["vocab"] |= ids
    return Tokenizer(Theirs.from_str(json.dumps(document)))


def test_ids_with_a_gap_are_counted(tmp_path):
    words = with_ids({"th": 700, "Ġa": 5000})
    assert words.vocab_size == 5001
    lengths = words.byte_lengths()
    assert (lengths[700], lengths[5000], lengths[4000]) == (2, 2, 0)
    for text in ("the a", "é"):
        assert words.bytes_of(text).sum() == len(text.encode()) == lengths[words.encode(text)].sum()


DAMAGE = {
    "no model": lambda d: d.pop("model"),
    "model of no type": lambda d: d["model"].update(type="Mind"),
    "no vocabulary": lambda d: d["model"].pop("vocab"),
    "vocabulary is a list": lambda d: d["model"].update(vocab=[1, 2]),
    "negative id": lambda d: d["model"]["vocab"].update(th=-1),
    "id of 20 digits": lambda d: d["model"]["vocab"].update(th=10**20),
    "half an id": lambda d: d["model"]["vocab"].update(th=1.5),
    "merge of unknown": lambda d: d["model"]["merges"].append(["nothing", "here"]),
    "merge of three": lambda d: d["model"]["merges"].append(["a", "b", "c"]),
    "no version": lambda d: d.pop("version"),
    "unknown pre-tokenizer": lambda d: d["pre_tokenizer"].update(type="Mind"),
    "unknown normalizer": lambda d: d.update(normalizer={"type": "Mind"}),
    "pre-tokenizer of no known word": lambda d: d.update(pre_tokenizer="words"),
    "pattern that is none": lambda d: d.update(normalizer={"type": "Replace", "pattern": {"Regex": "("}}),
    "added tokens are none": lambda d: d.update(added_tokens={"a": 1}),
    "added token without a text": lambda d: d["added_tokens"].append({"id": 1000}),
    "deep": lambda d: d.update(normalizer=json.loads('{"type":"Sequence","normalizers":[' * 90 + "]}" * 90)),
    "version of another kind": lambda d: d.update(version=7),
    "a prefix that merges lack": lambda d: d["model"].update(continuing_subword_prefix="x"),
    "a longer one": lambda d: d["model"].update(continuing_subword_prefix="x" * 9, merges=["t é"]),
    "a suffix": lambda d: d["model"].update(end_of_word_suffix="</w>"),
    "merges of numbers": lambda d: d["model"].update(merges=[1]),
    "a list": lambda d: None,
}  # fmt: skip


@pytest.mark.parametrize("what", DAMAGE)
def test_a_damaged_file_is_one_line_or_right(tmp_path: Path, what):
    document = json.loads(gpt2().to_str())
    DAMAGE[what](document)
    file = tmp_path / "tokenizer.json"
    file.write_text(json.dumps([document] if what == "a list" else document))
    said = ""
    try:
        words = Tokenizer.load(file)
        assert words.bytes_of("the é").sum() == 6
    except BadCheckpoint as error:
        said = str(error)
    assert ("tokenizer" in said and "\n" not in said) or said == ""


def test_added_tokens_beyond_the_vocabulary_are_counted():
    document = json.loads(gpt2().to_str())
    document["added_tokens"].append(document["added_tokens"][0] | {"id": 9000, "content": "ééé", "special": False})
    words = Tokenizer(Theirs.from_str(json.dumps(document)))
    assert words.bytes_of("ééé th").sum() == 9
    assert words.byte_lengths().shape == (words.vocab_size,)


def test_a_text_that_cannot_be_read_is_one_line():
    words = Tokenizer(Theirs(models.WordLevel({END_OF_TEXT: 0, "a": 1}, unk_token="[UNK]")))
    with pytest.raises(BadCheckpoint, match=r"^tokenizer\.json cannot read this text: .*UNK"):
        words.encode("b")


@pytest.mark.parametrize("kind", KINDS)
def test_a_whole_file_is_read_as_it_is(tmp_path, kind):
    KINDS[kind].save(str(tmp_path / "tokenizer.json"))
    assert Tokenizer.load(tmp_path / "tokenizer.json").bytes_of("the é").sum() == 6
