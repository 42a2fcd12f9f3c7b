"""The definition of int8_ssd."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from quambench_kernels.rounding import dequantize_ref, quantize_ref
from quambench_kernels.ssd.reference import ssd_ref


def int8_ssd_ref(
    x_q: Tensor,
    x_scale: Tensor,
    dt_q: Tensor,
    dt_scale: Tensor,
    A: Tensor,
    B_q: Tensor,
    B_scale: Tensor,
    C_q: Tensor,
    C_scale: Tensor,
    D: Tensor,
    dt_bias: Tensor,
    state_q: Tensor,
    state_scale: Tensor,
    dt_min: float,
    dt_max: float,
    chunk: int,
    q_max: int,
    scan: Callable[..., tuple[Tensor, Tensor]] = ssd_ref,
) -> tuple[Tensor, Tensor]:
    """Dequantize, scan in float32, quantize the last state; y is read from float states.

    x_q (B, L, H, P), dt_q (B, L, H), B_q, C_q (B, L, G, N), state_q (B, H, P, N) int8
    x_scale () or (H P) float32; dt_scale () or (H); B_scale, C_scale () or (G N); state_scale broadcasts to (H, P, N)
    A, dt_bias (H), D (H) or (H, P) float32
    returns y (B, L, H, P) float32 and the state (B, H, P, N) int8
    """
    x, dt, A, B, C, D, state, dt_bias = floating(
        torch.float32, x_q, x_scale, dt_q, dt_scale, A, B_q, B_scale, C_q, C_scale, D, dt_bias, state_q, state_scale
    )
    y, state = scan(x, dt, A, B, C, D, state, dt_bias, dt_min, dt_max, chunk)
    return y, quantize_ref(state, state_scale, q_max)


def floating(
    dtype: torch.dtype,
    x_q: Tensor,
    x_scale: Tensor,
    dt_q: Tensor,
    dt_scale: Tensor,
    A: Tensor,
    B_q: Tensor,
    B_scale: Tensor,
    C_q: Tensor,
    C_scale: Tensor,
    D: Tensor,
    dt_bias: Tensor,
    state_q: Tensor,
    state_scale: Tensor,
) -> tuple[Tensor, ...]:
    """Return the integers' values as ssd takes them: x, dt, A, B, C, D, state, dt_bias."""

    def by_last_axes(q: Tensor, scale: Tensor) -> Tensor:
        return dequantize_ref(q, scale.view(q.shape[2:]) if scale.ndim else scale, dtype)

    pairs = ((x_q, x_scale), (dt_q, dt_scale), (B_q, B_scale), (C_q, C_scale))
    x, dt, B, C = (by_last_axes(q, scale) for q, scale in pairs)
    A, D, dt_bias = (m.to(dtype) for m in (A, D, dt_bias))
    return x, dt, A, B, C, D, dequantize_ref(state_q, state_scale, dtype), dt_bias
