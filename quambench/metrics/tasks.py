"""Tasks of lm-evaluation-harness: one metric and its float twin for each that was asked, by its name.

Which tasks there are is not known beforehand, so that these stand in no registry: `task_metrics` reads them off
the evidence. A case without tasks has none.
"""

from __future__ import annotations

from quambench.metrics.base import Evidence, Measurement, Metric, Terms

_PREFIX, _VALUE = "task.", ".value"
HIGHER, LOWER = "higher", "lower"


def tasks_in(evidence: Evidence) -> list[str]:
    """Names of the tasks that were asked."""
    found = (name.removeprefix(_PREFIX) for name in evidence if name.startswith(_PREFIX))
    return [name.removesuffix(_VALUE) for name in found if name.endswith(_VALUE)]


def task_metrics(evidence: Evidence) -> dict[str, Metric]:
    """task_<name>, task_<name>_float: the task's own metric, of the quantized and of the float model."""
    made = {}
    for task in tasks_in(evidence):
        better = HIGHER if bool(evidence[f"{_PREFIX}{task}.higher_is_better"]) else LOWER
        for column, suffix in (("value", ""), ("value_float", "_float")):
            name = f"task_{task}{suffix}"
            made[name] = _metric(name, better, task, column)
    return made


def _metric(name: str, better: str, task: str, column: str) -> Metric:
    def terms(evidence: Evidence) -> Terms:
        key = f"{_PREFIX}{task}."
        return Terms(evidence[key + column], evidence[key + "weight"], evidence[key + "document"])

    def measure(evidence: Evidence) -> Measurement:
        found = terms(evidence)
        return Measurement(found.mean(), found.standard_error())

    return Metric(name=name, unit="score", better=better, version=1, measure=measure, terms=terms)
