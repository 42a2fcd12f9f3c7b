"""The definition of int8_linear."""

from __future__ import annotations

import torch
from torch import Tensor


def int8_linear_ref(x_q: Tensor, w_q: Tensor) -> Tensor:
    """x_q (M, K) int8, w_q (N, K) int8 -> x_q w_q^T (M, N) int32.

    Exact: every partial sum is an integer below 2^31, and float64 holds integers up to 2^53.
    """
    return (x_q.double() @ w_q.double().t()).to(torch.int32)
