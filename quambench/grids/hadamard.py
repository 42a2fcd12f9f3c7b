"""Rotation by an orthonormal Hadamard matrix: spreads outliers over all channels, loses nothing.

    y = H x,  H = signs / sqrt(n),  H H^T = I

for n = 2^k, 12*2^k and 40*2^k. H is not symmetric in the last two families, so the sides matter:
an activation is rotated as x -> H x, and a weight (out, in) that consumes it as W -> W H^T, since
(W H^T)(H x) = W x. Both are `rotate` over the last axis: a row w of W becomes (H w)^T.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor, nn

from quambench.core.errors import BadParameter

_BASES = (1, 12, 40)  # their odd parts differ, so no size is in two families


def supported(n: int) -> bool:
    """Whether `hadamard_matrix(n)` exists here."""
    try:
        _base(n)
    except BadParameter:
        return False
    return True


def hadamard_matrix(n: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """Return H (n, n), orthonormal, every entry +-1/sqrt(n). A fresh tensor: the caller may change it.

    It comes by Sylvester's doubling from a base: 1, Paley's matrix of order 12, or twice Paley's of order 20.
    raises BadParameter for a size without a matrix here
    """
    signs = _signs(n).double()  # comes first: it refuses a size without a matrix
    entry: float = n**-0.5
    return (signs * entry).to(dtype)


def rotate(x: Tensor) -> Tensor:
    """Rotate x (..., n) floating to H x over the last axis, same shape and dtype. Mutates nothing.

    H is a Kronecker product H_a (x) H_b with a*b = n, both near sqrt(n): two small matrix products.
    On one thread, 512 float32 vectors of n = 384 / 512 / 768 / 1536 took 0.5 / 0.4 / 1.0 / 2.1 ms;
    a fast Walsh-Hadamard butterfly 0.9 / 1.3 / 2.4 / 4.6 ms, the whole matrix 1.7 / 2.8 / 7.9 /
    28 ms; a single vector of n = 1536 took 0.02, 0.11 and 0.29 ms.

    raises BadParameter for a size without a matrix here, or an integer dtype
    """
    if not x.is_floating_point():
        raise BadParameter(f"only floating tensors can be rotated, an integer grid cannot (got {x.dtype})")
    left, right = _factors(x.shape[-1], x.dtype, x.device)
    blocks: Tensor = x.unflatten(-1, (left.shape[0], right.shape[0]))
    return (left @ (blocks @ right)).flatten(-2)


@cache
@torch.inference_mode(False)  # kept, as _factors are
def base_signs(n: int, device: torch.device = torch.device("cpu")) -> Tensor:  # noqa: B008  (immutable)
    """Return (m, m) float32 of +-1, n = m 2^k: the base whose doublings are sqrt(n) H."""
    return _signs(_base(n)).float().to(device)


class Rotation(nn.Module):
    """`rotate` as a module without parameters: a mixer's `out_rotation`."""

    def forward(self, x: Tensor) -> Tensor:
        return rotate(x)


def _base(n: int) -> int:
    """Return the m of n = m * 2^k. raises BadParameter"""
    for m in _BASES:
        times, rest = divmod(n, m)
        if rest == 0 and times >= 1 and times & (times - 1) == 0:
            return m
    raise BadParameter(f"a Hadamard size must be 2^k, 12*2^k or 40*2^k (got {n})")


@cache
def _split(n: int) -> tuple[int, int]:
    """Return (a, b) with a*b = n, a in n's family, b a power of two, a + b smallest: the fewest operations."""
    m = _base(n)
    doublings = (n // m).bit_length()
    return min(((m << i, n // (m << i)) for i in range(doublings)), key=sum)


@cache
@torch.inference_mode(False)  # kept, so it must also serve calls that record gradients
def _factors(n: int, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return H_a * sqrt(a)/sqrt(n) and the signs of H_b^T: the irrational factor is rounded once, not twice."""
    a, b = _split(n)
    left = _signs(a).double() * n**-0.5
    return left.to(device, dtype), _signs(b).t().to(device, dtype)


def _signs(n: int) -> Tensor:
    """Return sqrt(n) H, (n, n) int8 of +-1."""
    two = torch.tensor([[1, 1], [1, -1]], dtype=torch.int8)
    bases = {1: lambda: two[:1, :1], 12: lambda: _paley(11), 40: lambda: torch.kron(two, _paley(19))}
    signs = bases[_base(n)]()
    while len(signs) < n:
        signs = torch.kron(signs, two)
    return signs


def _paley(q: int) -> Tensor:
    """Return Paley's first construction, order q + 1, for a prime q = 3 mod 4: I + S with S skew, so not symmetric.

    S borders Q_ij = chi(i - j) by +1 above and -1 at the left; chi is +1 on non-zero squares mod q,
    -1 on other non-zero numbers, 0 at 0.
    """
    squares = {i * i % q for i in range(1, q)}
    chi = torch.tensor([0] + [1 if i in squares else -1 for i in range(1, q)], dtype=torch.int8)
    index = torch.arange(q)
    signs = torch.ones(q + 1, q + 1, dtype=torch.int8)
    signs[1:, 0] = -1
    signs[1:, 1:] = chi[(index[:, None] - index) % q] + torch.eye(q, dtype=torch.int8)
    return signs
