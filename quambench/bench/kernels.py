"""The rows of the kernel benchmark: every operator at the shapes of published models, and its counterpart.

A row is a call and its counterpart; both are made when the row is measured, so that a table of many rows
needs the memory of one.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from quambench_kernels.causal_conv1d import causal_conv1d
from quambench_kernels.hadamard_quantize import hadamard_quantize
from quambench_kernels.int8_causal_conv1d import int8_causal_conv1d, int8_causal_conv1d_walking
from quambench_kernels.int8_embedding import int8_embedding
from quambench_kernels.int8_linear import int8_linear
from quambench_kernels.int8_selective_scan import int8_selective_scan
from quambench_kernels.int8_selective_scan.reference import floating as of_mamba
from quambench_kernels.int8_ssd import int8_ssd
from quambench_kernels.int8_ssd.reference import floating as of_mamba2
from quambench_kernels.rms_norm_quantize import rms_norm_quantize
from quambench_kernels.selective_scan import selective_scan
from quambench_kernels.ssd import ssd
from torch import Tensor

from quambench.bench.interleave import Call, Make, interleaved
from quambench.grids.hadamard import base_signs

PREFILL, STEP = 512, 1
GROUPED = ((4, 4), (16, 16))


@dataclass(frozen=True, slots=True)
class Shape:
    """The widths of a published model."""

    name: str
    d_model: int
    d_inner: int
    d_state: int
    groups: int = 1
    heads: int = 0  # 0: Mamba

    @property
    def head_dim(self) -> int:
        return self.d_inner // self.heads

    @property
    def projected(self) -> int:
        """The rows of in_proj."""
        extra = 2 * self.groups * self.d_state + self.heads if self.heads else 0
        return 2 * self.d_inner + extra


SHAPES = {
    s.name: s
    for s in (
        Shape("mamba-130m", 768, 1536, 16),
        Shape("mamba2-130m", 768, 1536, 128, heads=24),
        Shape("mamba2-2.7b", 2560, 5120, 128, heads=80),
        Shape("mamba2-8b", 4096, 8192, 128, groups=8, heads=128),
    )
}


@dataclass(frozen=True, slots=True)
class Row:
    """A comparison of two calls.

    make        () -> the call and its counterpart
    moved       bytes that the call must read and write at least; 0: memory does not decide
    multiplied  products of two int8 that it must add up; 0: they do not decide
    """

    name: str
    counterpart: str
    make: Make
    moved: int = 0
    multiplied: int = 0


def rows(shapes: Iterable[str] | None = None) -> Iterator[Row]:
    """Yield the rows of these names in SHAPES, by default of all. raises KeyError"""
    for name in SHAPES if shapes is None else shapes:
        s = SHAPES[name]
        op, make = ("ssd", _ssd) if s.heads else ("selective_scan", _scan)
        for n, at in ((PREFILL, f"{name}, prefill {PREFILL}"), (STEP, f"{name}, decode {STEP}")):
            yield _linear_row(s, n, at)
            yield from _conv_rows(s, n, at)
            yield Row(f"int8_{op}, {at}", f"{op}, float32", partial(make, s, n))
            yield Row(f"{op}, {at}", "PyTorch's form of it", partial(_float_scan, s, n))
            yield Row(f"hadamard_quantize, {at}", "its reference", partial(_hadamard, s, n), moved=n * s.d_inner * 5)
            yield Row(f"rms_norm_quantize, {at}", "its reference", partial(_norm, s, n), moved=n * s.d_model * 5)
            yield Row(f"int8_embedding, {at}", "float32 embedding", partial(_embedding, s, n), moved=n * s.d_model * 5)


def _linear_row(s: Shape, n: int, at: str) -> Row:
    """Return a row of int8_linear: a single row of x is done when the weight has been read, many when all is
    multiplied.
    """
    weight = s.projected * s.d_model
    bound = {"moved": weight} if n == 1 else {"multiplied": n * weight}
    return Row(f"int8_linear, in_proj, {at}", "float32 product", partial(_linear, s, n), **bound)


def _conv_rows(s: Shape, n: int, at: str) -> Iterator[Row]:
    """Yield rows against float and eager PyTorch; then each way to find an output scale against one scale for all."""
    moved = 2 * n * s.d_inner
    yield Row(f"int8_causal_conv1d, {at}", "causal_conv1d, float32", partial(_conv, s, n), moved)
    yield Row(f"int8_causal_conv1d eager, {at}", "eager PyTorch", partial(conv_eager, s, n), moved)
    yield Row(f"conv, scale per channel by table, {at}", "conv, one scale", partial(conv_by_table, s, n), moved)
    for groups in GROUPED if s.heads else ():
        if groups[0] <= s.heads // s.groups:
            called = f"{groups[0]}x{groups[1]}"
            yield Row(f"conv, {called} by table, {at}", "conv, one scale", partial(conv_by_table, s, n), moved)
            yield Row(
                f"conv, {called} by walking, {at}", "conv, one scale", partial(conv_by_walking, s, n, groups), moved
            )


@dataclass(frozen=True, slots=True)
class Rates:
    """The rates that the machine gives a kernel that does nothing else, measured in the same run.

    copied      bytes read and written in a second by a copy of 64 MiB
    multiplied  products of two int8 added up in a second by int8_linear of 1,024 x 1,024 by 4,096
    """

    copied: float
    multiplied: float

    @classmethod
    def measure(cls) -> Rates:
        source = torch.ones(COPIED // 4)
        into = torch.empty_like(source)
        x, w = _ints(1024, 1024), _ints(4096, 1024)
        taken = interleaved(lambda: into.copy_(source), lambda: int8_linear(x, w))
        return cls(2 * COPIED / taken.seconds, x.numel() * len(w) / taken.counterpart_seconds)

    def share(self, row: Row, seconds: float) -> float | None:
        """Return the share of the rate that limits a row: 1 is as fast as the machine copies or multiplies."""
        if row.moved:
            return row.moved / seconds / self.copied
        return row.multiplied / seconds / self.multiplied if row.multiplied else None


COPIED = 64 << 20


def _ints(*shape: int) -> Tensor:
    return torch.randint(-128, 128, shape, dtype=torch.int8, generator=torch.Generator().manual_seed(0))


def _floats(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


SCALE = torch.tensor(0.01)


def _linear(s: Shape, length: int) -> tuple[Call, Call]:
    x, w, scale = _ints(1, length, s.d_model), _ints(s.projected, s.d_model), torch.full((s.projected,), 1e-4)
    xf, wf = x.float(), w.float()
    return lambda: int8_linear(x, w, scale, None, SCALE), lambda: F.linear(xf, wf)


def _conv_inputs(s: Shape, length: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return x, weight, bias and history of the channels of x."""
    return _ints(1, length, s.d_inner), _floats(s.d_inner, 4), _floats(s.d_inner), _ints(1, 3, s.d_inner)


