"""What every case of a model is judged on."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from quambench.case import Protocol
from quambench.data.corpus import Document
from quambench.data.recall import RecallSequences, long_sequences
from quambench.data.recall import sequences as recall_sequences
from quambench.data.tasks import LastWordItems, last_word_items
from quambench.data.tokenizer import Tokenizer
from quambench.data.windows import (
    Windows,
    bytes_of_windows,
    rest_windows,
    sequence_windows,
    spread_windows,
)

REST_SEED = 10  # the first of the streams of recall sequences that a second look draws from


@dataclass(frozen=True, slots=True)
class EvalData:
    """What every case of a model is judged on."""

    quality: Windows
    decode: Windows  # decode_prefix tokens of prefill, then decode_steps tokens one by one
    decode_prefix: int
    error: Windows
    quality_bytes: Tensor  # (W,) float64, bytes that each quality window's targets spell
    items: LastWordItems | None = None  # prose
    recall: Mapping[str, RecallSequences] = field(default_factory=dict)  # task -> its scored rung
    long: Tensor | None = None  # (W, L) int64, sequences far longer than those trained on

    @classmethod
    def of_prose(cls, documents: Sequence[Document], tokenizer: Tokenizer, protocol: Protocol) -> EvalData:
        """As many windows as the protocol asks for, or as there are.

        raises BadCorpus when the documents are too short for one window
        """
        quality = spread_windows(documents, tokenizer, protocol.quality_length, protocol.quality_windows)
        return cls(
            quality=quality,
            decode=spread_windows(
                documents, tokenizer, protocol.decode_prefix + protocol.decode_steps, protocol.decode_windows
            ),
            decode_prefix=protocol.decode_prefix,
            error=spread_windows(documents, tokenizer, protocol.error_length, protocol.error_windows),
            items=last_word_items(documents, tokenizer, protocol.max_items or None),
            quality_bytes=bytes_of_windows(quality, documents, tokenizer),
        )

    def rest_of_prose(
        self, documents: Sequence[Document], tokenizer: Tokenizer, protocol: Protocol, larger: Protocol
    ) -> EvalData | None:
        """What `larger` measures answers on and `protocol`, which made this, does not; None where a part is empty.

        It has no windows for errors inside the model: those are looked at once.
        """
        length = protocol.decode_prefix + protocol.decode_steps
        quality = rest_windows(
            documents, tokenizer, protocol.quality_length, larger.quality_windows, protocol.quality_windows
        )
        decode = rest_windows(documents, tokenizer, length, larger.decode_windows, protocol.decode_windows)
        if quality is None or decode is None:
            return None
        return replace(
            self,
            quality=quality,
            decode=decode,
            error=self.error.none,
            items=last_word_items(documents, tokenizer, protocol.max_items or None, rest=True),
            quality_bytes=bytes_of_windows(quality, documents, tokenizer),
        )

    def rest_of_recall(self, rungs: Mapping[str, int], protocol: Protocol, larger: Protocol) -> EvalData | None:
        """As `rest_of_prose`, of streams that no first look draws from."""
        counts = [
            getattr(larger, name) - getattr(protocol, name)
            for name in ("quality_windows", "decode_windows", "recall_sequences")
        ]
        if min(counts) < 1:
            return None
        quality, decode = _as_windows(rungs, counts[:2], first_seed=REST_SEED)
        return replace(
            self,
            quality=quality,
            decode=decode,
            error=self.error.none,
            quality_bytes=torch.full((counts[0],), torch.nan, dtype=torch.float64),
            recall={t: recall_sequences(t, rung, counts[2], "test", seed=REST_SEED) for t, rung in rungs.items()},
            long=None,
        )

    @classmethod
    def of_recall(cls, rungs: Mapping[str, int], protocol: Protocol) -> EvalData:
        """Sequences of the tasks at `rungs`; the associative ones also serve as text, each its own document."""
        counts = (protocol.quality_windows, protocol.decode_windows, protocol.error_windows)
        quality, decode, error = _as_windows(rungs, counts, first_seed=2)
        return cls(
            quality=quality,
            decode=decode,
            decode_prefix=1,
            error=error,
            quality_bytes=torch.full((len(quality.inputs),), torch.nan, dtype=torch.float64),
            recall={t: recall_sequences(t, rung, protocol.recall_sequences, "test") for t, rung in rungs.items()},
            long=long_sequences(protocol.long_windows),
        )

    @property
    def digest(self) -> str:
        h = hashlib.sha256()
        for part in (self.quality, self.decode, self.error, self.items, *self.recall.values()):
            h.update(part.digest.encode() if part is not None else b"none")
        if self.long is not None:
            h.update(self.long.numpy().tobytes())
        return h.hexdigest()


def _as_windows(rungs: Mapping[str, int], counts: Sequence[int], first_seed: int) -> list[Windows]:
    """Associative sequences as text, one set for each count, each from a stream of its own."""
    return [
        sequence_windows(recall_sequences("associative", rungs["associative"], count, "test", seed))
        for seed, count in enumerate(counts, start=first_seed)
    ]
