"""The definition of int8_embedding."""

from __future__ import annotations

import torch
from torch import Tensor

from quambench_kernels.rounding import dequantize_ref


def int8_embedding_ref(tokens: Tensor, table_q: Tensor, scale: Tensor) -> Tensor:
    """Return table_q[tokens] * scale[tokens]: tokens (...) int64, table_q (V, D) int8, scale (V) -> (..., D)
    float32.
    """
    return dequantize_ref(table_q[tokens], scale[tokens][..., None], torch.float32)
