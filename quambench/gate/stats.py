"""Paired comparison of two results on the same windows or items."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from scipy import stats
from torch import Tensor

from quambench.metrics import Terms

POWER = 0.8  # chance with which the stated detectable effect would have been seen


@dataclass(frozen=True, slots=True)
class Paired:
    """Mean difference new - old, its clustered standard error, and what follows from them."""

    difference: float
    standard_error: float
    p_value: float  # two-sided
    detectable: float  # smallest |difference| seen with probability POWER at the level asked for


def paired(old: Terms, new: Terms, level: float) -> Paired:
    """t-test of a ratio's difference over documents.

    Both results weigh the same units; with one document alone nothing can be told (p = 1 unless
    equal everywhere).
    """
    difference = Terms(new.values - old.values, new.weights, new.documents)
    mean, error, freedom = difference.mean(), difference.standard_error(), difference.n_clusters - 1
    return _judge(mean, error, freedom, level)


def paired_mean(differences: Tensor, level: float) -> Paired:
    """t-test of the mean of independent differences (n,)."""
    n = len(differences)
    error = (differences.std() / math.sqrt(n)).item() if n > 1 else math.nan
    return _judge(differences.mean().item(), error, n - 1, level)


def _judge(mean: float, error: float, freedom: int, level: float) -> Paired:
    if mean == 0 and not error > 0:
        return Paired(0.0, 0.0, 1.0, 0.0)
    if freedom < 1 or math.isnan(error):
        return Paired(mean, math.nan, 1.0, math.inf)
    if error == 0:
        return Paired(mean, 0.0, 0.0, 0.0)
    p_value = 2 * stats.t.sf(abs(mean) / error, freedom)
    detectable = (stats.t.isf(level / 2, freedom) + stats.t.ppf(POWER, freedom)) * error
    return Paired(mean, error, float(p_value), float(detectable))


def log_ratio(old: Tensor, new: Tensor) -> Tensor:
    """log(new / old) where both are positive; 0 where both are 0; float64."""
    tiny = torch.finfo(torch.float64).tiny
    return torch.log(new.clamp(min=tiny)) - torch.log(old.clamp(min=tiny))
