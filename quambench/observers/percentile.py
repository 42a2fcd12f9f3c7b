"""Quamba's observer: a moving average of each batch's α-quantile of |x|, and its relative with a warm-up."""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

from torch import Tensor

from quambench.core.errors import BadParameter
from quambench.observers.base import OBSERVERS, Observer, check_range
from quambench.observers.batch import Batch


def upper_quantile(batch: Batch, alpha: float) -> Tensor:
    """Return (*scale_shape) float64: the α-quantile of |x|, linear between the two nearest order statistics.

    The rank α(n-1) is taken in float64; torch.quantile takes it in float32, which at α = 0.99999
    and half a million values is off by 6.5e-5.
    """
    n = batch.values_per_scale
    rank = alpha * (n - 1)
    low, high = math.floor(rank), math.ceil(rank)
    tail = batch.tail(n - low)
    below, above = (tail[..., order - n].double() for order in (low, high))
    return below + (rank - low) * (above - below)


@dataclass
class _MovingQuantile(Observer):
    """A moving average of m_t, the α-quantile of batch t's |x|: w_1 = m_1, w_t = w_{t-1} + σ_t (m_t - w_{t-1})."""

    order_matters: ClassVar[bool] = True
    knows_sides: ClassVar[bool] = True  # α's share is then of either side: up to twice as much is clipped

    alpha: float = 0.9995  # quantile kept, dimensionless, in (0, 1]

    def __post_init__(self) -> None:
        check_range("alpha", self.alpha, 0, 1)
        super().__post_init__()

    def tail_length(self, n: int) -> int:
        return n - math.floor(self.alpha * (n - 1))

    def take(self, batch: Batch) -> None:
        newest = upper_quantile(batch, self.alpha)
        self.amax = newest if self.amax is None else self.amax + self.newest_weight() * (newest - self.amax)

    @abstractmethod
    def newest_weight(self) -> float:
        """Return σ of the batch about to be taken in."""


@OBSERVERS.register("percentile")
@dataclass
class Percentile(_MovingQuantile):
    """A moving average of m_t, the α-quantile of batch t's |x|: w_1 = m_1, w_t = w_{t-1} + σ (m_t - w_{t-1}).

    It falls as well as rises, and depends on the order of batches; at α = 1 it is a moving average
    of maxima, not their maximum. Source: Quamba (c474646), its calibration's α and σ.
    """

    sigma: float = 0.01  # weight of the newest batch, in (0, 1]

    def __post_init__(self) -> None:
        check_range("sigma", self.sigma, 0, 1)
        super().__post_init__()

    def newest_weight(self) -> float:
        return self.sigma


@OBSERVERS.register("warmup_percentile")
@dataclass
class WarmupPercentile(_MovingQuantile):
    """`percentile` with a σ that falls as batches come: large while the average is young, small later.

    The schedule is pairs (number of the last batch, σ), batches counted from 1; its default is the user
    guide's.
    """

    schedule: tuple[tuple[float, float], ...] = ((50.0, 0.5), (200.0, 0.2), (math.inf, 0.1))

    def __post_init__(self) -> None:
        if not all(isinstance(step, tuple) and len(step) == 2 for step in self.schedule):
            raise BadParameter(f"schedule must be pairs of batch:sigma, as in 50:0.5|inf:0.1 (got {self.schedule})")
        ends = [end for end, _ in self.schedule]
        if not (ends[0] >= 1 and ends[-1] == math.inf and all(a < b for a, b in pairwise(ends))):
            raise BadParameter(f"schedule must rise from 1 or more to inf (got {' '.join(map(str, ends))})")
        for _, sigma in self.schedule:
            check_range("sigma", sigma, 0, 1)
        super().__post_init__()

    def newest_weight(self) -> float:
        return next(sigma for end, sigma in self.schedule if self.n_batches + 1 <= end)
