"""Metrics: each a name, a unit, a direction, a version, and a standard error. One family a module."""

from __future__ import annotations

# isort: off
# Importing registers them; tables show them in this order, and the first that moved is named.
from quambench.metrics import perplexity  # noqa: F401
from quambench.metrics import divergence  # noqa: F401
from quambench.metrics import decoding  # noqa: F401
from quambench.metrics import state  # noqa: F401
from quambench.metrics import accuracy  # noqa: F401
from quambench.metrics import recall  # noqa: F401
from quambench.metrics import sites  # noqa: F401
from quambench.metrics import cost  # noqa: F401

# isort: on
from quambench.metrics.base import METRICS, Column, Evidence, Judged, Measurement, Metric, Terms
from quambench.metrics.tasks import task_metrics

__all__ = ["METRICS", "Column", "Judged", "Measurement", "Metric", "Terms", "metrics_of"]


def metrics_of(evidence: Evidence) -> dict[str, Metric]:
    """By name: all that are known, and those of the tasks that were asked."""
    return {**METRICS, **task_metrics(evidence)}
