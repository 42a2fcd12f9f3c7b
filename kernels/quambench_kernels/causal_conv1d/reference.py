"""The definition of causal_conv1d."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def causal_conv1d_ref(x: Tensor, weight: Tensor, bias: Tensor | None, history: Tensor, silu: bool) -> Tensor:
    """Compute y[t] = sum_k weight[:, k] x[t - K + 1 + k] + bias, then SiLU if asked.

    x (B, L, C); weight (C, K); bias (C) or None; history (B, K-1, C), the inputs before x, oldest first
    returns y (B, L, C)
    """
    length, width = x.shape[1], weight.shape[1]
    padded = torch.cat([history, x], dim=1)
    y = padded[:, :length] * weight[:, 0]
    for k in range(1, width):
        y = torch.addcmul(y, padded[:, k : k + length], weight[:, k])
    if bias is not None:
        y = y + bias
    return F.silu(y) if silu else y


def next_history(x: Tensor, history: Tensor) -> Tensor:
    """Return the last K-1 inputs, (B, K-1, C), of any dtype, which the next call needs. A tensor of its own."""
    keep = history.shape[1]
    if x.shape[1] >= keep:
        return x[:, x.shape[1] - keep :].clone(memory_format=torch.contiguous_format)
    return torch.cat([history[:, x.shape[1] :], x], dim=1)
