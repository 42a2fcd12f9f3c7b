"""int8_linear: checks, then dispatch."""

from __future__ import annotations

import torch
from torch import Tensor

from quambench_kernels.dispatch import register, resolve
from quambench_kernels.int8_linear import cpu
from quambench_kernels.int8_linear.reference import int8_linear_ref

# 128 * 128 * K <= 2^31 - 1, so that no sum leaves int32.
MAX_K = (2**31 - 1) // 2**14  # 131,071

register("int8_linear", "int_mm", cpu.int_mm, why_not=cpu.why_not_int_mm, auto=cpu.int_mm_is_faster)
register("int8_linear", "chunked_float32", cpu.chunked_float32)
register("int8_linear", "reference", int8_linear_ref, devices=("cpu", "cuda"), auto=lambda: False)


def int8_linear(x_q: Tensor, w_q: Tensor, *, impl: str = "auto") -> Tensor:
    """x_q (..., K) int8, w_q (N, K) int8 -> x_q w_q^T (..., N) int32, exact.

    x_q    any strides
    w_q    contiguous; K from 1 to MAX_K
    impl   "auto", or a name in `implementations("int8_linear")`
    raises ValueError for arguments that break this, or an implementation that cannot run here
    """
    _check(x_q, w_q)
    run = resolve("int8_linear", impl, x_q.device)
    out = run(x_q.reshape(-1, x_q.shape[-1]), w_q)
    return out.view(*x_q.shape[:-1], w_q.shape[0])


def _check(x_q: Tensor, w_q: Tensor) -> None:
    wrong = ""
    if x_q.dtype != torch.int8 or w_q.dtype != torch.int8:
        wrong = f"x_q and w_q must be int8 (got {x_q.dtype} and {w_q.dtype})"
    elif x_q.ndim < 1 or w_q.ndim != 2 or x_q.shape[-1] != w_q.shape[1]:
        wrong = f"x_q must be (..., K) and w_q (N, K) (got {tuple(x_q.shape)} and {tuple(w_q.shape)})"
    elif not 1 <= w_q.shape[1] <= MAX_K:
        wrong = f"K must be from 1 to {MAX_K}, beyond which an int32 sum can overflow (got {w_q.shape[1]})"
    elif not w_q.is_contiguous():
        wrong = f"w_q must be contiguous (got strides {w_q.stride()}); make it so once, where the weight is made"
    elif x_q.device != w_q.device:
        wrong = f"x_q and w_q must be on one device (got {x_q.device} and {w_q.device})"
    if wrong:
        raise ValueError(f"int8_linear: {wrong}")
