"""Put a Mamba2 model's heads and channels into another order; its function stays.

Every tensor that carries a channel or a head moves with it; B and C carry neither. The online rotation of
out_proj's input mixes channels as they stand, so this comes before its inverse is fused (int8/fuse.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

import torch
from torch import Tensor

from quambench.core.errors import BadParameter
from quambench.grouping.groups import Groups
from quambench.models.backbone import LanguageModel
from quambench.models.mamba2 import Mamba2Mixer
from quambench.models.sites import architecture_of


@torch.no_grad()
def reorder(model: LanguageModel, groups: Mapping[int, Groups]) -> None:
    """Each layer by its Groups, in place. raises BadParameter for a model without heads"""
    kind = architecture_of(model.config)
    if groups and not kind.has_heads:
        raise BadParameter(f"a {kind.title} model has no heads to reorder")
    for layer, order in groups.items():
        mixer = cast(Mamba2Mixer, model.blocks[layer].mixer)
        for tensor, index in moved(mixer, order).values():
            tensor.copy_(tensor[index])


def moved(mixer: Mamba2Mixer, order: Groups) -> dict[str, tuple[Tensor, Tensor]]:
    """Name -> (tensor, or the part of it that moves, with what moves first; index along that axis)."""
    e, heads, channels = mixer.config.d_inner, order.head_index, order.channel_index
    found: dict[str, tuple[Tensor, Tensor]] = {}
    for name, p in mixer.in_proj.named_parameters():
        found[f"in_proj.{name}, z"] = p[:e], channels
        found[f"in_proj.{name}, x"] = p[e : 2 * e], channels
        found[f"in_proj.{name}, dt"] = p[-len(heads) :], heads
    for name, p in mixer.conv1d.named_parameters():
        found[f"conv1d.{name}"] = p[:e], channels
    return found | {
        "A_log": (mixer.A_log, heads),
        "dt_bias": (mixer.dt_bias, heads),
        "D": (mixer.D, channels if mixer.config.d_per_channel else heads),
        "norm.weight": (mixer.norm.weight, channels),
        "out_proj.weight": (mixer.out_proj.weight.T, channels),
    }
