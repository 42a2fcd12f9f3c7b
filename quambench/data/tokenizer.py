"""Text to token ids and back, for any folder that has a tokenizer.json."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path

import torch
from tokenizers import Encoding, decoders, models, pre_tokenizers, trainers
from tokenizers import Tokenizer as _Tokenizer
from torch import Tensor

from quambench.core.errors import BadCheckpoint
from quambench.core.files import write
from quambench.core.pointers import check_fetched
from quambench.core.reading import JSON_LIMIT, Unreadable, check_file, is_file, shown
from quambench.data.spelling import Spelling, bytes_of_tokens, check_merges, spelling_of

END_OF_TEXT = "<|endoftext|>"  # stands before the first token of every window, as in GPT-NeoX's vocabulary


class Tokenizer:
    """A `tokenizers` tokenizer, and the id of the start token."""

    def __init__(self, inner: _Tokenizer) -> None:
        start = inner.token_to_id(END_OF_TEXT)
        if start is None:
            raise BadCheckpoint(f"tokenizer.json has no {END_OF_TEXT} token, which every window starts with")
        inner.encode_special_tokens = True  # a text that spells a special token is still text, byte by byte
        inner.no_truncation()  # a tokenizer.json may ask for either, and documents would be cut or padded
        inner.no_padding()
        self._inner, self.start_id = inner, start

    @classmethod
    def load(cls, path: Path) -> Tokenizer:
        """Read a tokenizer.json. raises BadCheckpoint when the file is missing or unreadable"""
        if not is_file(path):
            raise BadCheckpoint(f"{path.parent} has no tokenizer.json")
        check_fetched(path, BadCheckpoint)
        try:
            check_file(path, JSON_LIMIT)
            text = path.read_text(encoding="utf-8")
            check_merges(json.loads(text))
            return cls(_Tokenizer.from_str(text))
        except BadCheckpoint:
            raise
        except Unreadable as error:
            raise BadCheckpoint(f"{path} is not a readable tokenizer: {error.why}") from None
        except BaseException as error:
            raise BadCheckpoint(f"{path} is not a readable tokenizer: {_of_tokenizers(error)}") from None

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int) -> Tokenizer:
        """Train a byte-level BPE over `texts`; every byte string can be encoded."""
        inner = _Tokenizer(models.BPE())
        inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        inner.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size,
            special_tokens=[END_OF_TEXT],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        inner.train_from_iterator(texts, trainer)
        return cls(inner)

    @classmethod
    def of_words(cls, words: Sequence[str]) -> Tokenizer:
        """Make a tokenizer of words: each is one token, spaces stand between them, and the start token comes first."""
        entries = {word: i for i, word in enumerate([END_OF_TEXT, *words])}
        inner = _Tokenizer(models.WordLevel(entries, unk_token=words[0]))
        inner.add_special_tokens([END_OF_TEXT])
        inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        return cls(inner)

    def save(self, path: Path) -> None:
        """Write tokenizer.json; its folder is made. raises NotWritten"""
        write(path, self._inner.to_str(pretty=True))

    @cached_property
    def digest(self) -> str:
        """A hash of everything that decides how text is read."""
        return hashlib.sha256(self._inner.to_str().encode()).hexdigest()

    @cached_property
    def vocab_size(self) -> int:
        """The number that every id is below; some ids may be no token's."""
        return max(self._inner.get_vocab().values()) + 1

    def encode(self, text: str) -> list[int]:
        """Return the token ids of `text`, without special tokens. raises BadCheckpoint where the tokenizer cannot read
        it
        """
        return self._encoded(text).ids

    def _encoded(self, text: str) -> Encoding:
        try:
            return self._inner.encode(text, add_special_tokens=False)
        except BaseException as error:  # for example where the vocabulary lacks the unknown token that the model names
            raise BadCheckpoint(f"tokenizer.json cannot read this text: {_of_tokenizers(error)}") from None

    @cached_property
    def spelling(self) -> Spelling:
        """The spelling of tokens. raises BadCheckpoint where it does not say how many bytes a token stands for"""
        found = spelling_of(json.loads(self._inner.to_str()), self._inner.get_vocab())
        if found.refusal:
            raise BadCheckpoint(f"tokenizer.json: bits per byte cannot be counted, {found.refusal}")
        return found

    def byte_lengths(self) -> Tensor:
        """Return (vocab_size,) int64: the UTF-8 bytes of each token's spelling.

        The start token, and ids that are no token's, have 0. raises BadCheckpoint as `spelling` does
        """
        return self._lengths.clone()

    @cached_property
    def _lengths(self) -> Tensor:
        spelling, added = self.spelling, {t.content for t in self._inner.get_added_tokens_decoder().values()}
        counts = torch.zeros(self.vocab_size, dtype=torch.int64)
        for token, i in self._inner.get_vocab().items():
            counts[i] = spelling.length(token, token in added)
        counts[self.start_id] = 0
        return counts

    def bytes_of(self, text: str) -> Tensor:
        """Return (tokens,) int64: the UTF-8 bytes of `text` that each of its tokens stands for; their sum is the
        text's.

        raises BadCheckpoint as `spelling` does, and where some of the text is unknown to the tokenizer
        """
        found = self._encoded(text)
        if (unknown := self.spelling.unknown) and self._inner.token_to_id(unknown) in found.ids:
            raise BadCheckpoint(f"tokenizer.json: bits per byte cannot be counted, some of the text is {unknown} to it")
        spelled = self.byte_lengths()[torch.tensor(found.ids, dtype=torch.int64)].tolist()
        return torch.tensor(bytes_of_tokens(text, [end for _, end in found.offsets], spelled), dtype=torch.int64)

    def decode(self, ids: list[int]) -> str:
        return self._inner.decode(ids)


def _of_tokenizers(error: BaseException) -> str:
    """Return in a line what the library says went wrong. It raises bare exceptions, and panics that are no Exception.

    raises the error itself where it is not the library's
    """
    if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
        raise error
    return shown(error)
