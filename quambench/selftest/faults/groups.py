"""Faults in groups of heads and channels: clustering, reordering, which scale meets which channel."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from copy import copy
from dataclasses import replace
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from quambench.calibration import channels
from quambench.calibration import collect as calibration
from quambench.grids import granularity
from quambench.grouping import adaptive, cluster, clustered
from quambench.grouping.adaptive import Adaptive
from quambench.grouping.base import ChannelStatistics
from quambench.grouping.groups import Groups
from quambench.int8 import reorder as reordering
from quambench.policy.quamba2 import Quamba2
from quambench.selftest.faults.base import OTHER, fault
from quambench.selftest.faults.planting import planned, planted, wrapped

MAMBA2 = {"architectures": OTHER}
GROUPED = {"case": "running_max/4x4/quamba2"} | MAMBA2
BY_PERCENTILE = {"case": "percentile/4x4/quamba2"} | MAMBA2
ADAPTIVE = {"case": "running_max/adaptive/quamba2"} | MAMBA2
LEAST = {"case": "running_max/4x4[method=dp]/quamba2"} | MAMBA2
EXACT = {"case": "running_max/4x4[method=quamba_exact]/quamba2"} | MAMBA2
X, ANY_X = "layers.0.x_conv_out", r"layers.\d.x_conv_out"

# --- clustering -------------------------------------------------------------------------------------


def described_by(statistic: Callable[[ChannelStatistics], Tensor]) -> AbstractContextManager[Any]:
    """Another statistic in place of the sequences' largest mean."""
    original = channels.channel_statistics

    def spoilt(*args: Any) -> dict[int, ChannelStatistics]:
        return {i: replace(s, mean_abs=statistic(s)) for i, s in original(*args).items()}

    return planted(channels, "channel_statistics", spoilt)


@fault("root mean square in place of the sequences' largest mean", "cluster/statistics", X, **GROUPED)
def _() -> AbstractContextManager[Any]:
    return described_by(lambda s: s.energy.sqrt())


@fault("largest value in place of the sequences' largest mean", "cluster/statistics", X, **GROUPED)
def _() -> AbstractContextManager[Any]:
    return described_by(lambda s: s.amax)


@fault("channels sorted in descending order", "cluster/kmeans", X, **GROUPED)
def _() -> AbstractContextManager[Any]:
    return wrapped(
        clustered,
        "cluster",
        lambda original, s, *more: original(replace(s, mean_abs=s.mean_abs.max() - s.mean_abs), *more),
    )


@fault("heads clustered by loudness, not by shape", "cluster/kmeans", ANY_X, **GROUPED)
def _() -> AbstractContextManager[Any]:
    return wrapped(cluster, "_ward", lambda original, vectors, n: original(vectors * vectors.sum(1, keepdim=True), n))


@fault("heads stay where they are", "cluster/kmeans", X, **GROUPED)
def _() -> AbstractContextManager[Any]:
    def in_place(original: Callable[..., Tensor], vectors: Tensor, n: int) -> Tensor:
        return original(vectors, n).sort().values

    return wrapped(cluster, "_ward", in_place)


@fault("clusters numbered as scikit-learn does", "cluster/kmeans", ANY_X, **GROUPED)
def _() -> AbstractContextManager[Any]:
    return planted(cluster, "by_first", lambda labels: labels)


@fault("runs of equal length", "cluster/kmeans", X, **GROUPED)
def _() -> AbstractContextManager[Any]:
    return method("kmeans", lambda points, amax, n: cluster.halved([len(points)], n))


@fault("k-means from other heads", "cluster/kmeans", ANY_X, **GROUPED)
def _() -> AbstractContextManager[Any]:
    spoilt = replace(cluster.METHODS["kmeans"], before_reordering=True)
    return patch.dict(cluster.METHODS, kmeans=spoilt)


@fault("the original's cuts without its other heads", "cluster/quamba_exact", ANY_X, **EXACT)
def _() -> AbstractContextManager[Any]:
    return patch.dict(cluster.METHODS, quamba_exact=cluster.METHODS["kmeans"])


@fault("a run costs what its quietest channel does", "cluster/dp", X, **LEAST)
def _() -> AbstractContextManager[Any]:
    return method("dp", lambda points, amax, n: cluster.by_dynamic_programming(points, amax.cummin(0).values, n))


@fault("errors summed without a square", "cluster/dp", X, **LEAST)
def _() -> AbstractContextManager[Any]:
    return method("dp", lambda points, amax, n: cluster.by_dynamic_programming(points, amax.sqrt(), n))


@fault("group ranges off by one", "cluster/kmeans", X, **GROUPED)
def _() -> AbstractContextManager[Any]:
    def shifted(original: Callable[..., Groups], *args: Any) -> Groups:
        groups = original(*args)
        sizes = groups.dim_sizes.clone()
        widest, other = sizes.argmax(-1, keepdim=True), sizes.argmin(-1, keepdim=True)
        one = torch.ones_like(widest)
        sizes.scatter_add_(-1, widest, -one).scatter_add_(-1, other, one)
        return replace(groups, dim_sizes=sizes)

    return wrapped(clustered, "cluster", shifted)


@fault("numbers of head and dim groups exchanged", "cluster/kmeans", X, case="running_max/2x8/quamba2", **MAMBA2)
def _() -> AbstractContextManager[Any]:
    return wrapped(
        clustered, "cluster", lambda original, s, c, heads, dims, method: original(s, c, dims, heads, method)
    )


