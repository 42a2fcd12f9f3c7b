"""ssd in C++, float32."""

from __future__ import annotations

from ctypes import c_float, c_int64
from pathlib import Path

import torch
from torch import Tensor

from quambench_kernels.checks import dense_rows
from quambench_kernels.native import load, pointer, strided, threads

SOURCE = Path(__file__).with_name("cpu.cpp")


def native(
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
    """Compute ssd_ref, with its signature; the limits count only where there is a dt_bias. It has no use for chunks."""
    low, high = (-torch.inf, torch.inf) if dt_bias is None else (dt_min, dt_max)
    flat = dense_rows(x), dense_rows(dt), dense_rows(B), dense_rows(C)
    A, state = A.contiguous(), state.contiguous()
    D = None if D is None else D.contiguous()
    dt_bias = None if dt_bias is None else dt_bias.contiguous()
    y, after = torch.empty(x.shape), torch.empty(state.shape)
    load(SOURCE).ssd(
        *strided(flat[0]), *strided(flat[1]), pointer(A), *strided(flat[2]), *strided(flat[3]), pointer(D),
        c_int64(D is not None and D.ndim == 2), pointer(dt_bias), c_float(low), c_float(high), pointer(state),
        pointer(y), pointer(after), *map(c_int64, (*x.shape, *B.shape[2:])), threads(),
    )  # fmt: skip
    return y, after
