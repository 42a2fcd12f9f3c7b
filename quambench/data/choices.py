"""Multiple-choice items: four ways to go on with a passage, one of them the author's.

cloze          the last word of a passage, among words of the same length that end passages about as often
continuations  the next sentence, among sentences of the same document and like length (after HellaSwag,
               Zellers et al. 2019, arXiv:1905.07830, with the author's own sentences in place of made ones)

The author's choice and the others come from one block of similar words or sentences. Length does not tell the
words of a block apart, and frequency only somewhat: a guesser that takes the word that ends passages most often is
right in 0.315 of the pinned texts' cloze items, where chance is 0.25. A hash of the passage decides which members of
the block stand beside the author's, and in which order: equal documents give equal items.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import TypeVar

from quambench.data.corpus import Document
from quambench.data.tasks import MAX_WORDS, MIN_WORDS, Passage, endings, sentences

T = TypeVar("T")

N_CHOICES = 4
WORD_BLOCK, SENTENCE_BLOCK = 4, 8  # words, sentences that are alike; the last block takes the remainder
MIN_ENDING_WORDS, MAX_ENDING_WORDS = 6, 30  # words of a sentence that can be a choice


@dataclass(frozen=True, slots=True)
class Choice:
    """An item. `choices[right]` is how the author goes on, after a space."""

    document: str
    context: str
    choices: tuple[str, ...]
    right: int


def cloze(documents: Sequence[Document]) -> list[Choice]:
    """Items whose choices are last words of at least MIN_LETTERS letters.

    The other choices have as many letters, a capital where the author's has one, and end passages of `documents` about
    as often: otherwise a model could tell the right one without any context.
    """
    found = [[(d.name, p) for p in endings(d.text)] for d in documents]
    block_of = _word_blocks(Counter(p.word for items in found for _, p in items))
    return in_turn([[c for name, p in items if (c := _cloze(name, p, block_of[p.word]))] for items in found])


def continuations(documents: Sequence[Document]) -> list[Choice]:
    """Items whose choices are sentences after passages of whole sentences with at least MIN_WORDS words, none used
    twice.
    """
    return in_turn([list(_continuations(d)) for d in documents])


def in_turn(of_documents: Iterable[Sequence[T]]) -> list[T]:
    """Return the items of all documents in turn, one of each, so that the first few cover every document."""
    return [item for row in zip_longest(*of_documents) for item in row if item is not None]


def digest(items: Iterable[Choice]) -> str:
    """Return a hash of the items and their order."""
    h = hashlib.sha256()
    for item in items:
        h.update("\0".join([item.document, item.context, *item.choices, str(item.right)]).encode() + b"\1")
    return h.hexdigest()


def _cloze(document: str, passage: Passage, block: Sequence[str]) -> Choice | None:
    others = [w for w in block if w.lower() != passage.word.lower()]
    return _choice(document, passage.context, passage.word, others)


def _word_blocks(counts: Counter[str]) -> dict[str, list[str]]:
    """Return word -> the words like it, itself among them."""
    kinds: dict[tuple[int, bool], list[str]] = {}
    for word in sorted(counts, key=lambda w: (-counts[w], w)):
        kinds.setdefault((len(word), word[0].isupper()), []).append(word)
    blocks = (block for kind in kinds.values() for block in _blocks(kind, WORD_BLOCK))
    return {word: block for block in blocks for word in block}


def _continuations(document: Document) -> Iterator[Choice]:
    parts = sentences(document.text)
    sizes = [len(s.split()) for s in parts]
    fit = sorted({s for s, n in zip(parts, sizes, strict=True) if MIN_ENDING_WORDS <= n <= MAX_ENDING_WORDS})
    block_of = {s: block for block in _blocks(sorted(fit, key=lambda s: (len(s), s)), SENTENCE_BLOCK) for s in block}
    start = 0
    for end in range(len(parts)):
        n_words = sum(sizes[start:end])
        if n_words > MAX_WORDS:
            start = end  # a sentence too long for any passage
        elif n_words >= MIN_WORDS and parts[end] in block_of:
            told = parts[start : end + 1]
            others = [s for s in block_of[parts[end]] if s not in told]
            if item := _choice(document.name, " ".join(parts[start:end]), parts[end], others):
                yield item
                start = end + 1


def _blocks(ordered: Sequence[str], size: int) -> list[list[str]]:
    n = max(len(ordered) // size, 1)
    return [list(ordered[i * size : (i + 1) * size if i < n - 1 else None]) for i in range(n)]


def _choice(document: str, context: str, true: str, others: Sequence[str]) -> Choice | None:
    """Make an item of the true ending and of three others; None where there are too few others."""
    if len(others) < N_CHOICES - 1:
        return None
    item = "\0".join([document, context, true])
    choices = sorted(others, key=lambda other: _hash(item, other))[: N_CHOICES - 1]
    right = _hash(item)[0] % N_CHOICES
    choices.insert(right, true)
    return Choice(document, context, tuple(choices), right)


def _hash(*parts: str) -> bytes:
    return hashlib.sha256("\1".join(parts).encode()).digest()
