"""hadamard_quantize in Triton: a row is read once, rotated in registers, and written once."""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators
# Triton reads the annotations of kernels, and knows constexpr alone.

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from quambench_kernels.triton_common import ceil_power, dense_last, launch, on_grid


@triton.jit
def hadamard_quantize_kernel(
    x, x_stride, base, scale, q, norm, q_max,
    ORDER: tl.constexpr, ROWS: tl.constexpr, INNER: tl.constexpr, DOUBLINGS: tl.constexpr,
):  # fmt: skip
    """Rotate a row as (ORDER, INNER = 2^DOUBLINGS): the base down the columns, butterflies along the rows.

    ROWS  ORDER, to the next power of two; what is beyond stays 0
    """
    row = tl.program_id(0).to(tl.int64)
    i, j = tl.arange(0, ROWS), tl.arange(0, INNER)
    v = tl.zeros([ROWS, INNER], tl.float32)
    for k in range(ORDER):
        sign = tl.load(base + i * ORDER + k, mask=i < ORDER, other=0.0)
        v += sign[:, None] * tl.load(x + row * x_stride + k * INNER + j).to(tl.float32)[None, :]
    # Each pass takes sum and difference of neighbours and puts the index's last bit first: in the end all is in order.
    for _ in tl.static_range(DOUBLINGS):
        even, odd = tl.split(tl.reshape(v, [ROWS, INNER // 2, 2]))
        v = tl.reshape(tl.permute(tl.join(even + odd, even - odd), [0, 2, 1]), [ROWS, INNER])
    out = q + row * (ORDER * INNER) + i[:, None] * INNER + j[None, :]
    tl.store(out, on_grid(v * norm, tl.load(scale), q_max), mask=(i < ORDER)[:, None] & (j < INNER)[None, :])


def hadamard_quantize(x: Tensor, scale: Tensor, base: Tensor, q_max: int) -> Tensor:
    """Compute hadamard_quantize_ref, with its signature."""
    rows, base = dense_last(x), base.contiguous()
    q = torch.empty(x.shape, dtype=torch.int8, device=x.device)
    (count, n), order = rows.shape, len(base)
    inner = n // order
    launch(
        hadamard_quantize_kernel, (count,), rows, rows.stride(0), base, scale, q, n**-0.5, float(q_max),
        ORDER=order, ROWS=ceil_power(order), INNER=inner, DOUBLINGS=inner.bit_length() - 1,
        warps=min(8, max(1, ceil_power(order) * inner // 512)),
    )  # fmt: skip
    return q
