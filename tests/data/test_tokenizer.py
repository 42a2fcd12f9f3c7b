"""Tokenizers from outside: what their file asks for beside the vocabulary does not touch the text."""

from __future__ import annotations

import pytest
from tokenizers import Tokenizer as Theirs

from quambench.data.tokenizer import Tokenizer

TEXT = "a text of more than eight bytes"


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
