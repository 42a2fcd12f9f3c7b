"""Noise: how far a result moves although nothing changed. It is the floor under every comparison of quality.

Integer arithmetic is exact everywhere; what differs between machines is the float arithmetic before
a rounding. It moves a value across a tie rarely, but then by a whole step, and the steps after it
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

from quambench.core.errors import NonFinite
from quambench.gate.arrays import Evidence, lost, most, moved, noisy_names, root_mean_square
from quambench.gate.deciding import beyond, larger
from quambench.gate.stats import log_ratio
from quambench.metrics import Terms, metrics_of

SITE_ROWS = ("sites.accumulated", "decode.accumulated")
# Disturbed repetitions per case. A disturbance that meets no tie at a site leaves that floor at 0, so
# one draw is too few; each more costs an evaluation, and only where a baseline is written.
DISTURBANCES = 2
_POOL = 1 << 22  # random numbers drawn beforehand: more than a tensor of the bundled models has values


@dataclass(frozen=True, slots=True)
class Noise:
    """The distance of repetitions of one case.

    means  gated metric -> |difference of its mean|, in its unit
    units  gated metric -> root mean square of its difference per window, in its unit, over `most` windows
    sites  name in SITE_ROWS -> (S,) the same of the log ratio of error energies
    arrays array of evidence -> how far it moved, relative (gate/arrays.py)
    """

    means: Mapping[str, float] = field(default_factory=dict)
    units: Mapping[str, float] = field(default_factory=dict)
    sites: Mapping[str, Tensor] = field(default_factory=dict)
    arrays: Mapping[str, float] = field(default_factory=dict)

    def site_floors(self, rows: str) -> Tensor | None:
        """Return (S,), the largest log ratio that counts as noise at each site; None where it was not measured.

        Errors are handed on, so no floor falls along the forward order. Where a few repetitions met no tie at all, the
        least floor that was met stands in.
        """
        if rows not in self.sites:
            return None
        measured = self.sites[rows]
        met = measured[measured > 0]
        least = met.min() if len(met) else measured.new_tensor(0.0)
        return measured.cummax(0).values.clamp(min=least)


def disturbance(seed: int) -> Callable[[Tensor], Tensor]:
    """Return x -> x plus what rounding may add when a sum of as many terms as x's last axis has is reordered.

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
    """Return how far two repetitions of one case lie apart.

    raises NonFinite where the second has no number and the first has one
    """
    for name, array in b.items():
        if name in a and a[name].shape == array.shape and bool(lost(a[name], array).any()):
            raise NonFinite(f"{name} is not finite in a repetition")
    means, units = {}, {}
    for name in gated:
        x, y = terms_of(name, a), terms_of(name, b)
        if len(x.values):
            means[name], units[name] = abs(y.mean() - x.mean()), unit_moved(x, y)
    sites = {rows: site_moved(a[rows], b[rows]) for rows in SITE_ROWS}
    return Noise(means, units, sites, {name: moved(name, a[name], b[name]) for name in noisy_names(b) if name in a})


# How many times the floor is more than noise. Two machines are two draws of the noise, so their
# difference is sqrt(2) times one draw's; draws measured on the bundled models differed among
# themselves by up to 1.4 (docs/gate.md). 3 leaves half as much again.
BEYOND = 3.0

# Shares of KL that a repetition may lie away: one that is disturbed, and one in another process, which computes the
# same. On the bundled models both stayed below 0.034 in some 250 cases, recall and 4 bits among them; on eight short
# windows a disturbed 4-bit row moved by 0.12. A kernel that computes something else moves KL by its own size and more.
DISTURBED, ELSEWHERE = 0.5, 0.1
# KL of a model that is as good as float: log-probabilities of some tens of nats, stored as float32, err by that much.
LEAST_KL = 1e-6


def implausible(side: str, apart: Noise, evidence: Evidence, share: float, beside: Noise | None = None) -> str:
    """Return why a repetition cannot be noise, naming both sides; "" where it can.

    side    what the repetition is, in words
    share   of KL that it may lie away
    beside  another repetition: up to BEYOND times its distance is noise too
    """
    for name in ("kl", "decode_kl"):
        size = abs(terms_of(name, evidence).mean())
        other = BEYOND * beside.means[name] if beside else 0.0
        if beyond(apart.means[name], larger(share * size + LEAST_KL, other, what=name), name):
            return (
                f"two repetitions of the same case disagree: {name} is {size:.3g} nats/token in this process and"
                f" {apart.means[name]:.2g} away from it in {side}, {apart.means[name] / max(size, LEAST_KL):.0%} of it;"
                " one of them computes something else: `pytest suites/probes` may name it; nothing is stored"
            )
    return ""


def largest(of: Sequence[Noise]) -> Noise:
    """Return the largest of several, entry by entry; an entry that only one repetition measured is taken from it.

    raises NonFinite where a repetition is not finite
    """

    def joined(field: str) -> dict[str, float]:
        parts: list[Mapping[str, float]] = [getattr(noise, field) for noise in of]
        names = dict.fromkeys(name for part in parts for name in part)
        return {n: larger(*(part[n] for part in parts if n in part), what=f"the noise of {n}") for n in names}

    sites = {rows: torch.stack([noise.sites[rows] for noise in of]).amax(0) for rows in of[0].sites}
    return Noise(joined("means"), joined("units"), sites, joined("arrays"))


def terms_of(name: str, evidence: Evidence) -> Terms:
    """Return the terms of a gated metric."""
    terms = metrics_of(evidence)[name].terms
    assert terms is not None, f"{name} is gated and so must have terms"
    return terms(evidence)


def unit_moved(old: Terms, new: Terms) -> float:
    """Return the root mean square of the difference per unit of weight, over `most` windows: a mean may cancel."""
    return float(root_mean_square(most((new.values - old.values) / old.weights.mean())))


def unit_size(terms: Terms) -> float:
    """Return the root mean square per unit of weight, to which `unit_moved` is compared."""
    return float(root_mean_square(terms.values / terms.weights.mean()))


def site_moved(old: Tensor, new: Tensor) -> Tensor:
    """Return (S,) the root mean square of the log ratio of energies (S, W), over `most` windows."""
    return root_mean_square(most(log_ratio(old, new)))
