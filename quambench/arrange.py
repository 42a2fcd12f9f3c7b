"""The float model in the channel order of a grouping: what is then calibrated and quantized."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from quambench.calibrate import FORWARD_BATCH
from quambench.errors import BadParameter, NonFinite
from quambench.grouping import ChannelStatistics, GroupingSpec, Groups
from quambench.models.backbone import LanguageModel
from quambench.models.config import ModelConfig
from quambench.models.sites import layer_of
from quambench.quant.fuse import prepare

SITE = "x_conv_out"
# Mantissa bits that a statistic keeps. What two machines' sums differ by, 1e-15, must not decide which of two
# channels comes first: near ties become ties, and those keep their order.
KEPT_BITS = 16


@dataclass(frozen=True)
class Arrangement:
    """groups by layer; none where the model stands as it was."""

    prepared: LanguageModel
    groups: Mapping[int, Groups] = field(default_factory=dict)


def check_groupable(config: ModelConfig, grouping: GroupingSpec) -> None:
    """raises BadParameter"""
    if config.architecture != "mamba2":
        raise BadParameter(f"{grouping} groups heads, and a Mamba model has none: take channel, or channel_state")


def arrange(
    model: LanguageModel, grouping: GroupingSpec, statistics: Mapping[int, ChannelStatistics], plain: LanguageModel
) -> Arrangement:
    """model, prepared in a grouping's order; `plain`, which is it prepared as it stands, where that order is the same.

    statistics  of `plain`; empty where the grouping does not look at any
    raises BadParameter
    """
    groups = grouping.build().groups(statistics, model.config)
    if all(g.keeps_order for g in groups.values()):
        return Arrangement(plain, groups)
    return Arrangement(prepare(model, groups), groups)


@torch.no_grad()
def channel_statistics(prepared: LanguageModel, sequences: Tensor) -> dict[int, ChannelStatistics]:
    """sequences (S, L) int64 -> of each layer, over all of them. raises NonFinite naming the site"""
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
    return {i: ChannelStatistics(_kept(mean_abs[i]), amax[i], _kept(energy[i])) for i in range(c.n_layers)}


def _kept(x: Tensor) -> Tensor:
    mantissa, exponent = torch.frexp(x)
    return torch.ldexp((mantissa * 2**KEPT_BITS).round() / 2**KEPT_BITS, exponent)
