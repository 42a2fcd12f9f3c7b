"""The rounding rule of every reference: q = clamp(round(x / scale)), ties to even, -q_max - 1 to q_max."""

from __future__ import annotations

import torch
from torch import Tensor


def quantize_ref(x: Tensor, scale: Tensor, q_max: int) -> Tensor:
    """Quantize x floating by a scale that broadcasts to it -> int8; the quotient is taken in x's dtype."""
    return torch.round(x / scale.to(x.dtype)).clamp_(-q_max - 1, q_max).to(torch.int8)


def dequantize_ref(q: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """Multiply int8 by a scale that broadcasts to it -> dtype; the runtime computes in float32."""
    return q.to(dtype) * scale.to(dtype)
