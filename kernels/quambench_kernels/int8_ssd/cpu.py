"""int8_ssd in C++."""

from __future__ import annotations

from ctypes import c_float, c_int64
from pathlib import Path

import torch
from torch import Tensor

from quambench_kernels.checks import dense_rows
from quambench_kernels.native import load, pointer, strided, threads

SOURCE = Path(__file__).with_name("cpu.cpp")


def native(
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
) -> tuple[Tensor, Tensor]:
    """Compute int8_ssd_ref, with its signature. It has no use for chunks."""
    x, dt, B, C = (dense_rows(q) for q in (x_q, dt_q, B_q, C_q))
    A, D, dt_bias, state = (m.contiguous() for m in (A, D, dt_bias, state_q))
    scales = [m.contiguous() for m in (x_scale, dt_scale, B_scale, C_scale)]
    of_x, of_dt, of_B, of_C = ((pointer(m), c_int64(m.ndim)) for m in scales)
    state_scale = state_scale.contiguous()  # the kernel takes a scale per n as dense, or as one for all
    steps = state_scale.expand(state.shape[1:]).stride()
    y, after = torch.empty(x.shape), torch.empty(state.shape, dtype=torch.int8)
    load(SOURCE).int8_ssd(
        *strided(x), *of_x, *strided(dt), *of_dt, pointer(A), *strided(B), *of_B, *strided(C), *of_C, pointer(D),
        c_int64(D.ndim == 2), pointer(dt_bias), c_float(dt_min), c_float(dt_max), pointer(state),
        pointer(state_scale), *map(c_int64, steps), pointer(y), pointer(after),
        *map(c_int64, (*x.shape, *B.shape[2:])), c_float(q_max), threads(),
    )  # fmt: skip
    return y, after
