"""Put a Mamba2 model's heads and channels into another order; its function stays.

Every tensor that carries a channel or a head moves with it; B and C carry neither. The online rotation of
out_proj's input mixes channels as they stand, so this comes before its inverse is fused (quant/fuse.py).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from quambench.errors import BadParameter
from quambench.grouping.groups import Groups
from quambench.models.backbone import LanguageModel
from quambench.models.mamba2 import Mamba2Mixer


@torch.no_grad()
def reorder(model: LanguageModel, groups: Mapping[int, Groups]) -> None:
    """Each layer by its Groups, in place. raises BadParameter for a Mamba model, which has no heads"""
    for layer, order in groups.items():
        mixer = model.blocks[layer].mixer
        if not isinstance(mixer, Mamba2Mixer):
            raise BadParameter("a Mamba model has no heads to reorder")
        for tensor, index in moved(mixer, order):
            tensor.copy_(tensor[index])
        mixer.out_proj.weight.copy_(mixer.out_proj.weight[:, order.channel_index])


def moved(mixer: Mamba2Mixer, order: Groups) -> list[tuple[Tensor, Tensor]]:
    """(tensor, index along its first axis), for every tensor but out_proj's weight, whose columns move."""
    e, heads, channels = mixer.config.d_inner, order.head_index, order.channel_index
    z, x, dt = slice(0, e), slice(e, 2 * e), slice(-len(heads), None)
    projections = [mixer.in_proj.weight, *([] if mixer.in_proj.bias is None else [mixer.in_proj.bias])]
    convolution = [mixer.conv1d.weight, *([] if mixer.conv1d.bias is None else [mixer.conv1d.bias])]
    return [
        *((p[part], channels) for p in projections for part in (z, x)),
        *((p[dt], heads) for p in projections),
        *((c[:e], channels) for c in convolution),
        (mixer.A_log, heads),
        (mixer.dt_bias, heads),
        (mixer.D, channels if mixer.config.d_per_channel else heads),
        (mixer.norm.weight, channels),
    ]
