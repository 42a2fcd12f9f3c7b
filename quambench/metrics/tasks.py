"""Tasks of lm-evaluation-harness: metrics of each that was asked, by its name.

Which tasks there are is not known beforehand, so that these stand in no registry: `task_metrics` reads them off
the evidence. A case without tasks has none.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch

from quambench.metrics.base import Column, Evidence, Judged, Measurement, Metric, Terms

_PREFIX, _VALUE, _FLOAT, _NATS = "task.", ".value", "_float", "_nats"
HIGHER, LOWER = "higher", "lower"
SCORE = "score"
UNITS = (SCORE, "nats/document", "nats/word", "nats/byte")  # evidence has the place: only ever add at the end


def tasks_in(evidence: Evidence) -> list[str]:
    """Names of the tasks that were asked."""
    found = (name.removeprefix(_PREFIX) for name in evidence if name.startswith(_PREFIX))
    return [name.removesuffix(_VALUE) for name in found if name.endswith(_VALUE)]


def task_metrics(evidence: Evidence) -> dict[str, Metric]:
    """task_<name>, task_<name>_float: the task's own metric, of the quantized and of the float model.

    task_<name>_nats: the log-likelihood of the right continuation, which shows what right and wrong hide; of a task
    that generates there is none.
    """
    return {metric.name: metric for metric in _made(evidence)}


def score_columns(names: Iterable[str]) -> list[tuple[str, Column]]:
    """Of measured metrics' names those that are a task's own, each with its column in the table that ends a run."""
    asked = [name for name in names if name.startswith("task_") and not name.endswith((_FLOAT, _NATS))]
    return [(name, Column(f"{name.removeprefix('task_')}\nscore")) for name in asked]


def _made(evidence: Evidence) -> Iterator[Metric]:
    """Each metric. A task may be named as another's twin is: then it is the task's own."""
    tasks = tasks_in(evidence)
    own = {f"task_{task}" for task in tasks}
    for task in tasks:
        name, key = f"task_{task}", f"{_PREFIX}{task}."
        better = HIGHER if bool(evidence[key + "higher_is_better"]) else LOWER
        unit = UNITS[int(evidence[key + "unit"])] if key + "unit" in evidence else SCORE
        yield _metric(name, unit, better, task, "value", Judged.BY_VALUES)
        if name + _FLOAT not in own:
            yield _metric(name + _FLOAT, unit, better, task, "value_float", Judged.NOT)
        if name + _NATS not in own and not bool(evidence[key + "log_likelihood"].isnan().any()):
            yield _metric(name + _NATS, "nats/document", HIGHER, task, "log_likelihood", Judged.BY_VALUES)


def _metric(name: str, unit: str, better: str, task: str, column: str, judged: Judged) -> Metric:
    def terms(evidence: Evidence) -> Terms:
        key = f"{_PREFIX}{task}."
        weights = evidence[key + "weight"]
        if column == "log_likelihood":
            weights = torch.ones_like(weights)
        return Terms(evidence[key + column], weights, evidence[key + "document"])

    def measure(evidence: Evidence) -> Measurement:
        found = terms(evidence)
        return Measurement(found.mean(), found.standard_error())

    return Metric(name=name, unit=unit, better=better, version=1, measure=measure, terms=terms, judged=judged)
