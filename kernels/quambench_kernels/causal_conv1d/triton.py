"""causal_conv1d in Triton: float32, or 16 bits wide with sums in float32."""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators
# Triton reads the annotations of kernels, and knows constexpr alone.

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from quambench_kernels.checks import dense_rows
from quambench_kernels.triton_common import ceil_power, launch, read, silu


@triton.jit
def convolved(
    x, x_sb, x_st, history, h_sb, h_st, scale, weight, w_sc, w_sk,
    bias, b, first, channel, length, channels, K: tl.constexpr, BT: tl.constexpr,
):  # fmt: skip
    """Return the sums of positions first, first + 1, ... of sequence b: (BT, channels of the program) float32.

    x, history  at (b, t, c) by their strides, c dense; integers where there is a scale (of these channels), else None
    weight (C, K) by its strides; bias (C) or None
    """
    inside = channel < channels
    t = first + tl.arange(0, BT)
    total = tl.zeros([BT, channel.shape[0]], tl.float32)
    for k in tl.static_range(K):
        at = t - (K - 1) + k
        mask = ((at >= 0) & (t < length))[:, None] & inside[None, :]
        row = tl.load(x + b * x_sb + at.to(tl.int64)[:, None] * x_st + channel[None, :], mask=mask, other=0)
        if first < K - 1:
            mask = (at < 0)[:, None] & inside[None, :]
            past = history + b * h_sb + (at + K - 1).to(tl.int64)[:, None] * h_st + channel[None, :]
            row = tl.where(mask, tl.load(past, mask=mask, other=0), row)
        row = row.to(tl.float32) if scale is None else row.to(tl.float32) * scale[None, :]
        tap = read(weight + channel * w_sc + k * w_sk, inside, None)
        total += row * tap[None, :]
    if bias is not None:
        total += read(bias + channel, inside, None)[None, :]
    return total


@triton.jit
def keep(y, value, b, first, channel, length, channels, BT: tl.constexpr):
    """Store value (BT, channels of the program) in y (B, L, C) dense."""
    t = first + tl.arange(0, BT)
    at = y + (b * length + t.to(tl.int64))[:, None] * channels + channel[None, :]
    tl.store(at, value.to(y.dtype.element_ty), mask=(t < length)[:, None] & (channel < channels)[None, :])


@triton.jit
def causal_conv1d_kernel(
    x, x_sb, x_st, history, h_sb, h_st, weight, w_sc, w_sk, bias,
    y, length, channels, blocks,
    SILU: tl.constexpr, K: tl.constexpr, BT: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    b, first = (tl.program_id(0) // blocks).to(tl.int64), tl.program_id(0) % blocks * BT
    channel = tl.program_id(1) * BC + tl.arange(0, BC)
    total = convolved(x, x_sb, x_st, history, h_sb, h_st, None, weight, w_sc, w_sk, bias, b, first, channel, length,
                      channels, K, BT)  # fmt: skip
    keep(y, silu(total) if SILU else total, b, first, channel, length, channels, BT)


def causal_conv1d(x: Tensor, weight: Tensor, bias: Tensor | None, history: Tensor, silu: bool) -> Tensor:
    """Compute causal_conv1d_ref, with its signature."""
    x, history = dense_rows(x), dense_rows(history)
    bias = None if bias is None else bias.contiguous()
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    grid, tile = tiling(x)
    launch(
        causal_conv1d_kernel, grid, x, *x.stride()[:2], history, *history.stride()[:2], weight, *weight.stride(), bias,
        y, *x.shape[1:], grid_blocks(x, tile), SILU=silu, K=weight.shape[1], **tile,
    )  # fmt: skip
    return y


def tiling(x: Tensor) -> tuple[tuple[int, int], dict[str, Any]]:
    """Return, for x (B, L, C), the grid and the tile for `launch`: at most 16 positions by channels of 16-byte
    accesses.

    A row is read once from memory, and K - 1 times more from the cache.
    """
    batch, length, channels = x.shape
    positions = min(ceil_power(length), 16)
    across = min(ceil_power(channels), 128 if positions > 4 else 256)
    tile = {"BT": positions, "BC": across, "warps": 4 if positions > 4 else 1}
    return (batch * grid_blocks(x, tile), -(-channels // across)), tile


def grid_blocks(x: Tensor, tile: dict[str, Any]) -> int:
    """Return the number of blocks of positions in a sequence."""
    positions: int = tile["BT"]
    return -(-x.shape[1] // positions)
