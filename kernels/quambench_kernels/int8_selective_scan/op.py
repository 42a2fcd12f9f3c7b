"""int8_selective_scan: checks, then dispatch."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from quambench_kernels.checks import Checks
from quambench_kernels.dispatch import register, resolve
from quambench_kernels.int8_selective_scan import cpu
from quambench_kernels.int8_selective_scan.reference import int8_selective_scan_ref
from quambench_kernels.lazy import Later, register_triton
from quambench_kernels.library import operator
from quambench_kernels.native import why_not
from quambench_kernels.selective_scan.in_place import in_place

OP = "int8_selective_scan"
register(OP, "native", cpu.native, why_not=why_not(cpu.SOURCE))
register_triton(OP, Later(OP, "int8_selective_scan"))
register(OP, "in_place", partial(int8_selective_scan_ref, scan=in_place), devices=("cpu", "cuda"))
register(OP, "reference", int8_selective_scan_ref, devices=("cpu", "cuda"), auto=lambda: False)


def int8_selective_scan(
    u_q: Tensor,
    u_scale: Tensor,
    dt_q: Tensor,
    dt_scale: Tensor,
    A: Tensor,
    B_q: Tensor,
    B_scale: Tensor,
    C_q: Tensor,
    C_scale: Tensor,
    D: Tensor,
    dt_bias: Tensor,
    z_q: Tensor,
    z_scale: Tensor,
    state_q: Tensor,
    state_scale: Tensor,
    *,
    q_max: int = 127,
    impl: str = "auto",
) -> tuple[Tensor, Tensor]:
    """Compute `selective_scan` of the integers' values, in float32; the last state is quantized, y is not.

    u_q, dt_q, z_q  (B, L, E) int8, any strides; u_scale () float32; dt_scale, z_scale () or (E)
    B_q, C_q        (B, L, N) int8, any strides; B_scale, C_scale () float32
    A (E, N), D, dt_bias (E): float32
    state_q         (B, E, N) int8; state_scale float32, broadcasts to (E, N)
    q_max           the state's grid's upper end, 127 for 8 bits
    impl            "auto", or a name in `implementations("int8_selective_scan")`
    returns         y (B, L, E) float32 and the state after the last position (B, E, N) int8
    raises          ValueError
    """
    check = Checks(OP)
    check.shape("u_q", u_q, None, None, None)
    check.shape("A", A, u_q.shape[2], None)
    (batch, length, width), n = u_q.shape, A.shape[1]
    for name, x in (("dt_q", dt_q), ("z_q", z_q)):
        check.shape(name, x, batch, length, width)
    for name, x in (("B_q", B_q), ("C_q", C_q)):
        check.shape(name, x, batch, length, n)
    for name, x in (("D", D), ("dt_bias", dt_bias)):
        check.shape(name, x, width)
        check.dtype(name, x, torch.float32)
    check.dtype("A", A, torch.float32)
    check.shape("state_q", state_q, batch, width, n)
    for name, x in (("u_q", u_q), ("dt_q", dt_q), ("B_q", B_q), ("C_q", C_q), ("z_q", z_q), ("state_q", state_q)):
        check.dtype(name, x, torch.int8)
    for name, x in (("u_scale", u_scale), ("B_scale", B_scale), ("C_scale", C_scale)):
        check.scale(name, x, None)
    check.scale("dt_scale", dt_scale, None, width)
    check.scale("z_scale", z_scale, None, width)
    check.broadcasts("state_scale", state_scale, width, n)
    check.q_max(q_max)
    check.together(u_q=u_q, u_scale=u_scale, dt_q=dt_q, dt_scale=dt_scale, A=A, B_q=B_q, B_scale=B_scale, C_q=C_q,
                   C_scale=C_scale, D=D, dt_bias=dt_bias, z_q=z_q, z_scale=z_scale, state_q=state_q,
                   state_scale=state_scale)  # fmt: skip
    return _run(u_q, u_scale, dt_q, dt_scale, A, B_q, B_scale, C_q, C_scale, D, dt_bias, z_q, z_scale, state_q,
                state_scale, q_max, impl)  # fmt: skip


@operator(
    f"{OP}(Tensor u_q, Tensor u_scale, Tensor dt_q, Tensor dt_scale, Tensor A, Tensor B_q, Tensor B_scale, Tensor C_q,"
    " Tensor C_scale, Tensor D, Tensor dt_bias, Tensor z_q, Tensor z_scale, Tensor state_q, Tensor state_scale,"
    " int q_max, str impl) -> (Tensor, Tensor)",
    lambda *args: (args[4].new_empty(args[0].shape), args[13].new_empty(args[13].shape)),
)
def _run(*args: Any) -> tuple[Tensor, Tensor]:
    *inputs, impl = args
    y, after = resolve(OP, impl, inputs[0].device)(*inputs)
    return y.contiguous(), after.contiguous()  # as the fake results have them
