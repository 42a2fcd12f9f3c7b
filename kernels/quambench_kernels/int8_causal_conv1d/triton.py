"""int8_causal_conv1d in Triton, and its form that walks the ranges of groups."""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators
# Triton reads the annotations of kernels, and knows constexpr alone.

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from quambench_kernels.causal_conv1d.triton import convolved, grid_blocks, keep, tiling
from quambench_kernels.checks import dense_rows
from quambench_kernels.triton_common import launch, on_grid, scale_of, scale_step, silu


@triton.jit
def int8_causal_conv1d_kernel(
    x, x_sb, x_st, history, h_sb, h_st, x_scale, x_step, weight, w_sc,
    w_sk, bias, out_scale, out_step, y, length, channels, blocks, q_max,
    K: tl.constexpr, BT: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    b, first = (tl.program_id(0) // blocks).to(tl.int64), tl.program_id(0) % blocks * BT
    channel = tl.program_id(1) * BC + tl.arange(0, BC)
    scale = scale_of(x_scale, x_step, channel, channel < channels)
    total = convolved(x, x_sb, x_st, history, h_sb, h_st, scale, weight, w_sc, w_sk, bias, b, first, channel, length,
                      channels, K, BT)  # fmt: skip
    grid = scale_of(out_scale, out_step, channel, channel < channels)
    keep(y, on_grid(silu(total), grid[None, :], q_max), b, first, channel, length, channels, BT)


@triton.jit
def walked(head_sizes, dim_sizes, scale, channel, mask, head_dim, group_channels,
           n_heads, n_dims):  # fmt: skip
    """Return each channel's scale, found as Quamba2's kernel does: along the runs of heads, then of channels in
    them.
    """
    group, inside = channel // group_channels, channel % group_channels
    run = walk(head_sizes + group * n_heads, inside // head_dim, mask, n_heads)
    row = group * n_heads + run
    dim = walk(dim_sizes + row * n_dims, inside % head_dim, mask, n_dims)
    return tl.load(scale + row * n_dims + dim, mask=mask, other=1.0)


@triton.jit
def walk(sizes, position, mask, n):
    """Return in which of n runs each position lies; sizes points at each one's first."""
    i = tl.zeros_like(position)
    end = tl.load(sizes, mask=mask, other=1).to(tl.int32)
    for _ in range(n - 1):
        onward = mask & (position >= end)
        i += onward.to(i.dtype)
        end += tl.load(sizes + i, mask=onward, other=0).to(tl.int32)
    return i


@triton.jit
def int8_causal_conv1d_walking_kernel(
    x, x_sb, x_st, history, h_sb, h_st, x_scale, x_step, weight, w_sc,
    w_sk, bias, head_sizes, dim_sizes, scales, head_dim, group_channels,
    n_heads, n_dims, y, length, channels, blocks, q_max,
    K: tl.constexpr, BT: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    b, first = (tl.program_id(0) // blocks).to(tl.int64), tl.program_id(0) % blocks * BT
    channel = tl.program_id(1) * BC + tl.arange(0, BC)
    scale = scale_of(x_scale, x_step, channel, channel < channels)
    total = convolved(x, x_sb, x_st, history, h_sb, h_st, scale, weight, w_sc, w_sk, bias, b, first, channel, length,
                      channels, K, BT)  # fmt: skip
    grid = walked(head_sizes, dim_sizes, scales, channel, channel < channels, head_dim, group_channels, n_heads, n_dims)
    keep(y, on_grid(silu(total), grid[None, :], q_max), b, first, channel, length, channels, BT)


def int8_causal_conv1d(
    x_q: Tensor, x_scale: Tensor, weight: Tensor, bias: Tensor | None, history_q: Tensor, out_scale: Tensor, q_max: int
) -> Tensor:
    """Compute int8_causal_conv1d_ref, with its signature."""
    return _run(
        int8_causal_conv1d_kernel, x_q, x_scale, weight, bias, history_q, (out_scale, scale_step(out_scale)), q_max
    )


def int8_causal_conv1d_walking(
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
) -> Tensor:
    """Compute int8_causal_conv1d_walking_ref, with its signature."""
    runs = [m.contiguous() for m in (head_sizes, dim_sizes, scale)]
    groups, n_heads, n_dims = scale.shape
    table = (*runs, head_dim, x_q.shape[2] // groups, n_heads, n_dims)
    return _run(int8_causal_conv1d_walking_kernel, x_q, x_scale, weight, bias, history_q, table, q_max)


def _run(kernel: Any, x: Tensor, x_scale: Tensor, weight: Tensor, bias: Tensor | None, history: Tensor,
         out_grid: tuple[Any, ...], q_max: int) -> Tensor:  # fmt: skip
    """Start a kernel. out_grid: the arguments by which it finds the scale of each channel's output"""
    x, history = dense_rows(x), dense_rows(history)
    bias = None if bias is None else bias.contiguous()
    y = torch.empty(x.shape, dtype=torch.int8, device=x.device)
    grid, tile = tiling(x)
    launch(
        kernel, grid, x, *x.stride()[:2], history, *history.stride()[:2], x_scale, scale_step(x_scale), weight,
        *weight.stride(), bias, *out_grid, y, *x.shape[1:], grid_blocks(x, tile), float(q_max), K=weight.shape[1],
        **tile,
    )  # fmt: skip
    return y
