"""int8_linear on a CPU: two exact products, the probe that chooses between them, and what follows the product."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from ctypes import c_float, c_int64
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from quambench_kernels.int8_linear.reference import int8_linear_ref
from quambench_kernels.native import load, pointer, threads, why_not

SOURCE = Path(__file__).with_name("cpu.cpp")
FLAGS = ("-ffp-contract=off",)  # a product and a sum are each rounded, as the reference rounds them
why_not_native = why_not(SOURCE, *FLAGS)

# A product of two int8 is at most 128 * 128 = 2^14 in magnitude, so a sum of 2^10 products, and
# every part of it, is an integer of at most 2^24: float32 holds all of these, in any order of
# summation. One product more could lose a bit.
CHUNK = 1024


def int_mm(x_q: Tensor, w_q: Tensor) -> Tensor:
    """Multiply x_q (M, K), w_q (N, K) contiguous -> (M, N) int32, by the CPU's int8 instructions.

    The weight stays (N, K) and is passed as a view: for one row that is more than twice as fast as
    a contiguous (K, N).

    torch reads leading dimensions off the strides, but the stride of a dimension of size 1 may be
    anything, 0 included, and the library then returns without having written a result
    (pytorch/pytorch#195066). So the strides are set here, to what they are wherever they matter.
    """
    (m, k), n = x_q.shape, w_q.shape[0]
    x = x_q.contiguous().as_strided((m, k), (k, 1))
    return torch._int_mm(x, w_q.as_strided((k, n), (1, k) if k > 1 else (n, 1)))


def chunked_float32(x_q: Tensor, w_q: Tensor) -> Tensor:
    """Multiply x_q (M, K), w_q (N, K) -> (M, N) int32, by float32 products of at most CHUNK terms.

    Exact on any machine, and also where float32 products are lowered to bfloat16 or TF32: int8
    fits both, and their sums are taken in float32.
    """
    chunks: Iterable[tuple[Tensor, Tensor]] = zip(x_q.split(CHUNK, dim=1), w_q.split(CHUNK, dim=1), strict=True)
    total, *rest = ((x.float() @ w.float().t()).to(torch.int32) for x, w in chunks)
    for more in rest:
        total += more
    return total


FEW = 16  # rows of x up to which few_rows is faster than converting the weight to float32


def few_rows(x_q: Tensor, w_q: Tensor) -> Tensor:
    """Multiply x_q (M, K), w_q (N, K) contiguous -> (M, N) int32, in C++; right for any M, fast for a few."""
    sums = torch.empty(x_q.shape[0], w_q.shape[0], dtype=torch.int32)
    _few_rows(x_q, w_q, sums, None, None, None, 0, None)
    return sums


def few_rows_fused(
    x_q: Tensor, w_q: Tensor, scale: Tensor, bias: Tensor | None, out_scale: Tensor | None, q_max: int
) -> Tensor:
    """Compute few_rows and native_finish in one: no sum is ever stored."""
    n = w_q.shape[0]
    y = torch.empty(x_q.shape[0], n, dtype=torch.float32 if out_scale is None else torch.int8)
    _few_rows(x_q, w_q, None, scale, bias, out_scale, q_max, y)
    return y


few_rows.fused = few_rows_fused  # type: ignore[attr-defined]  # see op.py


def _few_rows(
    x_q: Tensor, w_q: Tensor, sums: Tensor | None, scale: Tensor | None, bias: Tensor | None, out_scale: Tensor | None,
    q_max: int, y: Tensor | None,
) -> None:  # fmt: skip
    (m, k), n = x_q.shape, w_q.shape[0]
    x_q = x_q.contiguous()
    scale = None if scale is None else scale.expand(n).contiguous()
    bias = None if bias is None else bias.contiguous()
    out_scale = None if out_scale is None else out_scale.contiguous()
    load(SOURCE, *FLAGS).few_rows(
        pointer(x_q), pointer(w_q), pointer(sums), pointer(scale), pointer(bias), pointer(out_scale),
        c_int64(0 if out_scale is None else out_scale.ndim), c_float(q_max), pointer(y), pointer(y), c_int64(m),
        c_int64(n), c_int64(k), threads(),
    )  # fmt: skip


def native_finish(sums: Tensor, scale: Tensor, bias: Tensor | None, out_scale: Tensor | None, q_max: int) -> Tensor:
    """Compute finish_ref, with its signature, in C++; the result is the same to the bit."""
    n = sums.shape[1]
    sums, scale = sums.contiguous(), scale.expand(n).contiguous()
    bias = None if bias is None else bias.contiguous()
    out_scale = None if out_scale is None else out_scale.contiguous()
    y = torch.empty(sums.shape, dtype=torch.float32 if out_scale is None else torch.int8)
    load(SOURCE, *FLAGS).finish(
        pointer(sums), pointer(scale), pointer(bias), pointer(out_scale),
        c_int64(0 if out_scale is None else out_scale.ndim), c_float(q_max), pointer(y), pointer(y),
        *map(c_int64, sums.shape), threads(),
    )  # fmt: skip
    return y


def int_mm_is_exact(int_mm: Callable[[Tensor, Tensor], Tensor] = int_mm) -> bool:
    """Whether `int_mm` agrees with the reference on values that break the known shortcuts.

    On a CPU without VNNI the library adds pairs of products in saturating int16: silently wrong,
    for large values only. K = 4,097 reaches sums that float32 cannot hold. One row, few rows and
    many rows take different code paths.
    """
    generator = torch.Generator().manual_seed(0)
    for k, n in ((64, 64), (1029, 65), (4097, 48)):
        x, w = _hard_rows(33, k, generator), _hard_rows(n, k, generator)
        want = int8_linear_ref(x, w)
        for rows in (*(slice(i, i + 1) for i in range(5)), slice(5), slice(33)):
            if not torch.equal(int_mm(x[rows], w), want[rows]):
                return False
    return True


def _hard_rows(rows: int, k: int, generator: torch.Generator) -> Tensor:
    """Return rows (rows, k) int8: all 127, all -128, the two in turn, the two at random, anything; repeated."""
    ends = torch.tensor([127, -128], dtype=torch.int8)
    x = torch.randint(-128, 128, (rows, k), dtype=torch.int8, generator=generator)
    x[0::5], x[1::5] = ends
    x[2::5] = ends[torch.arange(k) % 2]
    x[3::5] = ends[(x[3::5] < 0).long()]
    return x


@cache
def why_not_int_mm() -> str | None:
    """Return why `int_mm` cannot be used here, or None; it is probed once in a process."""
    return None if int_mm_is_exact() else "torch._int_mm is not exact on this CPU (it saturates without VNNI)"


@cache
def int_mm_is_faster() -> bool:
    """Whether `int_mm` beats `chunked_float32` here; measured once in a process, in a few milliseconds.

    Without int8 instructions the library may also be exact and slow: on an AVX2 machine a product of
    512 x 768 x 3072 took 659 ms against 29 ms in float32. Both are exact, so the choice changes no result.
    """
    generator = torch.Generator().manual_seed(0)
    x, w = (torch.randint(-128, 128, (n, 256), dtype=torch.int8, generator=generator) for n in (64, 512))
    return _seconds(int_mm, x, w) < _seconds(chunked_float32, x, w)


def _seconds(run: Callable[[Tensor, Tensor], Tensor], x: Tensor, w: Tensor) -> float:
    """Return the best time of five, in seconds, after a run to warm up: others on the machine only ever add."""
    run(x, w)
    best = float("inf")
    for _ in range(5):
        started = time.perf_counter()
        run(x, w)
        best = min(best, time.perf_counter() - started)
    return best
