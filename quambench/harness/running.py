"""The harness' tasks over a model, document by document, as a paired comparison needs them."""

from __future__ import annotations

import contextlib
import hashlib
import io
import logging
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lm_eval.api.task import Task
from lm_eval.defaults import DEFAULT_OTHER_SEED, DEFAULT_RANDOM_SEED
from lm_eval.evaluator import evaluate
from lm_eval.tasks import TaskManager
from torch import Tensor

from quambench.core.errors import BadCorpus, BadParameter, OutsideFailed, QuambenchError, UnknownName
from quambench.core.plugins import one_line
from quambench.harness import offered_tasks, tasks_folder
from quambench.harness.adapter import BATCH, QuambenchLM
from quambench.harness.items import digest
from quambench.harness.subject import Subject
from quambench.metrics.tasks import SCORE, UNITS

FIRST_CHOICE = ("acc", "exact_match")  # the metric that is judged where a task reports several; else its first
# The harness makes these of all documents' log-likelihoods; document by document they are losses, in nats.
LOSSES = {
    "perplexity": "nats/document",
    "word_perplexity": "nats/word",
    "byte_perplexity": "nats/byte",
    "bits_per_byte": "nats/byte",
}


@dataclass(frozen=True)
class TaskResult:
    """The result of one model on one task: I documents, in the task's order.

    values           (I,) float64, the metric of each document; of LOSSES nats, the document's sum
    weights          (I,) float64, what a mean divides by: 1, or the document's bytes or words
    documents        (I,) int32, cluster labels: documents of one text share one; else each is its own
    log_likelihoods  (I,) float64 nats, of the right continuation; NaN where the task generates
    digest           hash of what is asked: documents, prompts, metric, and whether the start token stands first
    """

    task: str
    metric: str
    higher_is_better: bool
    values: Tensor
    weights: Tensor
    documents: Tensor
    log_likelihoods: Tensor
    digest: str

    @property
    def unit(self) -> str:
        """The unit of values over weights."""
        return LOSSES.get(self.metric, SCORE)


@dataclass(frozen=True)
class LoadedTasks:
    """The harness' tasks with their documents: loaded once, asked of any number of models."""

    by_name: Mapping[str, Task]

    @property
    def names(self) -> list[str]:
        return list(self.by_name)


def load_tasks(tasks: Sequence[str], corpus: Path | None = None, include_path: Path | None = None) -> LoadedTasks:
    """Load tasks of the harness; a group or tag becomes its tasks.

    tasks         ours by name, a YAML file, or what the harness knows by name (most of which it downloads)
    corpus        texts in place of the pinned ones, of which our prose tasks make their documents
    include_path  a folder with further tasks

    raises UnknownName, BadCorpus, OutsideFailed
    """
    manager = _manager(tasks, corpus, include_path)
    found: dict[str, Task] = {}
    for name in _resolved(tasks, manager):
        found |= _load(manager, name)
    for task in found.values():  # the defaults of lm_eval.simple_evaluate
        if task.get_config("num_fewshot") is None:
            task.set_config(key="num_fewshot", value=0)
    return LoadedTasks(found)


def run_tasks(
    subject: Subject, tasks: LoadedTasks, limit: int | None = None, batch_size: int = BATCH
) -> list[TaskResult]:
    """Run the harness' own evaluation, without the seeds and the list of packages that lm_eval.simple_evaluate adds.

    limit  documents of each task: the first ones; ours take their texts in turn

    raises BadParameter
    """
    for task in tasks.by_name.values():  # afresh for each model, which else would be shown other examples
        task.set_fewshot_seed(seed=DEFAULT_OTHER_SEED)
    if limit is not None and limit < 1:
        raise BadParameter(f"limit must be at least 1 (got {limit})")
    model = QuambenchLM(subject, batch_size=batch_size)
    with _quiet():
        found = evaluate(model, {"tasks": dict(tasks.by_name)}, limit=limit, bootstrap_iters=0, log_samples=True)
    samples: Mapping[str, list[dict[str, Any]]] = found["samples"]
    return [
        _result(name, task, samples[name], found["higher_is_better"][name], subject.starts)
        for name, task in tasks.by_name.items()
    ]