def _conv(s: Shape, length: int) -> tuple[Call, Call]:
    x, weight, bias, history = _conv_inputs(s, length)
    xf, hf = x * SCALE, history * SCALE
    return (
        lambda: int8_causal_conv1d(x, SCALE, weight, bias, history, SCALE),
        lambda: causal_conv1d(xf, weight, bias, hf, silu=True),
    )


def conv_eager(s: Shape, length: int) -> tuple[Call, Call]:
    x, weight, bias, history = _conv_inputs(s, length)
    return (
        lambda: int8_causal_conv1d(x, SCALE, weight, bias, history, SCALE),
        lambda: int8_causal_conv1d(x, SCALE, weight, bias, history, SCALE, impl="reference"),
    )


def conv_by_table(s: Shape, length: int) -> tuple[Call, Call]:
    """Return the convolution with a table of scales, and with one scale; equal scales leave the other work the same.

    The table is by channel, so its cost is the same for any number of groups.
    """
    x, weight, bias, history = _conv_inputs(s, length)
    table = SCALE.expand(s.d_inner).contiguous()
    return (
        lambda: int8_causal_conv1d(x, SCALE, weight, bias, history, table),
        lambda: int8_causal_conv1d(x, SCALE, weight, bias, history, SCALE),
    )


def conv_by_walking(s: Shape, length: int, groups: tuple[int, int]) -> tuple[Call, Call]:
    x, weight, bias, history = _conv_inputs(s, length)
    heads = _runs(s.heads // s.groups, groups[0]).expand(s.groups, -1).contiguous()
    dims = _runs(s.head_dim, groups[1]).expand(*heads.shape, -1).contiguous()
    scale = SCALE.expand(dims.shape).contiguous()
    return (
        lambda: int8_causal_conv1d_walking(x, SCALE, weight, bias, history, heads, dims, scale),
        lambda: int8_causal_conv1d(x, SCALE, weight, bias, history, SCALE),
    )


def _runs(total: int, count: int) -> Tensor:
    """Return the lengths of `count` runs, as equal as they can be."""
    return torch.tensor([total * (i + 1) // count - total * i // count for i in range(count)])


def _scan_inputs(s: Shape, length: int) -> list[Tensor]:
    e, n = s.d_inner, s.d_state
    return [
        _ints(1, length, e), SCALE, _ints(1, length, e), SCALE, -torch.rand(e, n) * n, _ints(1, length, n), SCALE,
        _ints(1, length, n), SCALE, _floats(e), _floats(e) - 2, _ints(1, length, e), SCALE, _ints(1, e, n), SCALE,
    ]  # fmt: skip


def _scan(s: Shape, length: int) -> tuple[Call, Call]:
    inputs = _scan_inputs(s, length)
    floats, named = _scan_floats(inputs)
    return lambda: int8_selective_scan(*inputs), lambda: selective_scan(*floats, **named)


def _scan_floats(inputs: list[Tensor]) -> tuple[list[Tensor], dict[str, Any]]:
    *floats, dt_bias, z = of_mamba(torch.float32, *inputs)
    return floats, {"dt_bias": dt_bias, "z": z}


def _ssd_inputs(s: Shape, length: int) -> list[Tensor]:
    h, p, g, n = s.heads, s.head_dim, s.groups, s.d_state
    return [
        _ints(1, length, h, p), SCALE, _ints(1, length, h), SCALE, -torch.rand(h) * 8, _ints(1, length, g, n), SCALE,
        _ints(1, length, g, n), SCALE, _floats(h), _floats(h) - 2, _ints(1, h, p, n), SCALE,
    ]  # fmt: skip


def _ssd(s: Shape, length: int) -> tuple[Call, Call]:
    inputs = _ssd_inputs(s, length)
    floats, dt_bias = _ssd_floats(inputs)
    return lambda: int8_ssd(*inputs), lambda: ssd(*floats, dt_bias=dt_bias)


def _ssd_floats(inputs: list[Tensor]) -> tuple[list[Tensor], Tensor]:
    *floats, dt_bias = of_mamba2(torch.float32, *inputs)
    return floats, dt_bias


def _float_scan(s: Shape, length: int) -> tuple[Call, Call]:
    if s.heads:
        floats, dt_bias = _ssd_floats(_ssd_inputs(s, length))
        return (
            lambda: ssd(*floats, dt_bias=dt_bias),
            lambda: ssd(*floats, dt_bias=dt_bias, chunk=64, impl="chunked"),
        )
    floats, named = _scan_floats(_scan_inputs(s, length))
    return lambda: selective_scan(*floats, **named), lambda: selective_scan(*floats, **named, impl="in_place")


def _hadamard(s: Shape, length: int) -> tuple[Call, Call]:
    x, base = _floats(1, length, s.d_inner), base_signs(s.d_inner)
    return (
        lambda: hadamard_quantize(x, SCALE, base),
        lambda: hadamard_quantize(x, SCALE, base, impl="reference"),
    )


def _norm(s: Shape, length: int) -> tuple[Call, Call]:
    x = _floats(1, length, s.d_model)
    return (
        lambda: rms_norm_quantize(x, None, 1e-5, SCALE),
        lambda: rms_norm_quantize(x, None, 1e-5, SCALE, impl="reference"),
    )


def _embedding(s: Shape, length: int) -> tuple[Call, Call]:
    rows = 8_192  # of a vocabulary: more than any cache holds, and 8b's stay below a gigabyte
    tokens = torch.randint(rows, (1, length), generator=torch.Generator().manual_seed(0))
    table, scale = _ints(rows, s.d_model), torch.full((rows,), 0.01)
    floats = table * SCALE
    return lambda: int8_embedding(tokens, table, scale), lambda: F.embedding(tokens, floats)
