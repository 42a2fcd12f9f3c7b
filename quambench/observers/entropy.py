"""The threshold whose quantized values carry the most information."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from quambench.grids.grid import q_max
from quambench.observers.base import OBSERVERS, whole_number
from quambench.observers.binned import Searching
from quambench.observers.histogram import Histogram, beyond
from quambench.observers.mse import in_equal_ratios

EPS = torch.finfo(torch.float64).eps
_CHUNK = 2**18  # integers of the grid held at a time


def quantized_entropy(histogram: Histogram, thresholds: Tensor, bits: int) -> Tensor:
    """Return the Shannon entropy of the integers that the values become, each taken to be its bin's centre.

    Clipped values count at the grid's ends.

    thresholds  (n_scales, n) float64, tensor units: the largest integer's magnitude
    returns     (n_scales, n) float64, bits, 0 to the grid's
    """
    top = q_max(bits)
    steps = thresholds / (histogram.unit[:, None] * top)
    boundaries = torch.arange(1, top + 2, dtype=torch.float64) - 0.5
    n_values = histogram.n_values.double()[:, None]
    entropy = torch.empty_like(steps)
    for some in torch.arange(len(steps)).split(max(_CHUNK // (steps.shape[1] << bits), 1)):
        where = histogram.position(boundaries * steps[some, :, None])
        counts = histogram.counts[some].double()
        # How many lie beyond each boundary; nothing becomes top + 1.
        positive, negative = (
            beyond(counts[:, sign]).gather(1, where[..., :n].flatten(1)).view(*where.shape[:-1], n)
            for sign, n in ((0, top), (1, top + 1))
        )
        n = n_values[some]
        zero = n - positive[..., 0] - negative[..., 0]
        sides = (_n_log_n(-torch.nn.functional.pad(side, (0, 1)).diff(dim=-1)).sum(-1) for side in (positive, negative))
        entropy[some] = (n.log() - (_n_log_n(zero) + sum(sides)) / n) / math.log(2)
    return entropy


def _n_log_n(n: Tensor) -> Tensor:
    return n * n.clamp(min=1).log()


@OBSERVERS.register("entropy")
@dataclass
class Entropy(Searching):
    """The threshold in [low, high] amax whose quantized values have the largest Shannon entropy.

    It tries `steps` candidates in equal ratios and takes the largest of equally good ones. The cost of clipping does
    not enter: as the guide states it, this evens out how often each integer is used. So it clips too much wherever
    values crowd near 0. That is left as it is, so that it can be measured.
    """

    steps: float = 100.0

    def __post_init__(self) -> None:
        whole_number("steps", self.steps, 2)
        super().__post_init__()

    def threshold(self) -> Tensor:
        histogram = self.histogram
        parts = in_equal_ratios(self.low, self.high, int(self.steps))
        entropy = quantized_entropy(histogram, histogram.amax.flatten()[:, None] * parts, self.bits)
        # One distribution over other integers is summed in another order: a rounding per term, none above log n.
        rounding = EPS * 2**self.bits * histogram.n_values.double().log2()[:, None]
        largest = (entropy >= entropy.amax(-1, keepdim=True) - rounding).byte().argmax(-1)
        return (histogram.amax.flatten() * parts[largest]).view(histogram.amax.shape)
