"""ssd: checks, then dispatch."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from quambench_kernels import upstream
from quambench_kernels.checks import FLOATS, Checks
from quambench_kernels.dispatch import register, resolve
from quambench_kernels.lazy import Later, register_triton
from quambench_kernels.library import operator, records_gradients
from quambench_kernels.narrow import UP_TO_FLOAT32, in_float32
from quambench_kernels.native import why_not
from quambench_kernels.ssd import cpu
from quambench_kernels.ssd.chunked import by_chunks
from quambench_kernels.ssd.reference import ssd_ref
from quambench_kernels.upstream import register_upstream

OP = "ssd"
STATE = 6  # the state's place among the arguments
register(OP, "native", in_float32(cpu.native, STATE), dtypes=UP_TO_FLOAT32, why_not=why_not(cpu.SOURCE))
register_upstream(OP, "mamba_ssm", upstream.ssd)
register_triton(OP, Later(OP, "ssd"))
register(OP, "chunked", in_float32(by_chunks, STATE), devices=("cpu", "cuda"))
register(OP, "reference", in_float32(ssd_ref, STATE), devices=("cpu", "cuda"), auto=lambda: False)


def ssd(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    state: Tensor,
    *,
    dt_bias: Tensor | None = None,
    dt_min: float = 0.0,
    dt_max: float = float("inf"),
    chunk: int = 256,
    impl: str = "auto",
) -> tuple[Tensor, Tensor]:
    """Scan: Δ = clamp(softplus(dt + dt_bias)); h = exp(Δ A) h + Δ x B^T; y = h C + D x.

    One dtype throughout; beside narrower inputs, A, D, dt_bias and the state may be float32.

    x (B, L, H, P), dt (B, L, H), B, C (B, L, G, N): any strides; A (H), negative; D (H), (H, P) or None
    state    (B, H, P, N)
    dt_bias  (H), or None: dt is Δ itself, and has no limits
    chunk    positions of one chunk, where the implementation works by chunks
    impl     "auto", or a name in `implementations("ssd")`
    returns  y (B, L, H, P) and the state after the last position (B, H, P, N)
    raises   ValueError
    """
    check = Checks(OP)
    check.positive("chunk", chunk)
    check_shapes(check, x, dt, A, B, C, D, state, dt_bias)
    check.alike({"A": A, "D": D, "state": state, "dt_bias": dt_bias}, x=x, dt=dt, B=B, C=C)
    check.dtype("x", x, *FLOATS)
    if records_gradients(OP, impl, x, dt, A, B, C, D, state, dt_bias):
        return in_float32(by_chunks, STATE)(x, dt, A, B, C, D, state, dt_bias, dt_min, dt_max, chunk)
    return _run(x, dt, A, B, C, D, state, dt_bias, dt_min, dt_max, chunk, impl)


def check_shapes(
    check: Checks,
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    state: Tensor,
    dt_bias: Tensor | None,
) -> None:
    """Check the arguments that ssd and int8_ssd have in common. raises ValueError"""
    check.shape("x", x, None, None, None, None)
    batch, length, heads, head_dim = x.shape
    check.shape("B", B, batch, length, None, None)
    groups, d_state = B.shape[2:]
    if groups == 0 or heads % groups:
        check.refuse(f"{heads} heads cannot be shared among {groups} SSD groups")
    check.shape("dt", dt, batch, length, heads)
    check.shape("A", A, heads)
    check.shape("C", C, batch, length, groups, d_state)
    if D is not None:
        check.shape("D", D, *((heads, head_dim) if D.ndim == 2 else (heads,)))
    check.shape("state", state, batch, heads, head_dim, d_state)
    if dt_bias is not None:
        check.shape("dt_bias", dt_bias, heads)


@operator(
    f"{OP}(Tensor x, Tensor dt, Tensor A, Tensor B, Tensor C, Tensor? D, Tensor state, Tensor? dt_bias, float dt_min,"
    " float dt_max, int chunk, str impl) -> (Tensor, Tensor)",
    lambda x, dt, A, B, C, D, state, *_: (x.new_empty(x.shape), state.new_empty(state.shape)),
)
def _run(*args: Any) -> tuple[Tensor, Tensor]:
    *inputs, impl = args
    y, after = resolve(OP, impl, inputs[0].device, inputs[0].dtype)(*inputs)
    return y.contiguous(), after.contiguous()  # as the fake results have them
