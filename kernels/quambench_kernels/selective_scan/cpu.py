"""selective_scan in C++, float32."""

from __future__ import annotations

from ctypes import c_int64
from pathlib import Path

import torch
from torch import Tensor

from quambench_kernels.checks import dense_rows
from quambench_kernels.native import load, pointer, strided, threads

SOURCE = Path(__file__).with_name("cpu.cpp")


def native(
    u: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    state: Tensor,
    dt_bias: Tensor | None,
    z: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Compute selective_scan_ref, with its signature."""
    u, dt, B, C = (dense_rows(x) for x in (u, dt, B, C))
    A, D, state = (x.contiguous() for x in (A, D, state))
    dt_bias = None if dt_bias is None else dt_bias.contiguous()
    z = None if z is None else dense_rows(z)
    y, after = torch.empty(u.shape), torch.empty(state.shape)
    load(SOURCE).selective_scan(
        *strided(u), *strided(dt), pointer(A), *strided(B), *strided(C), pointer(D), pointer(dt_bias), *strided(z),
        pointer(state), pointer(y), pointer(after), *map(c_int64, (*u.shape, A.shape[1])), threads(),
    )  # fmt: skip
    return y, after