def task_evidence(quantized: Sequence[TaskResult], of_float: Sequence[TaskResult]) -> dict[str, Tensor]:
    """Return evidence as quambench/metrics/tasks.py reads it, of two models' results on the same documents.

    task.<name>.value, value_float            (I,) float64
    task.<name>.log_likelihood, ..._float     (I,) float64
    task.<name>.weight, document              (I,)
    task.<name>.higher_is_better              () uint8
    task.<name>.unit                          () uint8, its place in UNITS
    """
    evidence: dict[str, Tensor] = {}
    for ours, theirs in zip(quantized, of_float, strict=True):
        assert (ours.task, ours.metric, ours.digest) == (theirs.task, theirs.metric, theirs.digest), "not the same task"
        evidence |= {
            f"task.{ours.task}.{name}": value
            for name, value in (
                ("value", ours.values),
                ("value_float", theirs.values),
                ("log_likelihood", ours.log_likelihoods),
                ("log_likelihood_float", theirs.log_likelihoods),
                ("weight", ours.weights),
                ("document", ours.documents),
                ("higher_is_better", torch.tensor(ours.higher_is_better, dtype=torch.uint8)),
                ("unit", torch.tensor(UNITS.index(ours.unit), dtype=torch.uint8)),
            )
        }
    return evidence


def _manager(tasks: Sequence[str], corpus: Path | None, include_path: Path | None) -> TaskManager:
    """Return a task manager. It indexes the harness' own tasks, which takes seconds, only where one is asked for.

    raises UnknownName
    """
    ours = {t.name for t in offered_tasks()}
    paths = [str(tasks_folder()), *([str(include_path)] if include_path else [])]
    metadata = {"corpus": str(corpus)} if corpus else {}
    small = TaskManager(include_path=paths, include_defaults=False, metadata=metadata)
    if all(_is_file(name) or small.match_tasks([name]) for name in tasks):
        return small
    whole = TaskManager(include_path=paths, metadata=metadata)
    for name in tasks:
        if not _is_file(name) and not whole.match_tasks([name]):
            raise UnknownName("task", name, ours)
    return whole


def _load(manager: TaskManager, name: str) -> Mapping[str, Task]:
    """Load one name's tasks by themselves, so that what a task draws does not depend on those before it."""
    try:
        with _quiet():
            loaded: Mapping[str, Task] = manager.load([name])["tasks"]
            return loaded
    except QuambenchError:
        raise
    except OSError as error:  # among them what the hub's client raises without a network
        raise BadCorpus(
            f"the data of the task {name} cannot be had: {one_line(error)}; without a network there are the tasks that"
            " `quambench list tasks` prints, those over files of this machine, and what was downloaded before"
        ) from error
    except Exception as error:
        raise OutsideFailed(f"the task {name} cannot be loaded: {one_line(error)}") from error


def _is_file(task: str) -> bool:
    return task.endswith((".yaml", ".yml")) and Path(task).is_file()


def _resolved(tasks: Sequence[str], manager: TaskManager) -> list[str]:
    """Return names, with patterns resolved; files stay as they are."""
    named = (name for task in tasks for name in ([task] if _is_file(task) else manager.match_tasks([task])))
    return list(dict.fromkeys(named))


