"""ssd in Triton, from floats or from integers: int8_ssd is the same kernel with scales."""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators
# Triton reads the annotations of kernels, and knows constexpr alone.

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from quambench_kernels.checks import dense_rows
from quambench_kernels.triton_common import ceil_power, exp, launch, on_grid, read, scale_of, softplus


@triton.jit
def ssd_kernel(
    x, x_sb, x_st, x_scale, x_step, dt, dt_sb, dt_st, dt_scale,
    dt_step, A, B, B_sb, B_st, B_scale, B_step, C, C_sb, C_st,
    C_scale, C_step, D, D_sh, D_sp, dt_bias, low, high,
    state, state_scale, scale_sh, scale_sp, scale_sn, y, after,
    length, heads, head_dim, heads_per_group, d_state, q_max,
    BP: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """Scan BP channels of a head of a sequence: their states (BP, BN) stay in registers, and positions follow each
    other.

    x (B, L, H, P), dt (B, L, H), B, C (B, L, G, N) by their first two strides; A, dt_bias (H); D at h D_sh + p D_sp;
    state and after (B, H, P, N), y (B, L, H, P) dense. Integers where there are scales: by steps of 0 or 1 along the
    axes after the second, the state's at h scale_sh + p scale_sp + n scale_sn. dt_bias and D may be None. A position's
    inputs are read while the one before is worked on.
    """
    b, head = (tl.program_id(0) // heads).to(tl.int64), tl.program_id(0) % heads
    p, n = tl.program_id(1) * BP + tl.arange(0, BP), tl.arange(0, BN)
    in_p, in_n = p < head_dim, n < d_state
    both = in_p[:, None] & in_n[None, :]
    at = ((b * heads + head) * head_dim + p[:, None]) * d_state + n[None, :]
    grid = None if state_scale is None else tl.load(
        state_scale + head * scale_sh + p[:, None] * scale_sp + n[None, :] * scale_sn, mask=both, other=1.0
    )  # fmt: skip
    h = read(state + at, both, grid)
    a = tl.load(A + head).to(tl.float32)
    skip = None if D is None else read(D + head * D_sh + p * D_sp, in_p, None)
    bias = None if dt_bias is None else tl.load(dt_bias + head).to(tl.float32)
    channel, in_group = head * head_dim + p, head // heads_per_group * d_state + n
    of_x = None if x_scale is None else scale_of(x_scale, x_step, channel, in_p)
    of_dt = None if dt_scale is None else scale_of(dt_scale, dt_step, head, True)
    of_B = None if B_scale is None else scale_of(B_scale, B_step, in_group, in_n)
    of_C = None if C_scale is None else scale_of(C_scale, C_step, in_group, in_n)
    xs, dts = x + b * x_sb + channel, dt + b * dt_sb + head
    Bs, Cs = B + b * B_sb + in_group, C + b * C_sb + in_group
    ys = y + b * length * heads * head_dim + channel

    row, step = read(xs, in_p, of_x), read(dts, True, of_dt)
    b_row, c_row = read(Bs, in_n, of_B), read(Cs, in_n, of_C)
    for t in range(length):
        more = tl.minimum(length - 1 - t, 1)  # the last position is read once more after itself, and not used
        xs += more * x_st
        dts += more * dt_st
        Bs += more * B_st
        Cs += more * C_st
        next_row, next_step = read(xs, in_p, of_x), read(dts, True, of_dt)
        next_b, next_c = read(Bs, in_n, of_B), read(Cs, in_n, of_C)

        delta = step if bias is None else limited(softplus(step + bias), low, high)
        h = exp(delta * a) * h + (delta * row)[:, None] * b_row[None, :]
        out = tl.sum(h * c_row[None, :], axis=1)
        if skip is not None:
            out += row * skip
        tl.store(ys, out.to(y.dtype.element_ty), mask=in_p)
        ys += heads * head_dim
        row, step, b_row, c_row = next_row, next_step, next_b, next_c

    if state_scale is None:
        tl.store(after + at, h.to(after.dtype.element_ty), mask=both)
    else:
        tl.store(after + at, on_grid(h, grid, q_max), mask=both)


@triton.jit
def limited(x, low, high):
    """Clamp x from low to high; NaN stays NaN."""
    x = tl.where(x < low, low, x)
    return tl.where(x > high, high, x)


def ssd(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    state: Tensor,
    dt_bias: Tensor | None,
    dt_min: float,
    dt_max: float,
    chunk: int,
) -> tuple[Tensor, Tensor]:
    """Compute ssd_ref, with its signature. It has no use for chunks."""
    none = None, 0
    scales = none, none, none, none
    return run(x, dt, A, B, C, D, state, dt_bias, dt_min, dt_max, scales, (None, 0, 0, 0), 0, x.dtype)


def run(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    state: Tensor,
    dt_bias: Tensor | None,
    dt_min: float,
    dt_max: float,
    scales: tuple[tuple[Tensor | None, int], ...],
    state_scale: tuple[Tensor | None, int, int, int],
    q_max: int,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:
    """Start the kernel. scales: of x, dt, B, C, with their steps; dtype is y's"""
    x, dt, B, C = (dense_rows(m) for m in (x, dt, B, C))
    A, state = A.contiguous(), state.contiguous()
    D, dt_bias = (None if m is None else m.contiguous() for m in (D, dt_bias))
    y, after = torch.empty(x.shape, dtype=dtype, device=x.device), torch.empty_like(state)
    (batch, length, heads, head_dim), (groups, d_state) = x.shape, B.shape[2:]
    if not length:
        return y, state.clone()
    of_x, of_dt, of_B, of_C = scales
    tile = _tile(head_dim, d_state)
    launch(
        ssd_kernel, (batch * heads, -(-head_dim // tile["BP"])), x, *x.stride()[:2], *of_x, dt, *dt.stride()[:2],
        *of_dt, A, B, *B.stride()[:2], *of_B, C, *C.stride()[:2], *of_C, D, *_steps(D), dt_bias, dt_min, dt_max,
        state, *state_scale, y, after, length, heads, head_dim, heads // groups, d_state, float(q_max), **tile,
    )  # fmt: skip
    return y, after


def _steps(D: Tensor | None) -> tuple[int, int]:
    """Return the steps of heads and of channels in D (H) or (H, P)."""
    if D is None:
        return 0, 0
    return (D.stride(0), D.stride(1)) if D.ndim == 2 else (D.stride(0), 0)


def _tile(head_dim: int, d_state: int) -> dict[str, Any]:
    """Return the tile: at most 2,048 states to a program, 16 to a lane, since many programs matter most."""
    across = ceil_power(d_state)
    channels = min(ceil_power(head_dim), max(1, 2048 // across))
    return {"BP": channels, "BN": across, "warps": min(4, max(1, channels * across // 512))}
