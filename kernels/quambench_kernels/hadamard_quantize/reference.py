"""The definition of hadamard_quantize."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from quambench_kernels.rounding import quantize_ref


def hadamard_quantize_ref(x: Tensor, scale: Tensor, base: Tensor, q_max: int) -> Tensor:
    """Compute quantize(H x), H = (base (x) Sylvester's matrix) / sqrt(n), over the last axis.

    x (..., n) floating, n = m * 2^k; scale () float32; base (m, m) float32 of +-1, orthogonal rows
    returns (..., n) int8

    It takes two small matrix products, H being a Kronecker product of two factors of about sqrt(n).
    """
    return quantize_ref(rotated(x, base), scale, q_max)


def rotated(x: Tensor, base: Tensor) -> Tensor:
    """Return H x in x's dtype."""
    inner = x.shape[-1] // base.shape[0]
    doublings = inner.bit_length() - 1
    # Factors m 2^i and 2^(k-i) whose sum is smallest: the fewest operations.
    inside = min(range(doublings + 1), key=lambda i: (base.shape[0] << i) + (inner >> i))
    entry: float = x.shape[-1] ** -0.5
    left = torch.kron(base.to(x.dtype), sylvester(1 << inside, x.dtype, x.device)) * entry
    right = sylvester(inner >> inside, x.dtype, x.device)
    blocks: Tensor = x.unflatten(-1, (left.shape[0], right.shape[0]))
    return (left @ (blocks @ right)).flatten(-2)


@cache
@torch.inference_mode(False)  # kept, so it must also serve calls that record gradients
def sylvester(n: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return Sylvester's matrix (n, n) of +-1, symmetric, n a power of two."""
    two, found = torch.tensor([[1.0, 1.0], [1.0, -1.0]]), torch.ones(1, 1)
    while len(found) < n:
        found = torch.kron(found, two)
    return found.to(device, dtype)
