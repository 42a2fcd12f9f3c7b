"""Documents cut into windows of tokens, each token predicted exactly once."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from quambench.core.errors import BadCorpus, BadParameter
from quambench.data.corpus import Document
from quambench.data.recall import RecallSequences
from quambench.data.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class Windows:
    """Windows of `length` targets; a document's last window may be shorter and is padded.

    inputs     (W, L) int64   start token, then all targets but the last
    targets    (W, L) int64   -1 where padded
    documents  (W,)  int64    index into `names`
    names      documents, in order
    n_bytes    UTF-8 bytes of the text that the targets spell
    starts     (W,)  int64    index of each window's first target in its document; None for generated sequences
    """

    inputs: Tensor
    targets: Tensor
    documents: Tensor
    names: tuple[str, ...]
    n_bytes: int
    starts: Tensor | None = None

    @property
    def none(self) -> Windows:
        """The same object without any window."""
        inputs, targets, documents = self.inputs[:0], self.targets[:0], self.documents[:0]
        starts = None if self.starts is None else self.starts[:0]
        return replace(self, inputs=inputs, targets=targets, documents=documents, n_bytes=0, starts=starts)

    @property
    def digest(self) -> str:
        """A hash of inputs, targets and document names: it identifies the judged tokens."""
        h = hashlib.sha256("\n".join(self.names).encode())
        for tensor in (self.inputs, self.targets, self.documents):
            h.update(str(tuple(tensor.shape)).encode() + tensor.numpy().tobytes())
        return h.hexdigest()


def full_windows(documents: Sequence[Document], tokenizer: Tokenizer, length: int) -> Windows:
    """Cut whole documents into windows that do not overlap: every token of every document is a target."""
    _positive(length)
    rows, places = [], []
    for index, document in enumerate(documents):
        ids = tokenizer.encode(document.text)
        for start in range(0, len(ids), length):
            rows.append(ids[start : start + length])
            places.append((index, start))
    n_bytes = sum(len(d.text.encode()) for d in documents)
    return _windows(rows, places, documents, tokenizer, length, n_bytes)


def spread_windows(documents: Sequence[Document], tokenizer: Tokenizer, length: int, count: int) -> Windows:
    """Cut `count` complete windows, taken in turn from all documents and spaced evenly inside each.

    Where there are fewer, all are taken; `check_count` refuses that.
    raises BadCorpus where no document fills a window
    """
    encoded = _encoded(documents, tokenizer, length)
    return _cut(encoded, _spread(encoded, length, count), documents, tokenizer, length)


def check_count(windows: Windows, asked: int, part: str) -> None:
    """Check that a part's texts had as many windows as were asked for. raises BadCorpus"""
    there, length = windows.targets.shape
    if there < asked:
        raise BadCorpus(
            f"the {part} texts fill {there} of the {asked} windows of {length} tokens that are asked for: add text, or "
            f"take what there is, --windows {there}"
        )


def rest_windows(
    documents: Sequence[Document], tokenizer: Tokenizer, length: int, count: int, seen: int
) -> Windows | None:
    """Cut the windows of `spread_windows(count)` that are not among those of `spread_windows(seen)`.

    returns None where there are none
    raises BadCorpus as `spread_windows` does
    """
    encoded = _encoded(documents, tokenizer, length)
    first = set(_spread(encoded, length, seen))
    left = [place for place in _spread(encoded, length, count) if place not in first]
    return _cut(encoded, left, documents, tokenizer, length) if left else None


def _encoded(documents: Sequence[Document], tokenizer: Tokenizer, length: int) -> list[list[int]]:
    """Return the token ids of each document. raises BadCorpus where none fills a window"""
    _positive(length)
    encoded = [tokenizer.encode(d.text) for d in documents]
    longest = max((len(ids) for ids in encoded), default=0)
    if longest < length:
        raise BadCorpus(f"no document is as long as a window of {length} tokens (the longest has {longest})")
    return encoded


def _spread(encoded: Sequence[Sequence[int]], length: int, count: int) -> list[tuple[int, int]]:
    """Return (document, first token) of `count` windows, or of as many as there are."""
    _positive(count)
    room = [len(ids) // length for ids in encoded]
    quota = _quotas(room, min(count, sum(room)))
    return [(i, (room[i] * k // n) * length) for i, n in enumerate(quota) for k in range(n)]


def _cut(
    encoded: Sequence[list[int]],
    places: Sequence[tuple[int, int]],
    documents: Sequence[Document],
    tokenizer: Tokenizer,
    length: int,
) -> Windows:
    rows = [encoded[index][start : start + length] for index, start in places]
    n_bytes = sum(len(tokenizer.decode(row).encode()) for row in rows)
    return _windows(rows, places, documents, tokenizer, length, n_bytes)


def bytes_of_windows(windows: Windows, documents: Sequence[Document], tokenizer: Tokenizer) -> Tensor:
    """Return (W,) float64: the UTF-8 bytes of the documents that each window's targets stand for.

    raises BadCheckpoint where the tokenizer does not say
    """
    there = windows.targets >= 0
    if tokenizer.spelling.exact or windows.starts is None:
        return (tokenizer.byte_lengths()[windows.targets] * there).sum(1).double()
    n = there.sum(1)
    found = torch.zeros(len(n), dtype=torch.float64)
    for index in windows.documents.unique().tolist():
        until = torch.cat([torch.zeros(1, dtype=torch.int64), tokenizer.bytes_of(documents[index].text).cumsum(0)])
        at = windows.documents == index
        found[at] = (until[windows.starts[at] + n[at]] - until[windows.starts[at]]).double()
    return found


def sequence_windows(made: RecallSequences) -> Windows:
    """Return generated sequences as windows, each its own document; they spell no bytes."""
    owners = torch.arange(len(made.inputs))
    return Windows(made.inputs, made.tokens, owners, tuple(f"sequence {i}" for i in owners.tolist()), 0)


def _quotas(room: list[int], count: int) -> list[int]:
    """Return how many windows each document gives, taken one from each in turn until `count` are taken."""
    quota = [0] * len(room)
    while sum(quota) < count:
        for index in range(len(room)):
            if quota[index] < room[index] and sum(quota) < count:
                quota[index] += 1
    return quota


def _windows(
    rows: list[list[int]],
    places: Sequence[tuple[int, int]],
    documents: Sequence[Document],
    tokenizer: Tokenizer,
    length: int,
    n_bytes: int,
) -> Windows:
    if not rows:
        raise BadCorpus("the documents hold no token at all")
    targets = torch.full((len(rows), length), -1, dtype=torch.int64)
    inputs = torch.full_like(targets, tokenizer.start_id)
    for row, ids in enumerate(rows):
        targets[row, : len(ids)] = torch.tensor(ids)
        inputs[row, 1 : len(ids)] = torch.tensor(ids[:-1], dtype=torch.int64)
    names = tuple(d.name for d in documents)
    owners, starts = torch.tensor(places).unbind(1)
    return Windows(inputs, targets, owners.contiguous(), names, n_bytes, starts.contiguous())


def _positive(value: int) -> None:
    if value < 1:
        raise BadParameter(f"a window length or count must be at least 1 (got {value})")
