"""int8_causal_conv1d in C++."""

from __future__ import annotations

from ctypes import c_float, c_int64
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from quambench_kernels.checks import dense_rows
from quambench_kernels.native import load, pointer, strided, threads

SOURCE = Path(__file__).with_name("cpu.cpp")


def native(
    x_q: Tensor, x_scale: Tensor, weight: Tensor, bias: Tensor | None, history_q: Tensor, out_scale: Tensor, q_max: int
) -> Tensor:
    """Compute int8_causal_conv1d_ref, with its signature."""
    held, into = _inputs(x_q, x_scale, weight, bias, history_q), out_scale.contiguous()
    y = torch.empty(x_q.shape, dtype=torch.int8)
    load(SOURCE).int8_causal_conv1d(
        *_addresses(held), pointer(into), c_int64(into.ndim), pointer(y), *map(c_int64, x_q.shape),
        c_int64(weight.shape[1]), c_float(q_max), threads(),
    )  # fmt: skip
    return y


def native_walking(
    x_q: Tensor,
    x_scale: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    history_q: Tensor,
    head_sizes: Tensor,
    dim_sizes: Tensor,
    scale: Tensor,
    head_dim: int,
    q_max: int,
) -> Tensor:
    """Compute int8_causal_conv1d_walking_ref, with its signature."""
    held = _inputs(x_q, x_scale, weight, bias, history_q)
    heads, dims, scale = head_sizes.contiguous(), dim_sizes.contiguous(), scale.contiguous()
    y = torch.empty(x_q.shape, dtype=torch.int8)
    load(SOURCE).int8_causal_conv1d_walking(
        *_addresses(held), pointer(heads), pointer(dims), pointer(scale), *map(c_int64, scale.shape),
        c_int64(head_dim), pointer(y), *map(c_int64, x_q.shape), c_int64(weight.shape[1]), c_float(q_max), threads(),
    )  # fmt: skip
    return y


def _inputs(
    x_q: Tensor, x_scale: Tensor, weight: Tensor, bias: Tensor | None, history_q: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor | None]:
    """Return tensors as the kernel reads them; the caller keeps them until it returns."""
    return (
        dense_rows(x_q),
        history_q.contiguous(),
        x_scale.contiguous(),
        weight.contiguous(),
        None if bias is None else bias.contiguous(),
    )


def _addresses(held: tuple[Tensor, Tensor, Tensor, Tensor, Tensor | None]) -> list[Any]:
    x, history, x_scale, weight, bias = held
    return [
        *strided(x), pointer(history), pointer(x_scale),
        c_int64(x_scale.ndim), pointer(weight), pointer(bias),
    ]  # fmt: skip
