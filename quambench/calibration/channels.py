"""The float model in the channel order of a grouping, which is then calibrated and quantized."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from quambench.calibration.collect import FORWARD_BATCH
from quambench.core.errors import BadParameter, NonFinite
from quambench.grouping import ChannelStatistics, GroupingSpec, Groups
from quambench.int8.fuse import prepare
from quambench.models.backbone import LanguageModel
from quambench.models.config import ModelConfig
from quambench.models.sites import architecture_of, layer_of

SITE = "x_conv_out"
# Mantissa bits that a statistic keeps. Two machines' sums differ by 1e-15, which must not decide which of two
# channels comes first, or where a run is cut: near ties become ties, and those keep their order.
KEPT_BITS = 16


def groups_of(
    config: ModelConfig, grouping: GroupingSpec, statistics: Callable[[], Mapping[int, ChannelStatistics]]
) -> dict[int, Groups]:
    """Return Groups by layer. `statistics` is called only where the grouping looks at them.

    raises BadParameter for a model without heads, or with too few of them
    """
    if not (kind := architecture_of(config)).has_heads:
        raise BadParameter(
            f"{grouping} groups heads, and a {kind.title} model has none: take channel, or channel_state"
        )
    built = grouping.build()
    groups: dict[int, Groups] = built.groups(statistics() if built.looks else {}, config)
    return groups


def order_digest(groups: Mapping[int, Groups]) -> str:
    """Return a hash of the channel orders of all layers: models with equal ones can share a pass. "" where nothing
    moves.
    """
    if all(g.keeps_order for g in groups.values()):
        return ""
    return hashlib.sha256(b"".join(g.channel_index.contiguous().numpy().tobytes() for g in groups.values())).hexdigest()


def arrange(model: LanguageModel, groups: Mapping[int, Groups], plain: LanguageModel) -> LanguageModel:
    """Return `model` prepared in the groups' order; where nothing moves, `plain`, which is `model` prepared as it
    stands.
    """
    return prepare(model, groups) if order_digest(groups) else plain


@torch.no_grad()
def channel_statistics(prepared: LanguageModel, sequences: Tensor) -> dict[int, ChannelStatistics]:
    """Return each layer's statistics over sequences (S, L) int64. raises NonFinite naming the site"""
    c = prepared.config
    mean_abs, amax, energy = torch.zeros(3, c.n_layers, c.d_inner, dtype=torch.float64)

    def watch(site: str, x: Tensor) -> Tensor:
        layer = layer_of(site)
        if layer is not None and site.endswith(f".{SITE}"):
            magnitude = x.float().double().abs()  # (B, L, E), as observers see it
            mean_abs[layer] = torch.maximum(mean_abs[layer], magnitude.mean(1).amax(0))
            amax[layer] = torch.maximum(amax[layer], magnitude.amax((0, 1)))
            energy[layer] += magnitude.square().sum((0, 1)) / sequences.numel()
        return x

    for rows in sequences.split(FORWARD_BATCH):
        prepared(rows, tap=watch)
    for i in range(c.n_layers):
        if n := int((~energy[i].isfinite()).sum()):
            raise NonFinite(f"layers.{i}.{SITE}: {n} of {c.d_inner} channels had values that are NaN or infinite")
    return {i: ChannelStatistics(*map(_kept, (mean_abs[i], amax[i], energy[i]))) for i in range(c.n_layers)}


def _kept(x: Tensor) -> Tensor:
    mantissa, exponent = torch.frexp(x)
    return torch.ldexp((mantissa * 2**KEPT_BITS).round() / 2**KEPT_BITS, exponent)
