"""hadamard_quantize in C++."""

from __future__ import annotations

from ctypes import c_float, c_int64
from pathlib import Path

import torch
from torch import Tensor

from quambench_kernels.native import load, pointer, threads

SOURCE = Path(__file__).with_name("cpu.cpp")


def native(x: Tensor, scale: Tensor, base: Tensor, q_max: int) -> Tensor:
    """Compute hadamard_quantize_ref, with its signature, float32."""
    n = x.shape[-1]
    rows, base = x.reshape(-1, n), base.contiguous()
    rows = rows if rows.stride(-1) == 1 or n == 1 else rows.contiguous()
    q = torch.empty(x.shape, dtype=torch.int8)
    load(SOURCE).hadamard_quantize(
        pointer(rows), c_int64(rows.stride(0)), pointer(base), c_int64(len(base)), pointer(scale), c_float(q_max),
        pointer(q), *map(c_int64, rows.shape), threads(),
    )  # fmt: skip
    return q
