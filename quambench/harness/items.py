"""The functions that the tasks' YAML files name: they make the tasks' documents in memory when these are asked for.

Loading a task imports this, and with it the adapter: `lm_eval run --tasks FILE.yaml` then knows the model.
A function takes what the harness knows of a run (its metadata), of which `corpus` names other texts.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import datasets

from quambench.core.errors import BadCorpus
from quambench.data import recall
from quambench.data.choices import Choice, cloze, continuations, in_turn
from quambench.data.corpus import Document, load_corpus
from quambench.data.tasks import passages
from quambench.harness import adapter  # noqa: F401  (registers the model)

Row = Mapping[str, Any]

RECALL_ITEMS = 200  # of each recall task


def prose_lambada(corpus: str | None = None, **about: object) -> dict[str, datasets.Dataset]:
    """Make documents (context, word, document): the items of quambench/data/tasks.py."""
    of_documents = [
        [{"context": p.context, "word": p.word, "document": d.name} for p in passages(d.text)] for d in _texts(corpus)
    ]
    return _test(in_turn(of_documents), "passage that ends with a word that stands earlier in it")


def prose_cloze(corpus: str | None = None, **about: object) -> dict[str, datasets.Dataset]:
    """Make documents (context, choices, right, document): a last word to choose."""
    return _chosen(corpus, cloze)


def prose_continuation(corpus: str | None = None, **about: object) -> dict[str, datasets.Dataset]:
    """Make documents (context, choices, right, document): a next sentence to choose."""
    return _chosen(corpus, continuations)


def recall_items(task: str, rung: int, **about: object) -> dict[str, datasets.Dataset]:
    """Make documents (context, answer, document).

    They are the first answer of each associative and induction sequence, and all answers of selective_copy.
    """
    made = recall.sequences(task, rung, RECALL_ITEMS, "test", seed=HARNESS_SEED)
    speak = recall.tokenizer().decode
    rows = []
    for i, (tokens, answers) in enumerate(zip(made.tokens.tolist(), made.answers, strict=True)):
        first = int(answers.int().argmax())
        last = len(tokens) if task == "selective_copy" else first + 1
        rows.append({"context": speak(tokens[:first]), "answer": speak(tokens[first:last]), "document": str(i)})
    return _test(rows, "sequence")


HARNESS_SEED = 6  # a stream that no calibration and no metric draws from


def share_recalled(doc: Row, results: list[str]) -> dict[str, float]:
    """Return acc: the share of answers that are right, place by place."""
    wanted, got = doc["answer"].split(), results[0].split()
    return {"acc": sum(a == b for a, b in zip(wanted, got, strict=False)) / len(wanted)}


def _chosen(corpus: str | None, make: Callable[[tuple[Document, ...]], list[Choice]]) -> dict[str, datasets.Dataset]:
    rows = [
        {"context": c.context, "choices": list(c.choices), "right": c.right, "document": c.document}
        for c in make(_texts(corpus))
    ]
    return _test(rows, "passage with four ways to go on")


def _texts(corpus: str | None) -> tuple[Document, ...]:
    return load_corpus(corpus).part("test")


def _test(rows: Iterable[Row], what: str) -> dict[str, datasets.Dataset]:
    found = list(rows)
    if not found:
        raise BadCorpus(f"the test documents hold no {what}")
    return {"test": datasets.Dataset.from_list(found)}


def digest(split: Iterable[Row]) -> str:
    """Return a hash of the items that a task asks, and of their order."""
    h = hashlib.sha256()
    for row in split:
        h.update(repr(sorted(row.items())).encode())
    return h.hexdigest()
