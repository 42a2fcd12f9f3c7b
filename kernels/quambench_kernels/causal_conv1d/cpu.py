"""causal_conv1d in C++, float32."""

from __future__ import annotations

from ctypes import c_int, c_int64
from pathlib import Path

import torch
from torch import Tensor

from quambench_kernels.checks import dense_rows
from quambench_kernels.native import load, pointer, strided, threads

SOURCE = Path(__file__).with_name("cpu.cpp")


def native(x: Tensor, weight: Tensor, bias: Tensor | None, history: Tensor, silu: bool) -> Tensor:
    """Compute causal_conv1d_ref, with its signature."""
    x, history, weight = dense_rows(x), history.contiguous(), weight.contiguous()
    bias = None if bias is None else bias.contiguous()
    y = torch.empty(x.shape, dtype=x.dtype)
    load(SOURCE).causal_conv1d(
        *strided(x), pointer(history), pointer(weight), pointer(bias),
        pointer(y), *map(c_int64, x.shape), c_int64(weight.shape[1]), c_int(silu), threads(),
    )  # fmt: skip
    return y
