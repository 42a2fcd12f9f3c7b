"""The integer grid: the only place where a number is rounded to an integer.

Symmetric, n bits: integers in [-2^(n-1), 2^(n-1) - 1], zero point 0, x ~ q * scale with
q = clamp(round(x / scale)). Rounding is part of the definition: ties go to even. The others exist
by name because parts of the original round so (`half_away` in its convolution, Hadamard and Mamba
prefill state; `truncate` in its branch without Hadamard).

Asymmetric, for comparison only: integers in [0, 2^n - 1] and a zero point. Here both are shifted by
-2^(n-1), which changes no value and lets the integers be int8.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from quambench.core.errors import BadArtefact, BadParameter

MIN_SCALE = 1e-6  # an all-zero tensor still gets a legal scale


def _half_away(x: Tensor) -> Tensor:
    return torch.sign(x) * torch.floor(x.abs() + 0.5)


ROUNDINGS: dict[str, Callable[[Tensor], Tensor]] = {
    "half_even": torch.round,
    "half_away": _half_away,
    "truncate": torch.trunc,
}


def q_max(bits: int) -> int:
    """Return the largest integer of the grid: 127 at 8 bits. raises BadParameter"""
    if not 2 <= bits <= 8:
        raise BadParameter(f"bits must be from 2 to 8 (got {bits})")
    largest: int = 2 ** (bits - 1) - 1
    return largest


def symmetric_scale(amax: Tensor, bits: int = 8) -> Tensor:
    """Return the step of the symmetric grid, amax / q_max, at least MIN_SCALE.

    amax     (*scale_shape), >= 0, in the tensor's own unit; divided in its own dtype
    returns  (*scale_shape) float32, tensor units per integer step
    """
    return (amax / q_max(bits)).float().clamp(min=MIN_SCALE)


def check_steps(steps: Tensor, place: str) -> None:
    """Check that steps that were read from a file or from outside can be a grid's: finite, and at least MIN_SCALE.

    steps  (any shape) float32
    place  the beginning of the message
    raises BadArtefact
    """
    bad = ~(steps.isfinite() & (steps >= torch.tensor(MIN_SCALE)))
    if bad.any():
        first = f"{steps[bad][0].item():g}" + (f", {int(bad.sum())} of {bad.numel()} are such" if bad.ndim else "")
        raise BadArtefact(f"{place}: a scale must be finite and at least {MIN_SCALE:g} (got {first})")


def check_zero_points(zeros: Tensor, bits: int, place: str) -> None:
    """Check that shifted zero points lie within the asymmetric grid. raises BadArtefact"""
    half = q_max(bits) + 1
    bad = ~((zeros >= -half) & (zeros < half))
    if bad.any():
        got = f"{zeros[bad].flatten()[0].item():g}"
        raise BadArtefact(f"{place}: a zero point must be from {-half} to {half - 1} (got {got})")


def quantize(x: Tensor, scale: Tensor, bits: int = 8, rounding: str = "half_even") -> Tensor:
    """Quantize x (float, any shape) by a scale that broadcasts to it -> int8 of x's shape.

    The quotient is taken in x's dtype, as the runtime takes it in float32.
    """
    top = q_max(bits)
    return ROUNDINGS[rounding](x / scale).clamp_(-top - 1, top).to(torch.int8)


def dequantize(q: Tensor, scale: Tensor) -> Tensor:
    """Multiply int8 by a scale that broadcasts to it -> float of the scale's dtype."""
    return q * scale


def fake_quantize(x: Tensor, scale: Tensor, bits: int = 8) -> Tensor:
    """Return `dequantize(quantize(x))` in x's dtype: what the integer model knows of x."""
    return dequantize(quantize(x, scale, bits), scale.to(x.dtype))


def asymmetric_scale(low: Tensor, high: Tensor, bits: int = 8) -> tuple[Tensor, Tensor]:
    """Return the step (high - low) / (2^n - 1), at least MIN_SCALE, and the zero point round(-low / step), clamped.

    low, high  (*scale_shape) float64, low <= 0 <= high, in the tensor's own unit
    returns    step and zero point, (*scale_shape) float32 each; the zero point shifted by -2^(n-1)
    """
    half = q_max(bits) + 1
    scale = ((high - low) / (2 * half - 1)).float().clamp(min=MIN_SCALE)
    zero = ROUNDINGS["half_even"](-low / scale).clamp(0, 2 * half - 1)
    return scale, (zero - half).float()


def quantize_asymmetric(x: Tensor, scale: Tensor, zero: Tensor, bits: int = 8) -> Tensor:
    """Quantize x (float, any shape) by a step and a shifted zero point that broadcast to it -> int8 of x's shape."""
    top = q_max(bits)
    return (ROUNDINGS["half_even"](x / scale) + zero).clamp_(-top - 1, top).to(torch.int8)


def dequantize_asymmetric(q: Tensor, scale: Tensor, zero: Tensor) -> Tensor:
    """Return int8 values by a step and a shifted zero point as float of the step's dtype."""
    return (q - zero) * scale


def clipped(x: Tensor, scale: Tensor, bits: int = 8, zero: Tensor | float = 0.0) -> Tensor:
    """Return bool of x's shape: the values that the grid's ends cut, i.e. whose rounded quotient lies outside of it."""
    top = q_max(bits)
    q = ROUNDINGS["half_even"](x / scale) + zero
    return (q > top) | (q < -top - 1)
