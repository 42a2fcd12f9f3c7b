"""The threshold with the least fake-quantization error, and the error itself."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from quambench.core.errors import BadParameter
from quambench.grids.grid import q_max
from quambench.observers.base import OBSERVERS, whole_number
from quambench.observers.binned import Searching
from quambench.observers.histogram import Histogram, beyond

COARSE = 1.05  # largest ratio of neighbours in the full search's first scan
# Then what lies between the best one's neighbours, in SPLIT parts a side; ROUNDS times. At the end its
# neighbours are within 1.05^(2 / 5^3) of each other: 0.08 %.
SPLIT, ROUNDS = 5, 3
_CHUNK = 2**18  # rounding boundaries held at a time


def mean_squared_error(histogram: Histogram, thresholds: Tensor, bits: int) -> Tensor:
    """Return the error that `grids.grid.fake_quantize` makes in the histogram's values, each taken to be its bin's
    centre.

    thresholds  (n_scales, n) float64 >= 0: the largest integer's magnitude; the scale has no floor here
    returns     (n_scales, n) float64, tensor units squared

    A value x that passes the boundary (q - 1/2) s, s the step, goes from integer q - 1 to q. Its squared
    error changes by (q s - x)² - ((q - 1) s - x)² = (2 q - 1) s² - 2 s x, starting from x² at 0. So number
    and sum of the values beyond each boundary are all that is needed. The last boundary is for negative
    values alone: they go to -(q_max + 1).
    """
    top = q_max(bits)
    unit = histogram.unit[:, None]
    steps = thresholds / (unit * top)
    centres = histogram.centres
    boundaries = torch.arange(1, top + 2, dtype=torch.float64) - 0.5
    error = torch.empty_like(steps)
    for some in torch.arange(len(steps)).split(max(_CHUNK // (steps.shape[1] * top), 1)):
        s, counts = steps[some], histogram.counts[some].double()
        negative, both = counts[:, 1], counts.sum(1)
        where, last = histogram.position(boundaries * s[..., None]).split([top, 1], dim=-1)
        n, total = (beyond(c).gather(1, where.flatten(1)).view(where.shape) for c in (both, both * centres))
        n_last, total_last = (beyond(c).gather(1, last[..., 0]) for c in (negative, negative * centres))
        passed = n @ (2 * boundaries[:-1]) + n_last * (2 * boundaries[-1])
        moved = total.sum(-1) + total_last
        error[some] = (both @ centres.square())[:, None] + s * (s * passed - 2 * moved)
    # Where all values lie on the grid, rounding may leave less than nothing.
    return error.clamp(min=0) / histogram.n_values[:, None] * unit.square()


def best(histogram: Histogram, thresholds: Tensor, bits: int) -> Tensor:
    """Return the thresholds with the least error, (n_scales, n) -> (n_scales); the first of equally good ones."""
    least = mean_squared_error(histogram, thresholds, bits).argmin(-1, keepdim=True)
    return thresholds.gather(1, least).squeeze(1)


@OBSERVERS.register("mse")
@dataclass
class LeastSquares(Searching):
    """The threshold T in [low, high] amax with the least mean squared error of fake quantization.

    With `steps`, T is one of so many candidates at equal distances, low and high among them. With 0, the
    default, the whole range is scanned in equal ratios, and the best candidate's surroundings more and more
    finely, until its neighbours are 0.1 % apart.

    The error is taken from a histogram. x's distance to the nearest point of a finite grid changes no
    faster than x, so by Minkowski's inequality, over the same values,
        |RMSE_histogram(T) - RMSE_exact(T)| <= b,   b = rms of each value's distance to its bin's centre,
    and so RMSE_exact(found) <= RMSE_exact(T) + 2b for every T that was tried. b is at most 2^-(k + 1) of
    each value, k as in histogram.py (2^-12 for one scale), but for values below 2^-15 of the largest.
    """

    steps: float = 0.0

    def __post_init__(self) -> None:
        if whole_number("steps", self.steps, 0) == 1:
            raise BadParameter("steps must be 0, or 2 or more (got 1.0)")
        super().__post_init__()

    def threshold(self) -> Tensor:
        histogram = self.histogram
        amax = histogram.amax.flatten()[:, None]
        if self.steps:
            parts = torch.linspace(self.high, self.low, int(self.steps), dtype=torch.float64)
            return best(histogram, amax * parts, self.bits).view(histogram.amax.shape)
        parts = in_equal_ratios(self.low, self.high, math.ceil(math.log(self.high / self.low) / math.log(COARSE)) + 1)
        found = best(histogram, amax * parts, self.bits)[:, None]
        for i in range(1, ROUNDS + 1):
            around = COARSE ** (torch.arange(SPLIT, -SPLIT - 1, -1, dtype=torch.float64) / SPLIT**i)
            tried = torch.minimum((found * around).maximum(amax * self.low), amax * self.high)
            found = best(histogram, tried, self.bits)[:, None]
        return found.view(histogram.amax.shape)


def in_equal_ratios(low: float, high: float, n: int) -> Tensor:
    """Return (n) float64, falling from high to low, both exactly."""
    parts = high * (low / high) ** torch.linspace(0, 1, n, dtype=torch.float64)
    parts[-1] = low
    return parts
