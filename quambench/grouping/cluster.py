"""Quamba2's two-level clustering (Chiang et al. 2025, arXiv:2503.22879), with three ways to cut its second level.

1. each head's channels are sorted by their statistic, ascending, and the sorted values scaled to unit length;
2. each SSD group's heads are clustered by those vectors (Ward), clusters numbered by their first heads,
   and the heads ordered by cluster, then by index;
3. in each cluster the sorted positions, each described by its values across the cluster's heads, are cut
   into runs.

The method says how step 3 cuts:

kmeans         k-means from every (P / n)-th position on. Values ascend in every head, so centroids do, and
               with them the clusters: they are runs. A cluster that were no run would be an error.
dp             the runs whose scales, each the run's largest |x|, leave the least expected rounding error: an
               exact minimum for this order, by dynamic programming over the runs' ends.
quamba_exact   as the original (commit c474646): k-means, but a cluster's positions are described by the heads
               that stand, before anything has moved, at the places where the cluster's heads will be. These
               depend on how scikit-learn numbers clusters, so its numbers are kept here.

Stated rules: equal values, and equal heads, keep their order. A head without any value has the zero vector;
where all are such, they are split evenly. Where there are fewer distinct positions than runs asked for, equal
ones make a run each, and the longest is halved until there are enough.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeVar

import torch
from joblib import Parallel, delayed
from threadpoolctl import threadpool_limits
from torch import Tensor

from quambench.core.errors import BadParameter
from quambench.grouping.base import ChannelStatistics
from quambench.grouping.groups import Groups
from quambench.models.config import ModelConfig

T = TypeVar("T")
Cut = Callable[[Tensor, Tensor, int], list[int]]
"""(P, heads) ascending along P; (P,) largest |x| at each position; number of runs -> their sizes, each 1 or more"""


def cluster(
    statistics: ChannelStatistics, config: ModelConfig, n_head_groups: int, n_dim_groups: int, method: str
) -> Groups:
    """Return the Groups of one layer.

    raises BadParameter for more groups than there are heads or channels, or an unknown method
    """
    c = config
    heads = c.n_heads // c.n_groups
    _check("head", n_head_groups, heads, "heads in an SSD group")
    _check("channel", n_dim_groups, c.head_dim, "channels in a head")
    if method not in METHODS:
        raise BadParameter(f"method must be {', '.join(METHODS)} (got {method!r})")
    shape = (c.n_groups, heads, c.head_dim)
    values, order = statistics.mean_abs.view(shape).sort(dim=-1, stable=True)
    amax = statistics.amax.view(shape).gather(-1, order)
    found = [_ssd_group(v, a, n_head_groups, n_dim_groups, METHODS[method]) for v, a in zip(values, amax, strict=True)]
    head_index = torch.cat([g * heads + one.head_index for g, one in enumerate(found)])
    channel_index = head_index[:, None] * c.head_dim + order.flatten(0, 1)[head_index]
    return Groups(
        head_index,
        channel_index.flatten(),
        torch.stack([one.head_sizes for one in found]),
        torch.stack([one.dim_sizes for one in found]),
    )


def by_layer(work: Callable[[ChannelStatistics], T], statistics: Mapping[int, ChannelStatistics]) -> dict[int, T]:
    """Return work(statistics) of each layer, layers in parallel.

    They run in threads: k-means and Ward work outside the interpreter's lock, and nothing is copied. scikit-learn
    limits BLAS for the whole process while it works and puts back what it found; several at once would put
    back each other's limit, so one limit is around them all.
    """
    with threadpool_limits(1):
        found = Parallel(n_jobs=-1, prefer="threads")(delayed(work)(s) for s in statistics.values())
    return dict(zip(statistics, found, strict=True))


def _check(what: str, asked: int, there: int, of_what: str) -> None:
    if not 1 <= asked <= there:
        raise BadParameter(f"{asked} {what} groups: there are {there} {of_what}, so 1 to {there}")


@dataclass(frozen=True, slots=True)
class _Found:
    """The result for one SSD group, its heads counted from 0."""

    head_index: Tensor  # (heads,)
    head_sizes: Tensor  # (n_head_groups,)
    dim_sizes: Tensor  # (n_head_groups, n_dim_groups)


def _ssd_group(values: Tensor, amax: Tensor, n_head_groups: int, n_dim_groups: int, method: _Method) -> _Found:
    """Cluster one SSD group.

    values  (heads, P) float64, ascending along P
    amax    (heads, P), in the same order
    """
    unit = values / values.norm(dim=-1, keepdim=True).clamp(min=torch.finfo(torch.float64).tiny)
    labels = _ward(unit, n_head_groups)
    if not method.before_reordering:
        labels = by_first(labels)
    head_index = labels.argsort(stable=True)
    sizes = labels.bincount(minlength=n_head_groups)
    described = unit if method.before_reordering else unit[head_index]
    runs = zip(described.split(sizes.tolist()), amax[head_index].split(sizes.tolist()), strict=True)
    return _Found(head_index, sizes, torch.tensor([method.cut(d.T, a.amax(0), n_dim_groups) for d, a in runs]))


def _ward(vectors: Tensor, n: int) -> Tensor:
    """Cluster vectors (heads, P) -> (heads,) int64 labels 0 to n - 1, as scikit-learn numbers them."""
    if n == 1 or not vectors.any():
        return torch.arange(len(vectors)) * n // len(vectors)
    from sklearn.cluster import AgglomerativeClustering  # here: importing it takes a second

    return torch.from_numpy(AgglomerativeClustering(n_clusters=n, linkage="ward").fit(vectors.numpy()).labels_).long()


def by_first(labels: Tensor) -> Tensor:
    """Return labels numbered by each cluster's first head, so that no library's numbering decides an order."""
    number: dict[int, int] = {}
    return torch.tensor([number.setdefault(label, len(number)) for label in labels.tolist()])


def by_k_means(points: Tensor, amax: Tensor, n: int) -> list[int]:
    """Cut positions into n runs by k-means, started from every (P / n)-th one; returns the runs' lengths."""
    distinct, counts = points.unique_consecutive(dim=0, return_counts=True)
    if len(distinct) <= n:
        return halved(counts.tolist(), n)
    from sklearn.cluster import KMeans

    starts = points[torch.arange(n) * len(points) // n].numpy()
    return halved(runs_of(KMeans(n, init=starts, n_init=1).fit(points.numpy()).labels_.tolist()), n)


def runs_of(labels: list[int]) -> list[int]:
    """Return the lengths of the runs of equal labels. raises BadParameter where a label comes back after another"""
    sizes, seen = [0], [labels[0]]
    for label in labels:
        if label == seen[-1]:
            sizes[-1] += 1
        elif label in seen:
            raise BadParameter("clusters of sorted positions are no runs: these channels cannot be grouped by k-means")
        else:
            seen.append(label)
            sizes.append(1)
    return sizes


def halved(sizes: list[int], n: int) -> list[int]:
    """Return n runs: the longest, the first of equals, is halved until there are n."""
    sizes = list(sizes)
    while len(sizes) < n:
        i = sizes.index(max(sizes))
        sizes[i : i + 1] = [sizes[i] - sizes[i] // 2, sizes[i] // 2]
    return sizes


def by_dynamic_programming(points: Tensor, amax: Tensor, n: int) -> list[int]:
    """Return the n runs with the least sum over runs of length * largest^2; the first of equally good cuts.

    A run's scale is its largest |x| over 127, and rounding's mean squared error scale^2 / 12: the sum is the
    expected error, up to a factor.
    """
    total, squares = len(amax), amax.square().tolist()
    best, cuts = [0.0] + [math.inf] * total, []  # best[end]: the first `end` positions, in as many runs as done
    for _ in range(n):
        now, cut = [math.inf] * (total + 1), [0] * (total + 1)
        for end in range(1, total + 1):
            largest = 0.0
            for start in range(end - 1, -1, -1):
                largest = max(largest, squares[start])
                cost = best[start] + (end - start) * largest
                if cost <= now[end]:
                    now[end], cut[end] = cost, start
        best = now
        cuts.append(cut)
    sizes, end = [], total
    for cut in reversed(cuts):
        sizes.append(end - cut[end])
        end = cut[end]
    return sizes[::-1]


@dataclass(frozen=True, slots=True)
class _Method:
    """A method of step 3: how it cuts, and which heads describe a position."""

    cut: Cut
    before_reordering: bool = False  # the heads that stand where a cluster's heads go, by scikit-learn's numbers


METHODS = {
    "kmeans": _Method(by_k_means),
    "dp": _Method(by_dynamic_programming),
    "quamba_exact": _Method(by_k_means, before_reordering=True),
}
