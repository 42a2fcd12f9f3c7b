"""Last-word prediction: the stand-in for LAMBADA (Paperno et al. 2016, arXiv:1606.06031).

A passage ends with a sentence and reaches back by whole sentences to at least MIN_WORDS words. It
becomes an item when its last word has at least MIN_LETTERS letters and stands earlier in the
passage, so that the context holds the answer. Neighbouring passages may share sentences but never
a last word; standard errors are clustered by document.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from quambench.data.corpus import Document
from quambench.data.tokenizer import Tokenizer

MIN_WORDS, MAX_WORDS = 36, 90  # a longer passage is left out: its last sentence alone is too long
MIN_LETTERS = 4
MOST_REST = 1000  # items of a second look; the bundled corpus has fewer, and all of a large one would take hours

_SENTENCE_END = re.compile(r"(?<=[.!?])[\"')\]]*\s+")
_WORD = re.compile(r"[A-Za-z]+(?:['’-][A-Za-z]+)*")


@dataclass(frozen=True, slots=True)
class LastWordItems:
    """Items sorted by length, so that batches pad little.

    inputs     (I, L) int64    start token, then the passage's tokens but the last; padded at the right
    targets    (I, L) int64    the last word's tokens at the positions that predict them, -1 elsewhere
    documents  (I,)  int64     index into `names`
    chance     (I,)  float64   probability that an earlier word drawn at random is the answer
    """

    inputs: Tensor
    targets: Tensor
    documents: Tensor
    names: tuple[str, ...]
    chance: Tensor

    @property
    def digest(self) -> str:
        """A hash of inputs, targets and document names: it identifies the judged items."""
        h = hashlib.sha256("\n".join(self.names).encode())
        for tensor in (self.inputs, self.targets, self.documents):
            h.update(str(tuple(tensor.shape)).encode() + tensor.numpy().tobytes())
        return h.hexdigest()


@dataclass(frozen=True, slots=True)
class Passage:
    """The text before a last word, that word, and the chance of guessing it from the words before (0 if it is new
    there).
    """

    context: str
    word: str
    chance: float


def passages(text: str) -> Iterator[Passage]:
    """Yield the items of one document in order, at most one per sentence."""
    return (passage for passage in endings(text) if passage.chance)


def endings(text: str) -> Iterator[Passage]:
    """Yield the passages of one document in order, also those whose last word is new (chance 0)."""
    parts = sentences(text)
    sizes = [len(s.split()) for s in parts]
    for end in range(len(parts)):
        start, n_words = end, sizes[end]
        while n_words < MIN_WORDS and start > 0:
            start -= 1
            n_words += sizes[start]
        if MIN_WORDS <= n_words <= MAX_WORDS and (found := _ending(" ".join(parts[start : end + 1]))):
            yield found


def sentences(text: str) -> list[str]:
    """Split text behind . ! ?, with white space between words made one space."""
    return [s for s in _SENTENCE_END.split(" ".join(text.split())) if s]


def _ending(passage: str) -> Passage | None:
    found = list(_WORD.finditer(passage))
    last = found[-1] if found else None
    if last is None or len(last[0]) < MIN_LETTERS or passage[last.start() - 1 : last.start()] != " ":
        return None
    earlier = [w[0].lower() for w in found[:-1]]
    hits = earlier.count(last[0].lower())
    return Passage(passage[: last.start() - 1], last[0], hits / len(earlier) if hits else 0.0)


def _even(places: Sequence[int], most: int | None) -> Sequence[int]:
    """Return `most` places, spaced evenly; all where there are no more."""
    n = len(places)
    return places if most is None or n <= most else [places[i * n // most] for i in range(most)]


def last_word_items(
    documents: Sequence[Document], tokenizer: Tokenizer, max_items: int | None = None, rest: bool = False
) -> LastWordItems:
    """Make the items of `documents`: all, or `max_items` of them spaced evenly.

    rest  take instead the items that a first look at `max_items` leaves out; at most MOST_REST, spaced evenly

    Context and word are tokenized apart and joined, as a reader would type the word after the
    context; a byte-level BPE that splits words off with their space gives the same tokens.
    Text without such a passage (code, another script) gives no item: its accuracy is then unknown.
    """
    found = [(index, p) for index, document in enumerate(documents) for p in passages(document.text)]
    n = len(found)
    taken = _even(range(n), max_items)
    if rest:
        taken = _even(sorted(set(range(n)).difference(taken)), MOST_REST)
    found = [found[i] for i in taken]
    encoded = [(i, tokenizer.encode(p.context), tokenizer.encode(" " + p.word), p.chance) for i, p in found]
    encoded.sort(key=lambda item: len(item[1]) + len(item[2]))  # stable: ties stay in document order
    length = len(encoded[-1][1]) + len(encoded[-1][2]) if encoded else 1
    inputs = torch.full((len(encoded), length), tokenizer.start_id, dtype=torch.int64)
    targets = torch.full((len(encoded), length), -1, dtype=torch.int64)
    for row, (_, context, word, _) in enumerate(encoded):
        ids = torch.tensor(context + word)
        inputs[row, 1 : len(ids)] = ids[:-1]
        targets[row, len(context) : len(ids)] = ids[len(context) :]
    return LastWordItems(
        inputs=inputs,
        targets=targets,
        documents=torch.tensor([index for index, *_ in encoded], dtype=torch.int64),
        names=tuple(d.name for d in documents),
        chance=torch.tensor([chance for *_, chance in encoded], dtype=torch.float64),
    )
