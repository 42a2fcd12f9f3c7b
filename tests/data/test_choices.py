"""Multiple choice: the author's way to go on among its likes, and nothing but the context tells it apart."""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import replace

import pytest

from quambench.data.choices import (
    MAX_ENDING_WORDS,
    MIN_ENDING_WORDS,
    N_CHOICES,
    Choice,
    _choice,
    cloze,
    continuations,
    digest,
    in_turn,
)
from quambench.data.corpus import Document, load_corpus
from quambench.data.tasks import MAX_WORDS, MIN_WORDS, endings, passages

FILLER = " ".join(["word"] * 40)


@pytest.fixture(scope="module")
def documents() -> tuple[Document, ...]:
    return load_corpus().part("test")


@pytest.fixture(scope="module")
def items(documents: tuple[Document, ...]) -> dict[str, list[Choice]]:
    return {"cloze": cloze(documents), "continuations": continuations(documents)}


def test_last_words_stand_among_words_of_their_length_and_frequency() -> None:
    """Four passages end with words of five letters, twice each; two with other lengths, too few for a choice."""
    last = ["plums", "pears", "limes", "grape"] * 2 + ["Paris", "fruits"]
    text = ". ".join(f"{FILLER} {word}" for word in last) + "."
    found = cloze([Document.of("d", text.encode())])
    assert [item.choices[item.right] for item in found] == last[:8]
    assert all(set(item.choices) == {"plums", "pears", "limes", "grape"} for item in found)
    assert all(item.context.endswith("word") and item.document == "d" for item in found)


def test_a_sentence_follows_its_passage_and_no_passage_serves_twice() -> None:
    lines = [f"This is the sentence number {i:02d} of them all." for i in range(12)]  # nine words each
    found = continuations([Document.of("d", " ".join(lines).encode())])
    assert [item.context for item in found] == [" ".join(lines[0:4]), " ".join(lines[5:9])]
    assert [item.choices[item.right] for item in found] == [lines[4], lines[9]]
    for item in found:
        assert not any(choice in item.context for choice in item.choices)


def test_every_item_has_one_right_and_three_others_of_its_kind(items: dict[str, list[Choice]]) -> None:
    for kind in items.values():
        for item in kind:
            assert len(set(item.choices)) == len(item.choices) == N_CHOICES
            assert 0 <= item.right < N_CHOICES
    for item in items["cloze"]:
        assert len({(len(c), c[0].isupper()) for c in item.choices}) == 1
    for item in items["continuations"]:
        assert all(MIN_ENDING_WORDS <= len(c.split()) <= MAX_ENDING_WORDS for c in item.choices)
        assert MIN_WORDS <= len(item.context.split()) <= MAX_WORDS


def test_the_right_one_is_the_authors(documents: tuple[Document, ...], items: dict[str, list[Choice]]) -> None:
    texts = {d.name: " ".join(d.text.split()) for d in documents}
    for kind in items.values():
        for item in kind[::50]:
            text = texts[item.document]
            # The white space and quotes that stood between sentences are not part of the passage.
            pattern = re.escape(f"{item.context} {item.choices[item.right]}").replace(r"\ ", r"[\"')\]]*\s+")
            assert re.search(pattern, text)
            for place, other in enumerate(item.choices):
                spelled = re.escape(f"{item.context} {other}").replace(r"\ ", r"[\"')\]]*\s+")
                assert place == item.right or not re.search(spelled + r"\b", text)


def share_right(items: list[Choice], pick: Callable[[Choice], int]) -> float:
    return sum(pick(item) == item.right for item in items) / len(items)


def by(measure: Callable[[str], float], seed: int = 0) -> Callable[[Choice], int]:
    """Picks the choice with the largest measure; ties by lot."""
    lot = random.Random(seed)
    return lambda item: max(range(N_CHOICES), key=lambda i: (measure(item.choices[i]), lot.random()))


SHORTCUTS = {
    "first": lambda item: 0,
    "longest": by(len),
    "shortest": by(lambda text: -len(text)),
}


def chance_band(n: int) -> tuple[float, float]:
    """Three standard errors about one in four; the items are pinned, so that a shortcut inside stays inside."""
    error = (0.25 * 0.75 / n) ** 0.5
    return 0.25 - 3 * error, 0.25 + 3 * error


@pytest.mark.parametrize("kind", ["cloze", "continuations"])
@pytest.mark.parametrize("shortcut", SHORTCUTS)
def test_a_shortcut_is_right_as_often_as_a_guess(items: dict[str, list[Choice]], kind: str, shortcut: str) -> None:
    low, high = chance_band(len(items[kind]))
    assert low < share_right(items[kind], SHORTCUTS[shortcut]) < high


def test_an_author_who_always_wrote_most_would_be_caught(items: dict[str, list[Choice]]) -> None:
    longest = [replace(i, right=SHORTCUTS["longest"](i)) for i in items["continuations"]]
    assert share_right(longest, SHORTCUTS["longest"]) > chance_band(len(longest))[1]


def test_how_often_words_end_sentences_tells_little(
    documents: tuple[Document, ...], items: dict[str, list[Choice]]
) -> None:
    """Words that end more sentences are right more often, being asked more often: under 1 in 3 with blocks of four.
    Without blocks that rule alone would be right most of the time."""
    counts = Counter(p.word for d in documents for p in endings(d.text))
    assert share_right(items["cloze"], by(lambda w: counts[w])) < 1 / 3
    lot = random.Random(1)
    words = sorted(counts)
    loose = [
        replace(i, choices=tuple(c if k == i.right else lot.choice(words) for k, c in enumerate(i.choices)))
        for i in items["cloze"]
    ]
    assert share_right(loose, by(lambda w: counts[w])) > 0.5


def test_the_pinned_corpus_gives_these_items(documents: tuple[Document, ...], items: dict[str, list[Choice]]) -> None:
    assert sum(1 for d in documents for _ in passages(d.text)) == 647
    assert {kind: len(found) for kind, found in items.items()} == {"cloze": 5716, "continuations": 1369}
    assert {kind: digest(found)[:16] for kind, found in items.items()} == {
        "cloze": "2c91dc159a02a559",
        "continuations": "61871d0133ac6040",
    }


def test_a_digest_sees_every_part_of_an_item() -> None:
    item = Choice("d", "context", ("a", "b", "c", "d"), 1)
    others = [
        replace(item, document="e"), replace(item, context="text"), replace(item, choices=("b", "a", "c", "d")),
        replace(item, right=2),
    ]  # fmt: skip
    assert len({digest([i]) for i in [item, *others]} | {digest([item, item])}) == 6


def test_documents_take_turns() -> None:
    assert in_turn([["a1", "a2", "a3"], [], ["b1"], ["c1", "c2"]]) == ["a1", "b1", "c1", "a2", "c2", "a3"]


def test_no_stream_of_chance_is_touched(documents: tuple[Document, ...]) -> None:
    before = random.getstate()
    cloze(documents[:2])
    continuations(documents[:2])
    assert random.getstate() == before


def test_a_question_has_all_its_choices_or_is_none():
    wrong = [f"wrong {i}" for i in range(N_CHOICES - 1)]
    assert _choice("document", "context", "right", wrong[1:]) is None
    item = _choice("document", "context", "right", wrong)
    assert sorted(item.choices) == sorted([*wrong, "right"])
    assert item.choices[item.right] == "right"
