"""int8_selective_scan in C++."""

from __future__ import annotations

from ctypes import c_float, c_int64
from pathlib import Path

import torch
from torch import Tensor

from quambench_kernels.checks import dense_rows
from quambench_kernels.native import load, pointer, strided, threads

SOURCE = Path(__file__).with_name("cpu.cpp")


def native(
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
) -> tuple[Tensor, Tensor]:
    """Compute int8_selective_scan_ref, with its signature."""
    u, dt, B, C, z = (dense_rows(x) for x in (u_q, dt_q, B_q, C_q, z_q))
    A, D, dt_bias, state, dt_scale, z_scale = (x.contiguous() for x in (A, D, dt_bias, state_q, dt_scale, z_scale))
    state_scale = state_scale.contiguous()  # the kernel takes a scale per n as dense, or as one for all
    steps = state_scale.expand(A.shape).stride()
    y, after = torch.empty(u.shape), torch.empty(state.shape, dtype=torch.int8)
    load(SOURCE).int8_selective_scan(
        *strided(u), pointer(u_scale), *strided(dt), pointer(dt_scale), c_int64(dt_scale.ndim), pointer(A),
        *strided(B), pointer(B_scale), *strided(C), pointer(C_scale), pointer(D), pointer(dt_bias),
        *strided(z), pointer(z_scale), c_int64(z_scale.ndim), pointer(state), pointer(state_scale),
        *map(c_int64, steps), pointer(y), pointer(after), *map(c_int64, (*u.shape, A.shape[1])), c_float(q_max),
        threads(),
    )  # fmt: skip
    return y, after
