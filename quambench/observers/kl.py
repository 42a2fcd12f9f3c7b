"""TensorRT's entropy calibration: the clipped distribution that its quantized form tells best."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from quambench.grids.grid import q_max
from quambench.observers.base import OBSERVERS
from quambench.observers.binned import Binned

_CHUNK = 2**19  # parts of candidates held at a time


def divergences(counts: Tensor, n_parts: int) -> Tensor:
    """Return the Kullback-Leibler divergence, in nats, of the first i bins against their form in n_parts parts.

    counts   (n, n_bins) int64
    returns  (n, n_bins - n_parts + 1) float64, for i from n_parts to n_bins

    P is the first i bins, with all that lies above added to the last of them. Q is the first i bins without it:
    part p has bins j with floor(j n_parts / i) = p, and its mass is spread evenly over those that are not
    empty. Both are normalised. The divergence is infinite where P has a bin that Q lacks, i.e. when bin i - 1 was
    empty and something lies above it.

    Everything comes from sums over the first j bins, so one candidate costs n_parts, not i.
    """
    n, n_bins = counts.shape
    last = torch.arange(n_parts, n_bins + 1)
    # Part p of i bins begins at ceil(p i / n_parts).
    begin = (torch.arange(n_parts + 1) * last[:, None] + n_parts - 1).div(n_parts, rounding_mode="floor")

    def up_to(values: Tensor) -> Tensor:
        return torch.nn.functional.pad(values.double().cumsum(-1), (1, 0))

    h = counts.double()
    own = torch.special.xlogy(h, h)
    mass, filled, own_before = up_to(counts), up_to(counts > 0), up_to(own)
    found = torch.empty(n, len(last), dtype=torch.float64)
    for some in torch.arange(len(last)).split(max(_CHUNK // (n * n_parts), 1)):
        i, parts = last[some], begin[some].flatten()
        m, z = (v.index_select(1, parts).view(n, len(i), -1).diff(dim=-1) for v in (mass, filled))
        level = m / z.clamp(min=1)  # of each part's bins that are not empty
        kept, total = mass[:, i], mass[:, -1:]
        above = total - kept
        p_last = h[:, i - 1] + above
        # Σ p log p - Σ p log q, p not normalised yet
        gap = own_before[:, i - 1] + torch.special.xlogy(p_last, p_last)
        gap -= torch.special.xlogy(m, level).sum(-1) + torch.special.xlogy(above, level[..., -1])
        divergence = gap / total + (kept / total).log()
        found[:, some] = divergence.masked_fill((h[:, i - 1] == 0) & (above > 0), torch.inf)
    return found


@OBSERVERS.register("kl")
@dataclass
class LeastDivergence(Binned):
    """The threshold with the least divergence of clipped from quantized |x|, after TensorRT.

    On a histogram with equal bins (2,048 to 4,096 up to amax for one scale; fewer, as histogram.py says, for
    many), every number i of bins from 2^(bits - 1) on is tried; the threshold is (i + 1/2) bins, at most
    amax, and the largest of equally good ones. With so many scales that there are no more bins than 2^(bits - 1), it is
    amax: at 8 bits from 1,025 scales on.

    Source: S. Migacz, 8-bit Inference with TensorRT, GTC 2017. An infinite divergence there stays one here;
    later descendants smooth it, and put the second bin's count into the first, which holds the zeros.
    """

    def threshold(self) -> Tensor:
        histogram = self.histogram
        amax, linear = histogram.amax.flatten(), histogram.linear()
        bins = torch.arange(1, linear.shape[-1] + 1)
        n_bins = (linear.gt(0) * bins).amax(-1)  # up to amax
        found = amax.clone()
        n_parts = q_max(self.bits) + 1
        together = max(_CHUNK // linear.shape[-1] // n_parts, 1)
        choice = (n_bins >= n_parts).nonzero().squeeze(-1)
        for some in choice.split(together) if len(choice) else ():
            used = int(n_bins[some].max())
            divergence = divergences(linear[some, :used], n_parts)
            tried = bins[n_parts - 1 : used]
            divergence = divergence.masked_fill(tried > n_bins[some, None], torch.inf)
            i = tried.flip(0)[divergence.flip(-1).argmin(-1)]
            found[some] = torch.minimum(amax[some], (i + 0.5) * histogram.unit[some] / 2**histogram.k)
        return found.view(histogram.amax.shape)
