"""int8_embedding in C++."""

from __future__ import annotations

from ctypes import c_int64
from pathlib import Path

import torch
from torch import Tensor

from quambench_kernels.native import load, pointer, threads

SOURCE = Path(__file__).with_name("cpu.cpp")


def native(tokens: Tensor, table_q: Tensor, scale: Tensor) -> Tensor:
    """int8_embedding_ref's signature."""
    if tokens.numel() and not (int(tokens.min()) >= 0 and int(tokens.max()) < len(table_q)):
        raise IndexError(f"int8_embedding: tokens must be from 0 to {len(table_q) - 1}")
    tokens, table, scale = tokens.contiguous(), table_q.contiguous(), scale.contiguous()
    y = torch.empty(*tokens.shape, table.shape[1])
    load(SOURCE).int8_embedding(
        pointer(tokens), pointer(table), pointer(scale), pointer(y), c_int64(tokens.numel()),
        c_int64(table.shape[1]), threads(),
    )  # fmt: skip
    return y
