"""How far an array of evidence moved from the stored one. Every array has a rule (quambench/evaluation/fields.py)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from quambench.evaluation.fields import Rule, field_of

Evidence = Mapping[str, Tensor]


def rule_of(name: str) -> Rule:
    """Return the rule of an array, as its field says."""
    return field_of(name).rule


# Bound for a float64 result that is stored by way of float32: each side is rounded once (eps / 2 relative), to
# neighbours of each other at the worst; sums of terms of one sign keep that. Twice as much is allowed.
REFERENCE_TOLERANCE = 2 * torch.finfo(torch.float32).eps
TIES = 0.125  # share of windows that one comparison may lose to values across ties


def moved(name: str, old: Tensor, new: Tensor) -> float:
    """Return how far an array of equal shape moved, relative to its size; entries that `old` lacks (NaN) do not count.

    It is the root mean square over `most` entries for a noisy array, the largest of them for quantiles.
    """
    known = old.double()[~old.isnan()]
    difference = new.double()[~old.isnan()] - known
    if not known.numel():
        return 0.0
    if rule_of(name) is Rule.QUANTILES:
        return float((difference / known.clamp(min=_TINY)).abs().max())
    return float(root_mean_square(most(difference)) / root_mean_square(known).clamp(min=_TINY))


_TINY = torch.finfo(torch.float64).tiny


def lost(old: Tensor, new: Tensor) -> Tensor:
    """Return bool of an array's shape: where `new` has a NaN or infinity in place of a number of `old`."""
    return old.isfinite() & ~new.isfinite()


def most(x: Tensor) -> Tensor:
    """Return x without the values that lie farthest from 0: a share of TIES along the last axis becomes NaN.

    A value that falls across a tie changes all later steps of its window, and by half where 4 bits leave little of a
    model. That happened in one window of twenty, in one repetition of five. It is so rare that the repetitions may not
    have met it, and then the measured floor is 0. A fault that touches no more windows than that is left to the probes.
    """
    measured = (~x.isnan()).sum(-1, keepdim=True)
    rank = (-x.double().abs()).argsort().argsort()  # along the last axis; 0: the farthest; NaN stands last
    return x.masked_fill(rank < (TIES * measured).long(), torch.nan)


def root_mean_square(x: Tensor) -> Tensor:
    """Return the root mean square over the last axis; entries that were not measured (NaN) do not count."""
    return x.double().square().nanmean(-1).sqrt().nan_to_num()


def noisy_names(evidence: Evidence) -> Iterator[str]:
    """Yield the names of the arrays in which repetitions differ."""
    return (name for name in evidence if rule_of(name) in (Rule.NOISY, Rule.QUANTILES))