def _result(
    name: str, task: Any, rows: Sequence[Mapping[str, Any]], higher_is_better: Mapping[str, bool], starts: bool
) -> TaskResult:
    first_filter = rows[0]["filter"]
    rows = sorted((row for row in rows if row["filter"] == first_filter), key=lambda row: row["doc_id"])
    reported = rows[0]["metrics"]
    metric = next((name for name in FIRST_CHOICE if name in reported), reported[0])
    pairs = [_pair(metric, row[metric]) for row in rows]
    if None in pairs:
        raise BadParameter(f"{name} has no number for each document: {metric} is one of all documents together")
    of_text = [str(row["doc"].get("document", row["doc_id"])) for row in rows]
    asked = {request.doc_id: request.doc for request in task.instances}
    if any(repr(asked[row["doc_id"]]) != repr(row["doc"]) for row in rows):
        raise BadParameter(f"{name} draws its documents anew whenever they are read: seed what its process_docs draws")
    label = {text: i for i, text in enumerate(dict.fromkeys(of_text))}
    values, weights = torch.tensor(pairs, dtype=torch.float64).unbind(1)
    return TaskResult(
        task=name,
        metric=metric,
        higher_is_better=metric not in LOSSES and bool(higher_is_better.get(metric, True)),
        values=values,
        weights=weights,
        documents=torch.tensor([label[text] for text in of_text], dtype=torch.int32),
        log_likelihoods=torch.tensor([_log_likelihood(task, row) for row in rows], dtype=torch.float64),
        digest=_digest(rows, metric, starts),
    )


def _digest(rows: Sequence[Mapping[str, Any]], metric: str, starts: bool) -> str:
    """Return a hash that is equal for two models that were asked the same; it covers prompts, made from the
    documents.
    """
    h = hashlib.sha256(digest(row["doc"] for row in rows).encode())
    for row in rows:
        h.update(repr((row["arguments"], row["target"])).encode())
    h.update(repr((metric, rows[0]["filter"], starts)).encode())
    return h.hexdigest()


def _pair(metric: str, value: Any) -> tuple[float, float] | None:
    """Return (value, weight): a loss and its divisor, or a score; None where it is no number of one document."""
    if metric in LOSSES:
        log_likelihood, weight = value if isinstance(value, tuple | list) else (value, 1.0)
        return -float(log_likelihood), float(weight)
    return (float(value), 1.0) if isinstance(value, Real) else None


def _log_likelihood(task: Any, row: Mapping[str, Any]) -> float:
    """Return the right answer's, in nats; NaN where the task generates, and where no answer or several are right."""
    answers = [a[0] if isinstance(a, tuple | list) else a for a in row["filtered_resps"]]
    right = _right(task, row["doc"], len(answers))
    if right is None or not all(isinstance(a, float) for a in answers):
        return float("nan")
    log_likelihood: float = answers[right]
    return log_likelihood


def _right(task: Any, doc: Mapping[str, Any], n_answers: int) -> int | None:
    """Return which answer is right, as the harness' own process_results has it; None where that cannot be told.

    It is the only answer, or the choice that the target names by its place or by its words; of contexts to choose from,
    the one that doc_to_text names.
    """
    if task.OUTPUT_TYPE != "multiple_choice":
        return 0 if n_answers == 1 else None
    if callable(task.config.process_results):
        return None  # only the task itself knows
    choices = task.doc_to_choice(doc)
    gold = task.doc_to_text(doc) if task.multiple_input else task.doc_to_target(doc)
    if isinstance(gold, str) and gold in choices:
        gold = choices.index(gold)
    return gold if isinstance(gold, int) and 0 <= gold < len(choices) else None


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Run the block without the harness' bars, and without what it logs beneath an error.

    The random state is what lm_eval.simple_evaluate makes it, so that a task that draws has the same documents in every
    process; after the block it is as if nothing had been drawn.
    """
    log, drawn, drawn_by_numpy = logging.getLogger("lm_eval"), random.getstate(), np.random.get_state()
    level = log.level
    log.setLevel(logging.ERROR)
    random.seed(DEFAULT_RANDOM_SEED)
    np.random.seed(DEFAULT_OTHER_SEED)
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        log.setLevel(level)
        random.setstate(drawn)
        np.random.set_state(drawn_by_numpy)
