"""Tokenizers from outside: what their file asks for beside the vocabulary does not touch the text."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tokenizers import Tokenizer as Theirs
from tokenizers import models, processors

from quambench.core.errors import BadCheckpoint
from quambench.data.tokenizer import END_OF_TEXT, Tokenizer

TEXT = "a text of more than eight bytes"


def test_what_makes_the_library_panic_is_unreadable_too(tmp_path):
    Tokenizer.train(["one two"], 260).save(tmp_path / "tokenizer.json")
    file = tmp_path / "tokenizer.json"
    raw = json.loads(file.read_text())
    raw["model"]["continuing_subword_prefix"] = "x" * 300
    file.write_text(json.dumps(raw))
    with pytest.raises(BadCheckpoint, match="is not a readable tokenizer"):
        Tokenizer.load(file)


@pytest.mark.parametrize("ask", ["enable_truncation", "enable_padding"])
def test_a_document_is_neither_cut_nor_filled_up(tokenizer_file, tmp_path, ask):
    theirs = Theirs.from_file(str(tokenizer_file))
    if ask == "enable_truncation":
        theirs.enable_truncation(max_length=8)
    else:
        theirs.enable_padding(length=64)
    theirs.save(str(tmp_path / "tokenizer.json"))
    assert len(theirs.encode(TEXT)) in (8, 64)  # the file does ask for it
    loaded = Tokenizer.load(tmp_path / "tokenizer.json")
    assert loaded.encode(TEXT) == Tokenizer.load(tokenizer_file).encode(TEXT)
    assert loaded.decode(loaded.encode(TEXT)) == TEXT


def test_no_special_token_is_added_to_a_document(tokenizer_file: Path) -> None:
    theirs = Theirs.from_file(str(tokenizer_file))
    theirs.post_processor = processors.TemplateProcessing(single=f"{END_OF_TEXT} $A", special_tokens=[(END_OF_TEXT, 0)])
    assert len(theirs.encode(TEXT).ids) == len(theirs.encode(TEXT, add_special_tokens=False).ids) + 1
    assert Tokenizer(theirs).encode(TEXT) == Tokenizer.load(tokenizer_file).encode(TEXT)


def test_text_that_spells_a_special_token_is_text(tokenizer_file: Path) -> None:
    words = Tokenizer.load(tokenizer_file)
    ids = words.encode(END_OF_TEXT)
    assert words.start_id not in ids
    assert words.decode(ids) == END_OF_TEXT


def test_a_tokenizer_without_the_start_token_is_refused(tmp_path: Path) -> None:
    alone = Theirs(models.WordLevel({"a": 0}, unk_token="a"))
    alone.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(BadCheckpoint, match=r"^tokenizer\.json has no <\|endoftext\|> token"):
        Tokenizer.load(tmp_path / "tokenizer.json")


def test_what_cannot_be_read_is_named(tmp_path: Path) -> None:
    file = tmp_path / "tokenizer.json"
    with pytest.raises(BadCheckpoint, match=f"^{tmp_path} has no tokenizer.json$"):
        Tokenizer.load(file)
    file.write_text("{")
    with pytest.raises(BadCheckpoint, match=f"^{file} is not a readable tokenizer: .*line 1"):
        Tokenizer.load(file)


def test_words_stand_apart_by_spaces_and_an_unknown_one_is_the_first() -> None:
    words = Tokenizer.of_words(["one", "two", "three"])
    assert words.encode("two  one three four") == [2, 1, 3, 1]
    assert words.decode([0, 2, 1]) == "two one"  # the start token is none of the text
    assert (words.vocab_size, words.start_id) == (4, 0)


def test_training_learns_what_stands_often_together_and_keeps_every_byte() -> None:
    words = Tokenizer.train(["the nation and the nation"] * 3, 266)
    assert words.vocab_size == 266
    assert len(words.encode(" nation")) == 1
    assert words.encode("nation") != words.encode(" nation")  # no space is put in front
    assert words.decode(words.encode("nation é\0")) == "nation é\0"


def test_bytes_of_each_token() -> None:
    words = Tokenizer.train(["the nation and the nation"] * 3, 266)
    (nation,) = words.encode(" nation")
    counts = words.byte_lengths()
    assert counts.shape == (266,)
    assert counts[nation] == 7
    assert counts[words.start_id] == 0


def test_the_digest_is_of_all_that_decides_how_text_is_read(tokenizer_file: Path, tmp_path: Path) -> None:
    words = Tokenizer.load(tokenizer_file)
    words.save(tmp_path / "tokenizer.json")
    assert Tokenizer.load(tmp_path / "tokenizer.json").digest == words.digest
    document = json.loads(tokenizer_file.read_text(encoding="utf-8"))
    document["pre_tokenizer"]["add_prefix_space"] = True
    (tmp_path / "tokenizer.json").write_text(json.dumps(document), encoding="utf-8")
    assert Tokenizer.load(tmp_path / "tokenizer.json").digest != words.digest
    assert len(words.digest) == 64
