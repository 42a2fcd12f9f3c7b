"""rms_norm_quantize in C++."""

from __future__ import annotations

from ctypes import c_float, c_int, c_int64
from pathlib import Path

import torch
from torch import Tensor

from quambench_kernels.native import load, pointer, threads

SOURCE = Path(__file__).with_name("cpu.cpp")


def native(
    x: Tensor,
    residual: Tensor | None,
    z: Tensor | None,
    z_scale: Tensor | None,
    norm_before_gate: bool,
    gain: Tensor | None,
    eps: float,
    n_groups: int,
    scale: Tensor | None,
    q_max: int,
) -> tuple[Tensor, Tensor | None]:
    """Compute rms_norm_quantize_ref, with its signature, float32."""
    rows, before, gate = (None if t is None else _rows(t) for t in (x, residual, z))
    assert rows is not None
    gain = None if gain is None else gain.contiguous()
    z_scale = None if z_scale is None else z_scale.contiguous()
    total = None if residual is None else torch.empty(x.shape)
    out = torch.empty(x.shape, dtype=torch.float32 if scale is None else torch.int8)
    load(SOURCE).rms_norm_quantize(
        pointer(rows), _stride(rows), pointer(before), _stride(before), pointer(total), pointer(gate), _stride(gate),
        pointer(z_scale), c_int64(0 if z_scale is None else z_scale.ndim), c_int(norm_before_gate), pointer(gain),
        c_float(eps), pointer(scale), c_float(q_max), pointer(out), pointer(out), *map(c_int64, rows.shape),
        c_int64(n_groups), threads(),
    )  # fmt: skip
    return out, total


def _rows(x: Tensor) -> Tensor:
    """Return x as (rows, n), the last axis dense."""
    rows = x.reshape(-1, x.shape[-1])
    return rows if rows.stride(-1) == 1 or rows.shape[-1] == 1 else rows.contiguous()


def _stride(rows: Tensor | None) -> c_int64:
    return c_int64(0 if rows is None else rows.stride(0))
