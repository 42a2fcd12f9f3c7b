"""The definition of int8_linear."""

from __future__ import annotations

import torch
from torch import Tensor

from quambench_kernels.rounding import quantize_ref


def int8_linear_ref(x_q: Tensor, w_q: Tensor) -> Tensor:
    """Compute x_q w_q^T (M, N) int32 of x_q (M, K) int8, w_q (N, K) int8.

    Exact: every partial sum is an integer below 2^31, and float64 holds integers up to 2^53.
    """
    return (x_q.double() @ w_q.double().t()).to(torch.int32)


def finish_ref(sums: Tensor, scale: Tensor, bias: Tensor | None, out_scale: Tensor | None, q_max: int) -> Tensor:
    """Return the values of integer sums, with the bias; on a grid where there is an out_scale.

    sums (M, N) int32; scale, out_scale () or (N) float32; bias (N) float32 or None
    returns (M, N) float32 or int8
    """
    y = sums * scale
    if bias is not None:
        y = y + bias
    return y if out_scale is None else quantize_ref(y, out_scale, q_max)
