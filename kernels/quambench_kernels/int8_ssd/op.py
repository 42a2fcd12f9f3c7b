"""int8_ssd: checks, then dispatch."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from quambench_kernels.checks import Checks
from quambench_kernels.dispatch import register, resolve
from quambench_kernels.int8_ssd import cpu
from quambench_kernels.int8_ssd.reference import int8_ssd_ref
from quambench_kernels.lazy import Later, register_triton
from quambench_kernels.library import operator
from quambench_kernels.native import why_not
from quambench_kernels.ssd.chunked import by_chunks
from quambench_kernels.ssd.op import check_shapes

OP = "int8_ssd"
register(OP, "native", cpu.native, why_not=why_not(cpu.SOURCE))
register_triton(OP, Later(OP, "int8_ssd"))
register(OP, "chunked", partial(int8_ssd_ref, scan=by_chunks), devices=("cpu", "cuda"))
register(OP, "reference", int8_ssd_ref, devices=("cpu", "cuda"), auto=lambda: False)


def int8_ssd(
    x_q: Tensor,
    x_scale: Tensor,
    dt_q: Tensor,
    dt_scale: Tensor,
    A: Tensor,
    B_q: Tensor,
    B_scale: Tensor,
    C_q: Tensor,
    C_scale: Tensor,
    D: Tensor,
    dt_bias: Tensor,
    state_q: Tensor,
    state_scale: Tensor,
    *,
    dt_min: float = 0.0,
    dt_max: float = float("inf"),
    chunk: int = 256,
    q_max: int = 127,
    impl: str = "auto",
) -> tuple[Tensor, Tensor]:
    """Compute `ssd` of the integers' values, in float32; the last state is quantized, y is not.

    x_q (B, L, H, P), dt_q (B, L, H), B_q, C_q (B, L, G, N): int8, any strides
    x_scale () or (H P), dt_scale () or (H), B_scale, C_scale () or (G N): float32
    A, dt_bias (H), D (H) or (H, P): float32
    state_q  (B, H, P, N) int8; state_scale float32, broadcasts to (H, P, N)
    chunk    positions of one chunk, where the implementation works by chunks
    q_max    the state's grid's upper end, 127 for 8 bits
    impl     "auto", or a name in `implementations("int8_ssd")`
    returns  y (B, L, H, P) float32 and the state after the last position (B, H, P, N) int8
    raises   ValueError
    """
    check = Checks(OP)
    check.positive("chunk", chunk)
    check_shapes(check, x_q, dt_q, A, B_q, C_q, D, state_q, dt_bias)
    for name, x in (("x_q", x_q), ("dt_q", dt_q), ("B_q", B_q), ("C_q", C_q), ("state_q", state_q)):
        check.dtype(name, x, torch.int8)
    for name, x in (("A", A), ("D", D), ("dt_bias", dt_bias)):
        check.dtype(name, x, torch.float32)
    for name, q, scale in (("x", x_q, x_scale), ("dt", dt_q, dt_scale), ("B", B_q, B_scale), ("C", C_q, C_scale)):
        check.scale(f"{name}_scale", scale, None, q.shape[2:].numel())
    check.broadcasts("state_scale", state_scale, *state_q.shape[1:])
    check.q_max(q_max)
    inputs = (x_q, x_scale, dt_q, dt_scale, A, B_q, B_scale, C_q, C_scale, D, dt_bias, state_q, state_scale)
    check.together(**dict(zip(_NAMES, inputs, strict=True)))
    return _run(*inputs, dt_min, dt_max, chunk, q_max, impl)


_NAMES = ("x_q", "x_scale", "dt_q", "dt_scale", "A", "B_q", "B_scale", "C_q", "C_scale", "D", "dt_bias", "state_q",
          "state_scale")  # fmt: skip


@operator(
    f"{OP}({', '.join(f'Tensor {name}' for name in _NAMES)}, float dt_min, float dt_max, int chunk, int q_max,"
    " str impl) -> (Tensor, Tensor)",
    lambda *args: (args[4].new_empty(args[0].shape), args[11].new_empty(args[11].shape)),
)
def _run(*args: Any) -> tuple[Tensor, Tensor]:
    *inputs, impl = args
    y, after = resolve(OP, impl, inputs[0].device)(*inputs)
    return y.contiguous(), after.contiguous()  # as the fake results have them
