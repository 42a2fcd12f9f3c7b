"""What a metric is: a ratio of sums over windows or items, clustered by document.

To add one: a module beside this one that adds a `Metric` to METRICS; import it in __init__.py. It says itself how it
is judged and where it is shown; tables have metrics in the order in which they are registered.
"""

from __future__ import annotations

import enum
import math
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from quambench.core.errors import BadParameter
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


class Judged(enum.Enum):
    """How a change of a metric is judged, against the stored value."""

    NOT = "shown alone"
    BY_DOCUMENT = "differences of its terms, clustered by document"
    BY_ITEM = "each item is right or wrong: McNemar's test"
    BY_VALUES = "by item where every value is 0 or 1, else by document"


@dataclass(frozen=True, slots=True)
class Column:
    """A metric's column in the table that ends a run: what stands above it, times which factor."""

    heading: str  # of at most two lines, the unit in the second
    factor: float = 1.0
    place: int = 100  # among the columns, from the left; of equal places in the order of METRICS


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """`measure` gives the number; `terms`, where there are any, lets two results be paired.

    judged      whether and how its change decides a verdict; then it must have terms
    continuous  whether any change of the computation moves it, so that SAME can be told from nearly the same
    in_nats     whether its terms are nats, per token
    column      its column in the table that ends a run, if it has one
    in_eval     whether `quambench eval` shows it
    """

    name: str
    unit: str
    better: str  # "lower" or "higher"
    version: int
    measure: Callable[[Evidence], Measurement]
    terms: Callable[[Evidence], Terms] | None = None
    judged: Judged = Judged.NOT
    continuous: bool = False
    in_nats: bool = False
    column: Column | None = None
    in_eval: bool = False

    def __post_init__(self) -> None:
        if self.judged is not Judged.NOT and self.terms is None:
            raise BadParameter(f"the metric {self.name} is judged, and so must have terms")
        if self.better not in ("lower", "higher"):
            raise BadParameter(f"of the metric {self.name} lower or higher must be better (got {self.better!r})")


METRICS: Registry[Metric] = Registry("metric", "quambench/metrics/")


def add(metric: Metric) -> None:
    """Register a metric under its name."""
    METRICS.add(metric.name, metric)


def add_mean(
    name: str, unit: str, better: str, terms: Callable[[Evidence], Terms], version: int = 1, **how: Any
) -> None:
    """Register a metric that is the mean of its terms; without units to judge it is NaN.

    how  further fields of Metric: how it is judged and shown
    """

    def measure(evidence: Evidence) -> Measurement:
        found = terms(evidence)
        if not len(found.values):
            return UNMEASURED
        return Measurement(found.mean(), found.standard_error())

    add(Metric(name=name, unit=unit, better=better, version=version, measure=measure, terms=terms, **how))


_LARGEST = math.log(sys.float_info.max)  # a model that went astray may lose more nats than that


def add_exp_of_mean(name: str, unit: str, terms: Callable[[Evidence], Terms], **how: Any) -> None:
    """Register exp of a mean of nats, a perplexity or a ratio of two; its error by the delta method.

    how  further fields of Metric
    """

    def measure(evidence: Evidence) -> Measurement:
        found = terms(evidence)
        value = math.exp(found.mean()) if found.mean() < _LARGEST else math.inf
        return Measurement(value, value * found.standard_error())

    add(Metric(name=name, unit=unit, better="lower", version=1, measure=measure, terms=terms, **how))


def per_token(phase: str, *names: str) -> Callable[[Evidence], Terms]:
    """Terms of `<phase>.<first> - <phase>.<second> ...` per token."""

    def terms(evidence: Evidence) -> Terms:
        first, *rest = (evidence[f"{phase}.{n}"] for n in names)
        values = first.clone()
        for other in rest:
            values -= other
        return Terms(values, evidence[f"{phase}.tokens"], evidence[f"{phase}.document"])

    return terms
