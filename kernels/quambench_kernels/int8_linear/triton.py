"""int8_linear in Triton: the integer product, or with all that follows it in the same kernel."""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators
# Triton reads the annotations of kernels, and knows constexpr alone.

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from quambench_kernels.triton_common import dense_last, launch, on_grid, scale_of, scale_step


@triton.jit
def int8_linear_kernel(
    x, x_stride, w, scale, step, bias, out_scale, out_step, y,
    M, N, K, q_max, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, TALL: tl.constexpr,
):  # fmt: skip
    """Compute a tile of y (M, N) from x (M, K), rows x_stride apart, and w (N, K). Arguments that are None are left
    out.

    TALL  tiles that go down before the next column of them is begun: they share the weight in the cache
    """
    tile, down, across = tl.program_id(0), tl.cdiv(M, BM), tl.cdiv(N, BN)
    band = tile // (TALL * across)
    height = tl.minimum(down - band * TALL, TALL)
    inside_band = tile % (TALL * across)
    m = (band * TALL + inside_band % height) * BM + tl.arange(0, BM)
    n = inside_band // height * BN + tl.arange(0, BN)
    k = tl.arange(0, BK)
    xs = x + m.to(tl.int64)[:, None] * x_stride + k[None, :]
    ws = w + n.to(tl.int64)[None, :] * K + k[:, None]
    sums = tl.zeros([BM, BN], tl.int32)
    for start in range(0, K, BK):
        left = k < K - start
        a = tl.load(xs, mask=(m < M)[:, None] & left[None, :], other=0)
        b = tl.load(ws, mask=left[:, None] & (n < N)[None, :], other=0)
        sums = tl.dot(a, b, sums, out_dtype=tl.int32)
        xs += BK
        ws += BK
    to = y + m.to(tl.int64)[:, None] * N + n[None, :]
    mask = (m < M)[:, None] & (n < N)[None, :]
    if scale is None:
        tl.store(to, sums, mask=mask)
    else:
        v = sums.to(tl.float32) * scale_of(scale, step, n, n < N)[None, :]
        if bias is not None:
            v = v + tl.load(bias + n, mask=n < N, other=0.0)[None, :]
        if out_scale is None:
            tl.store(to, v, mask=mask)
        else:
            tl.store(to, on_grid(v, scale_of(out_scale, out_step, n, n < N)[None, :], q_max), mask=mask)


def product(x_q: Tensor, w_q: Tensor) -> Tensor:
    """Compute int8_linear_ref, with its signature."""
    return _run(x_q, w_q, None, None, None, 127, torch.int32)


def fused(x_q: Tensor, w_q: Tensor, scale: Tensor, bias: Tensor | None, out_scale: Tensor | None, q_max: int) -> Tensor:
    """Compute finish_ref of int8_linear_ref, equal to the bit; no integer sum leaves the kernel."""
    return _run(x_q, w_q, scale, bias, out_scale, q_max, torch.float32 if out_scale is None else torch.int8)


def _run(x: Tensor, w: Tensor, scale: Tensor | None, bias: Tensor | None, out_scale: Tensor | None, q_max: int,
         dtype: torch.dtype) -> Tensor:  # fmt: skip
    x, bias = dense_last(x), None if bias is None else bias.contiguous()
    (m, k), n = x.shape, w.shape[0]
    y = torch.empty(m, n, dtype=dtype, device=x.device)
    tile = _tile(m)
    launch(
        int8_linear_kernel, (-(-m // tile["BM"]) * -(-n // tile["BN"]),), x, x.stride(0), w, scale, scale_step(scale),
        bias, out_scale, scale_step(out_scale), y, m, n, k, float(q_max),
        fuse=False,  # sum * scale + bias is rounded twice, as the reference rounds it
        **tile,
    )  # fmt: skip
    return y


def _tile(m: int) -> dict[str, Any]:
    """Return the tile: narrow for few rows, so that many programs read the weight; large for many, to fill tensor
    cores.
    """
    if m <= 16:
        return {"BM": 16, "BN": 32, "BK": 256, "TALL": 1, "warps": 4, "stages": 4}
    if m <= 256:
        return {"BM": 64, "BN": 64, "BK": 128, "TALL": 8, "warps": 4, "stages": 4}
    return {"BM": 128, "BN": 128, "BK": 128, "TALL": 8, "warps": 8, "stages": 3}
