"""What a metric is: a ratio of sums over windows or items, clustered by document.

To add one: a module beside this one that adds a `Metric` to METRICS; import it in __init__.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from quambench.core.registry import Registry


@dataclass(frozen=True, slots=True)
class Terms:
    """sum(values) / sum(weights), in clusters.

    values, weights (U,) float64, one entry per window or item; documents (U,) cluster labels
    """

    values: Tensor
    weights: Tensor
    documents: Tensor

    def mean(self) -> float:
        return (self.values.sum() / self.weights.sum()).item()

    def standard_error(self) -> float:
        """Of the ratio, by linearisation over documents; NaN with fewer than two.

        With residuals e_c = sum of (value - mean * weight) in cluster c:
        sqrt(C / (C - 1) * sum e_c^2) / sum of weights (Cochran, Sampling Techniques, 1977, 6.4).
        """
        n = self.n_clusters
        if n < 2:
            return float("nan")
        sums = self.cluster_sums(self.values - self.mean() * self.weights)
        return ((n / (n - 1) * sums.square().sum()).sqrt() / self.weights.sum()).item()

    def cluster_sums(self, values: Tensor) -> Tensor:
        """(n_clusters,) float64 sums of (U,) values."""
        labels, cluster = self.documents.unique(return_inverse=True)
        return torch.zeros(len(labels), dtype=torch.float64).index_add_(0, cluster, values)

    @property
    def n_clusters(self) -> int:
        return len(self.documents.unique())


_NOTHING = torch.zeros(0, dtype=torch.float64)
NO_TERMS = Terms(_NOTHING, _NOTHING, _NOTHING)
"""Of a metric that the model's data do not ask for."""


@dataclass(frozen=True, slots=True)
class Measurement:
    """A number with its standard error (NaN where there is none), in the metric's unit."""

    value: float
    standard_error: float


UNMEASURED = Measurement(math.nan, math.nan)

Evidence = Mapping[str, Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """`measure` gives the number; `terms`, where there are any, lets two results be paired."""

    name: str
    unit: str
    better: str  # "lower" or "higher"
    version: int
    measure: Callable[[Evidence], Measurement]
    terms: Callable[[Evidence], Terms] | None = None


METRICS: Registry[Metric] = Registry("metric", "quambench/metrics/")


def add_mean(name: str, unit: str, better: str, terms: Callable[[Evidence], Terms], version: int = 1) -> None:
    """Register a metric that is the mean of its terms; without units to judge it is NaN."""

    def measure(evidence: Evidence) -> Measurement:
        found = terms(evidence)
        if not len(found.values):
            return UNMEASURED
        return Measurement(found.mean(), found.standard_error())

    METRICS.add(name, Metric(name=name, unit=unit, better=better, version=version, measure=measure, terms=terms))


def per_token(phase: str, *names: str) -> Callable[[Evidence], Terms]:
    """Terms of `<phase>.<first> - <phase>.<second> ...` per token."""

    def terms(evidence: Evidence) -> Terms:
        first, *rest = (evidence[f"{phase}.{n}"] for n in names)
        values = first.clone()
        for other in rest:
            values -= other
        return Terms(values, evidence[f"{phase}.tokens"], evidence[f"{phase}.document"])

    return terms
