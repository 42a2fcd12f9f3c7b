"""The definitions of int8_causal_conv1d and of its form that walks the ranges of groups."""

from __future__ import annotations

import torch
from torch import Tensor

from quambench_kernels.causal_conv1d.reference import causal_conv1d_ref
from quambench_kernels.rounding import dequantize_ref, quantize_ref


def int8_causal_conv1d_ref(
    x_q: Tensor,
    x_scale: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    history_q: Tensor,
    out_scale: Tensor,
    q_max: int,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Dequantize, convolve, SiLU, quantize.

    x_q (B, L, C) int8; history_q (B, K-1, C) int8; x_scale, out_scale () or (C) float32
    weight (C, K), bias (C) float32, as their integers have them
    returns (B, L, C) int8
    """
    y = convolved(x_q, x_scale, weight, bias, history_q, dtype)
    return quantize_ref(y, out_scale, q_max)


def convolved(
    x_q: Tensor, x_scale: Tensor, weight: Tensor, bias: Tensor | None, history_q: Tensor, dtype: torch.dtype
) -> Tensor:
    """Return the values that are then rounded, in any floating dtype."""
    x, history = (dequantize_ref(q, x_scale, dtype) for q in (x_q, history_q))
    return causal_conv1d_ref(x, weight.to(dtype), None if bias is None else bias.to(dtype), history, silu=True)


def int8_causal_conv1d_walking_ref(
    x_q: Tensor,
    x_scale: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    history_q: Tensor,
    head_sizes: Tensor,
    dim_sizes: Tensor,
    scale: Tensor,
    head_dim: int,
    q_max: int,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Compute int8_causal_conv1d_ref; a channel's scale is that of its run of heads, and of its run of channels in
    them.

    head_sizes (G, nh) int64, dim_sizes (G, nh, nd) int64, scale (G, nh, nd) float32: quambench's Groups
    """
    table = table_of(head_sizes, dim_sizes, scale, head_dim)
    return int8_causal_conv1d_ref(x_q, x_scale, weight, bias, history_q, table, q_max, dtype)


def table_of(head_sizes: Tensor, dim_sizes: Tensor, scale: Tensor, head_dim: int) -> Tensor:
    """Return the scale of each channel, (C,), found by walking, one channel at a time as a kernel's thread does."""
    found = []
    for g, heads in enumerate(head_sizes.tolist()):
        for head in range(sum(heads)):
            i, last = 0, heads[0]
            while head >= last:
                i, last = i + 1, last + heads[i + 1]
            dims = dim_sizes[g, i].tolist()
            for dim in range(head_dim):
                j, end = 0, dims[0]
                while dim >= end:
                    j, end = j + 1, end + dims[j + 1]
                found.append(scale[g, i, j])
    return torch.stack(found)
