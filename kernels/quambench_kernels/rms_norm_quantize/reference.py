"""The definition of rms_norm_quantize and of its two relatives."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from quambench_kernels.rounding import dequantize_ref, quantize_ref


def rms_norm_ref(x: Tensor, gain: Tensor | None, eps: float, n_groups: int = 1) -> Tensor:
    """Compute x / sqrt(mean(x^2) + eps) * gain, the mean over each of n_groups equal parts of the last axis.

    x (..., n) floating; gain (n), or None for 1
    """
    parts: Tensor = x.unflatten(-1, (n_groups, -1))
    parts = parts * torch.rsqrt(parts.square().mean(-1, keepdim=True) + eps)
    return parts.flatten(-2) if gain is None else parts.flatten(-2) * gain


def rms_norm_quantize_ref(
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
    """RMSNorm of x, of residual + x, or of x SiLU(z); or RMSNorm(x) SiLU(z); then on the grid of scale, if any.

    x, residual, z (..., n) floating; z may be int8, with its scale () or (n)
    returns (..., n), int8 or floating, and residual + x, or None
    """
    total = None if residual is None else residual + x
    y = x if total is None else total
    if z is None:
        y = rms_norm_ref(y, gain, eps, n_groups)
    else:
        gate = F.silu(z if z_scale is None else dequantize_ref(z, z_scale, x.dtype))
        y = (
            rms_norm_ref(y, gain, eps, n_groups) * gate
            if norm_before_gate
            else rms_norm_ref(y * gate, gain, eps, n_groups)
        )
    return y if scale is None else quantize_ref(y, scale, q_max), total
