"""Metrics: each a name, a unit, a direction, a version, and a standard error. One family a module."""

from __future__ import annotations

from quambench.metrics import accuracy, cost, divergence, perplexity, recall, sites  # noqa: F401  (importing registers them)
from quambench.metrics.base import METRICS, Evidence, Measurement, Metric, Terms
from quambench.metrics.tasks import task_metrics

__all__ = ["METRICS", "Measurement", "Metric", "Terms", "metrics_of"]


def metrics_of(evidence: Evidence) -> dict[str, Metric]:
    """By name: all that are known, and those of the tasks that were asked."""
    return {**METRICS, **task_metrics(evidence)}
