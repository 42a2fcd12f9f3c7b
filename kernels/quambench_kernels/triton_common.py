"""The shared part of the Triton kernels: the rounding rule, functions in float32, and the start of a kernel.

A compiler may contract a product and a sum into one rounding where a kernel is started with `fuse`. The functions here
say `tl.fma` where they want one, and are right with and without.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators
# Triton reads the annotations of kernels, and knows constexpr alone.

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl


@triton.jit
def on_grid(x, scale, q_max):
    """Round float32 x by its scale to int8: a correctly rounded quotient, ties to even, -q_max - 1 to q_max; NaN to 0.

    PyTorch also makes 0 of NaN. From 1.5 * 2^23 to 2^24 float32 holds integers alone, so adding 1.5 * 2^23 rounds to
    an integer as every addition rounds, ties to even; its last eight bits are then the int8, since 1.5 * 2^23 has none
    there. The quotient is on the grid before, and nothing rounds between the two: a division is no part of an FMA.
    """
    q = tl.div_rn(x, scale)
    q = tl.where(q == q, q, 0.0)
    q = tl.minimum(tl.maximum(q, -q_max - 1.0), q_max)
    return (q + 12582912.0).to(tl.int32, bitcast=True).to(tl.int8)


@triton.jit
def exp(x):
    """Return e^x of float32 for x <= 88, to about a rounding; the hardware's own is off by more, most for large |x|.

    x = n ln 2 + r, |r| <= ln 2 / 2; Taylor's polynomial of degree 7 is off by 0.3466^8 / 8! = 5.2e-9, an eleventh of a
    rounding. ln 2 comes in two parts, of which n times the first is exact. Below -87 it stays at e^-87; NaN stays NaN.
    """
    x = tl.where(x < -87.0, -87.0, x)
    x = tl.where(x > 88.0, 88.0, x)
    shifted = tl.fma(x, 1.44269504088896341, 12582912.0)  # its last bits are n: see on_grid
    n = shifted - 12582912.0
    r = tl.fma(n, -0.693359375, x)
    r = tl.fma(n, 2.12194440e-4, r)
    p = tl.fma(r, 1.0 / 5040, 1.0 / 720)
    p = tl.fma(p, r, 1.0 / 120)
    p = tl.fma(p, r, 1.0 / 24)
    p = tl.fma(p, r, 1.0 / 6)
    p = tl.fma(p, r, 0.5)
    p = tl.fma(p, r, 1.0)
    p = tl.fma(p, r, 1.0)
    power = (shifted.to(tl.int32, bitcast=True) << 23) + 0x3F800000
    return p * power.to(tl.float32, bitcast=True)


@triton.jit
def silu(x):
    """Return x / (1 + e^-x), float32."""
    return tl.div_rn(x, 1.0 + exp(-x))


@triton.jit
def softplus(x):
    """Return log(1 + e^x), float32; above 20 it is x, as PyTorch has it: e^-20 is less than half a rounding of 20.

    max(x, 0) + log(1 + z), z = e^-|x|; log(1 + z) = 2 atanh(s), s = z / (2 + z) <= 1/3, whose series is cut after s^13:
    the next term is at most 3^-14 / 15 = 1.4e-8 of the whole.
    """
    z = exp(tl.where(x < 0.0, x, -x))
    s = tl.div_rn(z, 2.0 + z)
    s2 = s * s
    p = tl.fma(s2, 1.0 / 13, 1.0 / 11)
    p = tl.fma(p, s2, 1.0 / 9)
    p = tl.fma(p, s2, 1.0 / 7)
    p = tl.fma(p, s2, 1.0 / 5)
    p = tl.fma(p, s2, 1.0 / 3)
    p = tl.fma(p, s2, 1.0)
    return tl.where(x < 0.0, 0.0, x) + 2.0 * s * p


@triton.jit
def read(at, mask, scale):
    """Load float32: floats where scale is None, else integers times their scale; 0 outside of mask."""
    x = tl.load(at, mask=mask, other=0).to(tl.float32)
    return x if scale is None else x * scale


@triton.jit
def scale_of(scale, step, channel, mask):
    """Load a scale for each channel, from one (step 0) or one each (step 1)."""
    return tl.load(scale + channel * step, mask=mask, other=1.0)


@dataclass(frozen=True, slots=True)
class Launch:
    """A kernel as `launch` would start it."""

    kernel: Any
    arguments: tuple[Any, ...]
    constants: dict[str, Any]
    options: dict[str, Any]


planned: list[Launch] = []  # launches on the meta device, where nothing runs: what aot.py compiles


def launch(
    kernel: Any,
    grid: tuple[int, ...],
    *arguments: Any,
    warps: int,
    stages: int = 2,
    fuse: bool = True,
    **constants: Any,
) -> None:
    """Start `kernel` on the device of its first argument, unless there is nothing to do.

    constants  the kernel's tl.constexpr, by name
    fuse       whether products and sums may be contracted, each pair to one rounding
    """
    options = {"num_warps": warps, "num_stages": stages, "enable_fp_fusion": fuse}
    if arguments[0].device.type == "meta":
        planned.append(Launch(kernel, arguments, constants, options))
    elif 0 not in grid:
        with torch.cuda.device_of(arguments[0]):
            kernel[grid](*arguments, **constants, **options)


def ceil_power(n: int) -> int:
    """Return the smallest power of two that is at least n, and 1."""
    return 1 << max(n - 1, 0).bit_length()


def dense_last(x: torch.Tensor) -> torch.Tensor:
    """Return x (..., n) as (rows, n), the last axis dense."""
    rows = x.reshape(-1, x.shape[-1])
    return rows if rows.stride(-1) == 1 or rows.shape[-1] == 1 else rows.contiguous()


def scale_step(scale: torch.Tensor | None) -> int:
    """Return how far apart the scales of two channels lie: 0 for a single one."""
    return 0 if scale is None or scale.ndim == 0 else scale.stride(0)