def method(name: str, cut: Callable[..., list[int]]) -> AbstractContextManager[Any]:
    return patch.dict(cluster.METHODS, {name: replace(cluster.METHODS[name], cut=cut)})


# --- adaptive ---------------------------------------------------------------------------------------


@fault("twice the budget", "adaptive/error", X, **ADAPTIVE)
def _() -> AbstractContextManager[Any]:
    return wrapped(
        Adaptive, "_by_error", lambda original, self, *args: original(replace(self, base=2 * self.base), *args)
    )


@fault("groups go where the error is least", "adaptive/error", ANY_X, **ADAPTIVE)
def _() -> AbstractContextManager[Any]:
    return wrapped(adaptive, "expected_error", lambda original, *args: 1 / original(*args))


# --- reordering -------------------------------------------------------------------------------------


def not_moved(name: str) -> AbstractContextManager[Any]:
    return wrapped(reordering, "moved", lambda original, *args: {k: t for k, t in original(*args).items() if k != name})


for _name, _place in (
    ("in_proj.weight, z", "layers.0.in_proj.weight"),
    ("in_proj.weight, x", "layers.0.in_proj.weight"),
    ("in_proj.weight, dt", "layers.0.in_proj.weight"),
    ("conv1d.weight", "layers.0.conv1d.weight"),
    ("conv1d.bias", "layers.0.conv1d.bias"),
    ("A_log", "layers.0.A_log"),
    ("D", "layers.0.D"),
    ("dt_bias", "layers.0.*"),
    ("norm.weight", "layers.0.out_proj:input"),
    ("out_proj.weight", "layers.0.out_proj.weight"),
):
    fault(f"{_name} not moved", "reorder", _place, **GROUPED)(lambda name=_name: not_moved(name))  # type: ignore[misc]


@fault("A_log moved the other way", "reorder", "layers.0.A_log", **GROUPED)
def _() -> AbstractContextManager[Any]:
    def inverted(
        original: Callable[..., dict[str, tuple[Tensor, Tensor]]], *args: Any
    ) -> dict[str, tuple[Tensor, Tensor]]:
        found = original(*args)
        tensor, index = found["A_log"]
        return found | {"A_log": (tensor, index.argsort())}

    return wrapped(reordering, "moved", inverted)


@fault("channels moved the other way", "reorder", "layers.0.*", **GROUPED)
def _() -> AbstractContextManager[Any]:
    def inverted(
        original: Callable[..., dict[str, tuple[Tensor, Tensor]]], mixer: Any, order: Groups
    ) -> dict[str, tuple[Tensor, Tensor]]:
        spoilt = copy(order)
        object.__setattr__(spoilt, "channel_index", order.channel_index.argsort())
        return original(mixer, spoilt)

    return wrapped(reordering, "moved", inverted)


@fault("nothing moved", "reorder", "layers.0.*", **GROUPED)
def _() -> AbstractContextManager[Any]:
    return planted(reordering, "moved", lambda mixer, order: {})


# --- scales -----------------------------------------------------------------------------------------


@fault("a group's smallest in place of its largest", "calibration", X, **GROUPED)
def _() -> AbstractContextManager[Any]:
    return wrapped(Groups, "largest", lambda original, self, per_channel: -original(self, -per_channel))


@fault("groups of x shifted by one channel", "cluster", X, **GROUPED)
def _() -> AbstractContextManager[Any]:
    right = Groups.of_channel.func  # type: ignore[attr-defined]
    return planted(Groups, "of_channel", property(lambda self: right(self).roll(1)))


@fault("one group's scale for all n of the state", "calibration", "layers.0.ssm_state", **GROUPED)
def _() -> AbstractContextManager[Any]:
    def flat(original: Callable[..., Tensor], self: Groups, per_channel: Tensor) -> Tensor:
        found = original(self, per_channel)
        return found if per_channel.ndim == 1 else found.amax(-1, keepdim=True).expand_as(found).contiguous()

    return wrapped(Groups, "largest", flat)


@fault("the table of scales read backwards", "", X, **BY_PERCENTILE)
def _() -> AbstractContextManager[Any]:
    return wrapped(Groups, "per_channel", lambda original, self, grouped: original(self, grouped.flip(0, 1, 2)))


@fault("scales stay in the order of their groups' sizes", "granularity/mamba2/groups", X, **BY_PERCENTILE)
def _() -> AbstractContextManager[Any]:
    def not_back(original: Any, groups: Groups) -> Any:
        return original(groups)[0], torch.cat

    return wrapped(granularity, "_by_size", not_back)


@fault("the next layer's groups", "", X, **BY_PERCENTILE)
def _() -> AbstractContextManager[Any]:
    def neighbour(original: Callable[..., Groups | None], site: str, assignment: Any, task: Any) -> Groups | None:
        n = len(task.groups)
        turned = {(layer + 1) % n: groups for layer, groups in task.groups.items()}
        return original(site, assignment, replace(task, groups=turned))

    return wrapped(calibration, "_groups", neighbour)


@fault("B and C with one scale for all SSD groups", "policy/quamba2/mamba2", "", **GROUPED)
def _() -> AbstractContextManager[Any]:
    return planned(
        Quamba2,
        lambda plan, _: {
            s: replace(a, granularity="tensor") if a.granularity == "ssd_group" else a for s, a in plan.items()
        },
    )
