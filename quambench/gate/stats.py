"""Paired comparison of two results on the same windows or items.

scipy has the distributions and the tests. This module says how they are asked: over documents,
since windows of one document are alike; two-sided, since a change for the better is news too; and
with Holm's correction, which scipy lacks. Importing scipy.stats takes a second and a half, which results
that are equal to the last bit need not wait for.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from quambench.metrics import Terms

POWER = 0.8  # chance with which the stated detectable effect would have been seen
FLIPS = 4095  # sign flips drawn beside the observed one
_FLIP_STREAM = 20_251_123  # the permutation test's own stream: equal input, equal p
# With fewer documents than this, windows stand for themselves: the least number for which the
# two-sided sign-flip test can fall below 5 % (2 / 2^6 = 3 %).
MIN_CLUSTERS = 6


@dataclass(frozen=True, slots=True)
class Paired:
    """The mean difference new - old, its standard error, and what follows from them."""

    difference: float
    standard_error: float
    p_value: float  # two-sided
    detectable: float  # smallest |difference| seen with probability POWER at the level asked for
    n: int  # clusters or items that the test compares


def paired(old: Terms, new: Terms, level: float) -> Paired:
    """Compare by the t-test of a ratio's difference over documents, checked by a sign-flip permutation test.

    The permutation test needs no normality, but 4,096 flips cannot show a p below 5e-4, so the
    t-test gives the p-value where the two agree: where the permutation test is below `level` or as
    low as it can be. Where they do not, its larger p stands. Both results weigh the same units.
    """
    difference = Terms(new.values - old.values, new.weights, new.documents)
    few = difference.n_clusters < MIN_CLUSTERS
    if few:
        difference = Terms(difference.values, difference.weights, torch.arange(len(difference.values)))
    found = _t_test(difference.mean(), difference.standard_error(), difference.n_clusters, level)
    if found.p_value >= level:
        return found
    p_flip, least = sign_flip_p(difference.cluster_sums(difference.values))
    # Too few documents for signs to clear the level are too few for the t-test alone as well, when
    # they are windows that only stand in for documents.
    agrees = p_flip <= (level if few else max(level, least))
    return found if agrees else Paired(found.difference, found.standard_error, p_flip, found.detectable, found.n)


def sign_flip_p(differences: Tensor) -> tuple[float, float]:
    """Return (two-sided p of sum(differences) under random signs, the least p that this many can give)."""
    from scipy import stats

    drawn = stats.permutation_test(
        (differences.numpy(),),
        lambda x, axis: np.sum(x, axis=axis),
        permutation_type="samples",
        n_resamples=FLIPS,
        vectorized=True,
        rng=np.random.default_rng(_FLIP_STREAM),
    )
    return float(drawn.pvalue), 2 / min(2 ** len(differences), FLIPS + 1)


def paired_mean(differences: Tensor, level: float) -> Paired:
    """Compare by the t-test of the mean of independent differences (n,)."""
    n = len(differences)
    error = (differences.std() / math.sqrt(n)).item() if n > 1 else math.nan
    return _t_test(differences.mean().item(), error, n, level)


def mcnemar(old: Tensor, new: Tensor, level: float) -> Paired:
    """Compare (n,) scores per item by the exact McNemar test; with several answers an item, by the exact sign test.

    Items that scored as before say nothing; of the others, under no change, as many gain as lose.
    `detectable` is the smallest share of items that would be significant if all went one way.
    """
    n = len(old)
    gained, lost = int((new > old).sum()), int((new < old).sum())
    p_value = 1.0
    if gained + lost:
        from scipy import stats

        p_value = float(stats.binomtest(gained, gained + lost).pvalue)
    error = math.sqrt(max(gained + lost - (gained - lost) ** 2 / n, 0)) / n
    one_way = math.floor(math.log2(2 / level)) + 1  # 2 * 2^-k < level
    return Paired((gained - lost) / n, error, p_value, one_way / n, n)


def holm(p_values: Mapping[str, float], level: float) -> set[str]:
    """Return the names significant at family-wise `level` (Holm 1979, Scand. J. Statist. 6:65-70)."""
    found: set[str] = set()
    for rank, (name, p) in enumerate(sorted(p_values.items(), key=lambda item: item[1])):
        if p >= level / (len(p_values) - rank):
            break
        found.add(name)
    return found


def _t_test(mean: float, error: float, n: int, level: float) -> Paired:
    if mean == 0 and not error > 0:
        return Paired(0.0, 0.0, 1.0, 0.0, n)
    if n < 2 or math.isnan(error):
        return Paired(mean, math.nan, 1.0, math.inf, n)
    if error == 0:
        return Paired(mean, 0.0, 0.0, 0.0, n)
    from scipy import stats

    p_value = 2 * stats.t.sf(abs(mean) / error, n - 1)
    detectable = (stats.t.isf(level / 2, n - 1) + stats.t.ppf(POWER, n - 1)) * error
    return Paired(mean, error, float(p_value), float(detectable), n)


def log_ratio(old: Tensor, new: Tensor) -> Tensor:
    """Return log(new / old) where both are positive; 0 where both are 0; float64."""
    tiny = torch.finfo(torch.float64).tiny
    return torch.log(new.clamp(min=tiny)) - torch.log(old.clamp(min=tiny))
