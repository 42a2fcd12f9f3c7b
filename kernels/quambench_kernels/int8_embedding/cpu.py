"""int8_embedding in C++."""

from __future__ import annotations

from ctypes import c_int64
from pathlib import Path

import torch
from torch import Tensor

from quambench_kernels.native import load, pointer, threads

SOURCE = Path(__file__).with_name("cpu.cpp")


def native(tokens: Tensor, table_q: Tensor, scale: Tensor) -> Tensor:
    """Compute int8_embedding_ref, with its signature."""
    tokens, table, scale = tokens.contiguous(), table_q.contiguous(), scale.contiguous()
    y = torch.empty(*tokens.shape, table.shape[1])
    load(SOURCE).int8_embedding(
        pointer(tokens), pointer(table), pointer(scale), pointer(y), c_int64(tokens.numel()),
        c_int64(table.shape[1]), threads(),
    )  # fmt: skip
    return y
