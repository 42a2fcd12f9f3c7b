"""Tasks of lm-evaluation-harness: metrics of each that was asked, by its name.

Which tasks there are is not known beforehand, so that these stand in no registry: `task_metrics` reads them off
the evidence. A case without tasks has none.
"""

from __future__ import annotations

import torch

from quambench.metrics.base import Evidence, Measurement, Metric, Terms

_PREFIX, _VALUE, _NATS = "task.", ".value", "_nats"
HIGHER, LOWER = "higher", "lower"


def tasks_in(evidence: Evidence) -> list[str]:
    """Names of the tasks that were asked."""
    found = (name.removeprefix(_PREFIX) for name in evidence if name.startswith(_PREFIX))
    return [name.removesuffix(_VALUE) for name in found if name.endswith(_VALUE)]


def task_metrics(evidence: Evidence) -> dict[str, Metric]:
    """task_<name>, task_<name>_float: the task's own metric, of the quantized and of the float model.

    task_<name>_nats: the log-likelihood of the right continuation, which shows what right and wrong hide; of a task
    that generates there is none.
    """
    made = {}
    for task in tasks_in(evidence):
        better = HIGHER if bool(evidence[f"{_PREFIX}{task}.higher_is_better"]) else LOWER
        for column, suffix in (("value", ""), ("value_float", "_float")):
            name = f"task_{task}{suffix}"
            made[name] = _metric(name, "score", better, task, column)
        if not bool(evidence[f"{_PREFIX}{task}.log_likelihood"].isnan().any()):
            name = f"task_{task}{_NATS}"
            made[name] = _metric(name, "nats/document", HIGHER, task, "log_likelihood")
    return made


def gated_tasks(evidence: Evidence) -> tuple[str, ...]:
    """Those of `task_metrics` whose change decides."""
    return tuple(name for name in task_metrics(evidence) if not name.endswith("_float"))


def _metric(name: str, unit: str, better: str, task: str, column: str) -> Metric:
    def terms(evidence: Evidence) -> Terms:
        key = f"{_PREFIX}{task}."
        weights = evidence[key + "weight"]
        if column == "log_likelihood":
            weights = torch.ones_like(weights)
        return Terms(evidence[key + column], weights, evidence[key + "document"])

    def measure(evidence: Evidence) -> Measurement:
        found = terms(evidence)
        return Measurement(found.mean(), found.standard_error())

    return Metric(name=name, unit=unit, better=better, version=1, measure=measure, terms=terms)
