"""Text to token ids and back, for any folder that carries a tokenizer.json."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path

import torch
from tokenizers import Tokenizer as _Tokenizer
from tokenizers import decoders, models, pre_tokenizers, trainers
from torch import Tensor

from quambench.errors import BadCheckpoint
from quambench.pointers import check_fetched
from quambench.reading import JSON_LIMIT, Unreadable, check_file, is_file, shown

END_OF_TEXT = "<|endoftext|>"  # stands before the first token of every window, as in GPT-NeoX's vocabulary


class Tokenizer:
    """A `tokenizers` tokenizer, and the id that stands where nothing came before."""

    def __init__(self, inner: _Tokenizer) -> None:
        start = inner.token_to_id(END_OF_TEXT)
        if start is None:
            raise BadCheckpoint(f"tokenizer.json has no {END_OF_TEXT} token, which every window starts with")
        inner.encode_special_tokens = True  # a text that spells a special token is still text, byte by byte
        inner.no_truncation()  # a tokenizer.json may ask for either: documents would be cut, or filled up
        inner.no_padding()
        self._inner, self.start_id = inner, start

    @classmethod
    def load(cls, path: Path) -> Tokenizer:
        """raises BadCheckpoint when the file is missing or unreadable."""
        if not is_file(path):
            raise BadCheckpoint(f"{path.parent} has no tokenizer.json")
        check_fetched(path, BadCheckpoint)
        try:
            check_file(path, JSON_LIMIT)
            return cls(_Tokenizer.from_file(str(path)))
        except BadCheckpoint:
            raise
        except Unreadable as error:
            raise BadCheckpoint(f"{path} is not a readable tokenizer: {error.why}") from None
        except Exception as error:  # tokenizers raises bare Exception
            raise BadCheckpoint(f"{path} is not a readable tokenizer: {shown(error)}") from None
        except BaseException as error:
            if type(error).__name__ != "PanicException":  # of Rust; it is no Exception
                raise
            raise BadCheckpoint(f"{path} is not a readable tokenizer: {shown(error)}") from None

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int) -> Tokenizer:
        """Byte-level BPE over `texts`; every byte string can be encoded."""
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
        """One token a word, words apart by spaces; the start token first."""
        entries = {word: i for i, word in enumerate([END_OF_TEXT, *words])}
        inner = _Tokenizer(models.WordLevel(entries, unk_token=words[0]))
        inner.add_special_tokens([END_OF_TEXT])
        inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        return cls(inner)

    def save(self, path: Path) -> None:
        self._inner.save(str(path))

    @cached_property
    def digest(self) -> str:
        """Of all that decides how text is read."""
        return hashlib.sha256(self._inner.to_str().encode()).hexdigest()

    @property
    def vocab_size(self) -> int:
        return self._inner.get_vocab_size()

    def encode(self, text: str) -> list[int]:
        """Token ids of `text`, no special token added."""
        return self._inner.encode(text, add_special_tokens=False).ids

    def byte_lengths(self) -> Tensor:
        """(vocab_size,) int64: UTF-8 bytes that each token stands for; 0 for the start token.

        A byte-level token is spelled with one character per byte, so a token that holds half a
        character still counts right.
        """
        counts = torch.tensor([len(self._inner.id_to_token(i) or "") for i in range(self.vocab_size)])
        counts[self.start_id] = 0
        return counts

    def decode(self, ids: list[int]) -> str:
        return self._inner.decode(ids)
