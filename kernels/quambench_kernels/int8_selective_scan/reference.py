"""The definition of int8_selective_scan."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from quambench_kernels.rounding import dequantize_ref, quantize_ref
from quambench_kernels.selective_scan.reference import selective_scan_ref


def int8_selective_scan_ref(
    u_q: Tensor,
    u_scale: Tensor,
    dt_q: Tensor,
    dt_scale: Tensor,
    A: Tensor,
    B_q: Tensor,
    B_scale: Tensor,
    C_q: Tensor,
    C_scale: Tensor,
    D: Tensor,
    dt_bias: Tensor,
    z_q: Tensor,
    z_scale: Tensor,
    state_q: Tensor,
    state_scale: Tensor,
    q_max: int,
    scan: Callable[..., tuple[Tensor, Tensor]] = selective_scan_ref,
) -> tuple[Tensor, Tensor]:
    """Dequantize, scan in float32, quantize the last state; y is read from float states.

    u_q, dt_q, z_q (B, L, E), B_q, C_q (B, L, N), state_q (B, E, N) int8
    u_scale, B_scale, C_scale () float32; dt_scale, z_scale () or (E); state_scale broadcasts to (E, N)
    A (E, N), D, dt_bias (E) float32
    returns y (B, L, E) float32 and the state (B, E, N) int8
    """
    y, state = scan(*floating(
        torch.float32, u_q, u_scale, dt_q, dt_scale, A, B_q, B_scale, C_q, C_scale, D, dt_bias, z_q, z_scale,
        state_q, state_scale,
    ))  # fmt: skip
    return y, quantize_ref(state, state_scale, q_max)


def floating(
    dtype: torch.dtype,
    u_q: Tensor,
    u_scale: Tensor,
    dt_q: Tensor,
    dt_scale: Tensor,
    A: Tensor,
    B_q: Tensor,
    B_scale: Tensor,
    C_q: Tensor,
    C_scale: Tensor,
    D: Tensor,
    dt_bias: Tensor,
    z_q: Tensor,
    z_scale: Tensor,
    state_q: Tensor,
    state_scale: Tensor,
) -> tuple[Tensor, ...]:
    """Return the integers' values as selective_scan takes them: u, dt, A, B, C, D, state, dt_bias, z."""
    pairs = ((u_q, u_scale), (dt_q, dt_scale), (B_q, B_scale), (C_q, C_scale), (z_q, z_scale), (state_q, state_scale))
    u, dt, B, C, z, state = (dequantize_ref(q, scale, dtype) for q, scale in pairs)
    A, D, dt_bias = (x.to(dtype) for x in (A, D, dt_bias))
    return u, dt, A, B, C, D, state, dt_bias, z
