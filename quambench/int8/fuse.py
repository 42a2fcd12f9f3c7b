"""Preparing the float model for INT8 without changing its function.

1. fuse each block norm's gain into in_proj and norm_f's into lm_head, which unties it from the
   embedding: RMSNorm commutes with a rotation only at unit gain;
2. rotate the residual stream by an orthonormal Hadamard matrix H: embedding and the outputs of
   out_proj are rotated, in_proj and lm_head take the inverse on their input side;
3. put heads and channels into the order of their groups, where there are any (int8/reorder.py);
4. rotate out_proj's input online, and fuse the inverse into its weight.
Mamba2's gated norm keeps its gain: the Hadamard follows it.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from quambench.core.errors import BadParameter
from quambench.grids.hadamard import Rotation, rotate, supported
from quambench.grouping.groups import Groups
from quambench.int8.reorder import reorder
from quambench.models.backbone import LanguageModel
from quambench.models.config import ModelConfig


def check_widths(config: ModelConfig) -> None:
    """Whether the residual stream and out_proj's input can be rotated. raises BadParameter"""
    for name, width in (("d_model", config.d_model), ("the inner width, expand * d_model,", config.d_inner)):
        if not supported(width):
            raise BadParameter(
                f"{name} is {width}, and of that width there is no Hadamard matrix here (2^k, 12*2^k, 40*2^k);"
                " every case rotates, so this model cannot be quantized"
            )


@torch.no_grad()
def prepare(model: LanguageModel, groups: Mapping[int, Groups] | None = None) -> LanguageModel:
    """A float64 copy of `model`, fused, rotated and, by layer, reordered; same logits up to float64 rounding.

    raises BadParameter when d_model or the inner width has no Hadamard matrix here
    """
    check_widths(model.config)
    prepared = copy.deepcopy(model).double().eval()
    prepared.lm_head.weight = nn.Parameter(model.lm_head.weight.double().clone(), requires_grad=False)
    fuse_gains(prepared)
    rotate_residual(prepared)
    reorder(prepared, groups or {})
    rotate_out_proj_input(prepared)
    return prepared


def fuse_gains(model: LanguageModel) -> None:
    """Move the gain of every norm that feeds a Linear into that Linear's input side."""
    pairs = [(block.norm, block.mixer.in_proj) for block in model.blocks]
    for norm, linear in [*pairs, (model.backbone.norm_f, model.lm_head)]:
        linear.weight.mul_(norm.weight)
        norm.weight.fill_(1.0)


def rotate_residual(model: LanguageModel) -> None:
    """h -> H h for every hidden vector h between blocks."""
    model.backbone.embedding.weight.copy_(rotate(model.backbone.embedding.weight))
    for block in model.blocks:
        mixer = block.mixer
        mixer.in_proj.weight.copy_(rotate(mixer.in_proj.weight))  # W H^T
        mixer.out_proj.weight.copy_(_rotate_outputs(mixer.out_proj.weight))  # H W
        if mixer.out_proj.bias is not None:
            mixer.out_proj.bias.copy_(rotate(mixer.out_proj.bias))
    model.lm_head.weight.copy_(rotate(model.lm_head.weight))


def rotate_out_proj_input(model: LanguageModel) -> None:
    """y -> H y at run time, and W -> W H^T."""
    for block in model.blocks:
        block.mixer.out_rotation = Rotation()
        block.mixer.out_proj.weight.copy_(rotate(block.mixer.out_proj.weight))


def _rotate_outputs(weight: Tensor) -> Tensor:
    return rotate(weight.T).T
