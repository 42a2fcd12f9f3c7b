"""Metrics: each a name, a unit, a direction, a version, and a standard error. One family a module."""

from __future__ import annotations

from quambench.metrics import accuracy, cost, divergence, perplexity, recall, sites  # noqa: F401  (importing registers them)
from quambench.metrics.base import METRICS, Measurement, Metric, Terms

__all__ = ["METRICS", "Measurement", "Metric", "Terms"]
