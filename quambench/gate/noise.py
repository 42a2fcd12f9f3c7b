"""How far a result moves although nothing changed: the floor under every comparison of quality.

Integer arithmetic is exact everywhere; what differs between machines is the float arithmetic before
a rounding, which moves values across ties. Rarely, but then by a whole step, and the steps after it
follow. So the floor is measured when a baseline is written, by repeating the case

- in another process with one thread, narrower vector instructions, no C++ kernels and another batch
  composition, and
- DISTURBANCES times with every float tensor disturbed, before it is rounded, by as much as another
  order of summation may disturb it: a stand-in for machines that nobody here has.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from quambench.gate.stats import log_ratio
from quambench.metrics import Terms, metrics_of

Evidence = Mapping[str, Tensor]
SITE_ROWS = ("sites.accumulated", "decode.accumulated")
# Disturbed repetitions per case. A disturbance that meets no tie at a site leaves that floor at 0, so
# one draw is too few; each more costs an evaluation, and only where a baseline is written.
DISTURBANCES = 2
TIES = 0.125  # share of windows that one comparison may lose to values across ties
_POOL = 1 << 22  # random numbers drawn beforehand: more than a tensor of the bundled models has values


@dataclass(frozen=True, slots=True)
class Noise:
    """How far repetitions of one case lie apart.

    means  gated metric -> |difference of its mean|, in its unit
    units  gated metric -> root mean square of its difference per window, in its unit, over `most` windows
    sites  name in SITE_ROWS -> (S,) the same of the log ratio of error energies
    """

    means: Mapping[str, float] = field(default_factory=dict)
    units: Mapping[str, float] = field(default_factory=dict)
    sites: Mapping[str, Tensor] = field(default_factory=dict)

    def site_floors(self, rows: str) -> Tensor | None:
        """(S,) what each site's log ratio may come to. Errors are handed on, so no floor falls along
        the forward order; where a few repetitions met no tie at all, the least that was met stands in.
        """
        if rows not in self.sites:
            return None
        measured = self.sites[rows]
        met = measured[measured > 0]
        least = met.min() if len(met) else measured.new_tensor(0.0)
        return measured.cummax(0).values.clamp(min=least)


def disturbance(seed: int) -> Callable[[Tensor], Tensor]:
    """x -> x plus what rounding may add when a sum of as many terms as x's last axis has is reordered.

    A float32 sum of n terms of size s, whichever its order, errs by about sqrt(n) eps s / 2 (random
    signs; Higham, Accuracy and Stability, 4.2); uniform in twice that, so that it also covers two
    such sums in a row (rotation and norm). Numbers are drawn once and taken from a random place on:
    drawing afresh for every tensor took three quarters of a measurement.
    """
    generator = torch.Generator().manual_seed(seed)

    def draw(n: int) -> Tensor:
        return torch.rand(n, generator=generator) * 2 - 1

    pool = draw(_POOL)

    def disturb(x: Tensor) -> Tensor:
        n = x.numel()
        start = int(torch.randint(max(_POOL - n, 1), (), generator=generator))
        unit = (pool[start : start + n] if n <= _POOL else draw(n)).view(x.shape).to(x.device, x.dtype)
        size = torch.linalg.vector_norm(x, dim=-1, keepdim=True)  # sqrt(n) times the root mean square
        return torch.addcmul(x, unit, size * torch.finfo(torch.float32).eps)

    return disturb


def spread(a: Evidence, b: Evidence, gated: Sequence[str]) -> Noise:
    """How far two repetitions of one case lie apart."""
    means, units = {}, {}
    for name in gated:
        x, y = terms_of(name, a), terms_of(name, b)
        if len(x.values):
            means[name], units[name] = abs(y.mean() - x.mean()), unit_moved(x, y)
    return Noise(means, units, {rows: site_moved(a[rows], b[rows]) for rows in SITE_ROWS})


def largest(of: Sequence[Noise]) -> Noise:
    """Entry by entry."""
    first, *rest = of
    for other in rest:
        first = Noise(
            {n: max(first.means[n], other.means[n]) for n in first.means},
            {n: max(first.units[n], other.units[n]) for n in first.units},
            {n: torch.maximum(first.sites[n], other.sites[n]) for n in first.sites},
        )
    return first


def terms_of(name: str, evidence: Evidence) -> Terms:
    """A gated metric's terms."""
    terms = metrics_of(evidence)[name].terms
    assert terms is not None, f"{name} is gated and so must have terms"
    return terms(evidence)


def unit_moved(old: Terms, new: Terms) -> float:
    """Root mean square of the difference per unit of weight, over `most` windows: a mean may cancel."""
    return float(_rms(most((new.values - old.values) / old.weights.mean())))


def unit_size(terms: Terms) -> float:
    """Root mean square per unit of weight: what `unit_moved` is small beside."""
    return float(_rms(terms.values / terms.weights.mean())) if len(terms.values) else 0.0


def site_moved(old: Tensor, new: Tensor) -> Tensor:
    """(S, W) energies, twice -> (S,): root mean square of the log ratio, over `most` windows."""
    return _rms(most(log_ratio(old, new)))


def most(x: Tensor) -> Tensor:
    """x without those that lie farthest from 0, TIES of what was measured along the last axis: they become NaN.

    A value that falls across a tie changes its window's every later step, and where 4 bits leave little of a model,
    by half: one window of twenty, in one repetition of five. So rarely that repetitions may not have met it and
    measured a floor of nothing. A fault that touches no more windows than that is left to the probes.
    """
    measured = (~x.isnan()).sum(-1, keepdim=True)
    rank = x.double().abs().nan_to_num(-1.0).argsort(dim=-1, descending=True).argsort(dim=-1)  # 0: the farthest
    return x.masked_fill(rank < (TIES * measured).long(), torch.nan)


def _rms(x: Tensor) -> Tensor:
    """Over the last axis; entries that were not measured (NaN) do not count."""
    return x.double().square().nanmean(-1).sqrt().nan_to_num(0.0)
