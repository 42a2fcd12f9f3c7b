"""Percentiles side by side; each site takes the one that quantizes its values best."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from quambench.core.errors import BadParameter
from quambench.observers.base import OBSERVERS, check_range
from quambench.observers.batch import Batch
from quambench.observers.binned import Binned
from quambench.observers.mse import best
from quambench.observers.percentile import upper_quantile


@OBSERVERS.register("dynamic_percentile")
@dataclass
class DynamicPercentile(Binned):
    """The best of several `percentile` observers, for each scale: least mean squared error over all values seen.

    The error is that of fake quantization, from a histogram, as in `mse`. Of equally good ones the first is taken.
    """

    order_matters: ClassVar[bool] = True
    mergeable: ClassVar[bool] = False
    memory: ClassVar[tuple[str, ...]] = (*Binned.memory, "averages")

    candidates: tuple[float, ...] = (0.999, 0.9995, 0.9999, 1.0)  # α of each, in (0, 1]
    sigma: float = 0.01  # weight of the newest batch, in (0, 1]

    def __post_init__(self) -> None:
        self.averages: Tensor | None = None  # (n_candidates, *scale_shape) float64
        if not self.candidates or any(isinstance(alpha, tuple) for alpha in self.candidates):
            raise BadParameter(f"candidates must be numbers, as in 0.999|1.0 (got {self.candidates})")
        for alpha in self.candidates:
            check_range("each of candidates", alpha, 0, 1)
        check_range("sigma", self.sigma, 0, 1)
        super().__post_init__()

    def tail_length(self, n: int) -> int:
        return n - math.floor(min(self.candidates) * (n - 1))

    def take(self, batch: Batch) -> None:
        batch.tail(self.tail_length(batch.values_per_scale))  # the longest first: it serves all
        newest = torch.stack([upper_quantile(batch, alpha) for alpha in self.candidates])
        self.averages = newest if self.averages is None else self.averages + self.sigma * (newest - self.averages)
        super().take(batch)

    def threshold(self) -> Tensor:
        assert self.averages is not None
        histogram = self.histogram
        return best(histogram, self.averages.reshape(len(self.candidates), -1).T, self.bits).view(histogram.amax.shape)
