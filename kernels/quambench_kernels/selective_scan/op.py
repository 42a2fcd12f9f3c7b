"""selective_scan: checks, then dispatch."""

from __future__ import annotations

from torch import Tensor

from quambench_kernels import upstream
from quambench_kernels.checks import FLOATS, Checks
from quambench_kernels.dispatch import register, resolve
from quambench_kernels.lazy import Later, register_triton
from quambench_kernels.library import operator, records_gradients
from quambench_kernels.narrow import UP_TO_FLOAT32, in_float32
from quambench_kernels.native import why_not
from quambench_kernels.selective_scan import cpu
from quambench_kernels.selective_scan.differentiable import differentiable
from quambench_kernels.selective_scan.in_place import in_place
from quambench_kernels.selective_scan.reference import selective_scan_ref
from quambench_kernels.upstream import register_upstream

OP = "selective_scan"
STATE = 6  # the state's place among the arguments
register(OP, "native", in_float32(cpu.native, STATE), dtypes=UP_TO_FLOAT32, why_not=why_not(cpu.SOURCE))
register_upstream(OP, "mamba_ssm", upstream.selective_scan)
register_triton(OP, Later(OP, "selective_scan"))
register(OP, "in_place", in_float32(in_place, STATE), devices=("cpu", "cuda"))
register(OP, "reference", in_float32(selective_scan_ref, STATE), devices=("cpu", "cuda"), auto=lambda: False)


def selective_scan(
    u: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    state: Tensor,
    *,
    dt_bias: Tensor | None = None,
    z: Tensor | None = None,
    impl: str = "auto",
) -> tuple[Tensor, Tensor]:
    """Scan: Δ = softplus(dt + dt_bias); h = exp(Δ A) h + Δ B u; y = (C h + D u) SiLU(z).

    One dtype throughout; beside narrower inputs, A, D, dt_bias and the state may be float32.

    u, dt, z (B, L, E), any strides; A (E, N), negative; B, C (B, L, N); D, dt_bias (E); state (B, E, N)
    dt_bias  None: dt is Δ itself
    z        None: y is not gated
    impl     "auto", or a name in `implementations("selective_scan")`
    returns  y (B, L, E) and the state after the last position (B, E, N)
    raises   ValueError
    """
    check = Checks(OP)
    check.shape("u", u, None, None, None)
    check.shape("A", A, u.shape[2], None)
    (batch, length, width), n = u.shape, A.shape[1]
    check.shape("dt", dt, batch, length, width)
    check.shape("B", B, batch, length, n)
    check.shape("C", C, batch, length, n)
    check.shape("D", D, width)
    check.shape("state", state, batch, width, n)
    if dt_bias is not None:
        check.shape("dt_bias", dt_bias, width)
    if z is not None:
        check.shape("z", z, batch, length, width)
    check.alike({"A": A, "D": D, "state": state, "dt_bias": dt_bias}, u=u, dt=dt, B=B, C=C, z=z)
    check.dtype("u", u, *FLOATS)
    if records_gradients(OP, impl, u, dt, A, B, C, D, state, dt_bias, z):
        return in_float32(differentiable, STATE)(u, dt, A, B, C, D, state, dt_bias, z)
    return _run(u, dt, A, B, C, D, state, dt_bias, z, impl)


@operator(
    f"{OP}(Tensor u, Tensor dt, Tensor A, Tensor B, Tensor C, Tensor D, Tensor state, Tensor? dt_bias, Tensor? z,"
    " str impl) -> (Tensor, Tensor)",
    lambda u, dt, A, B, C, D, state, *_: (u.new_empty(u.shape), state.new_empty(state.shape)),
)
def _run(u: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, state: Tensor, dt_bias: Tensor | None,
         z: Tensor | None, impl: str) -> tuple[Tensor, Tensor]:  # fmt: skip
    y, after = resolve(OP, impl, u.device, u.dtype)(u, dt, A, B, C, D, state, dt_bias, z)
    return y.contiguous(), after.contiguous()  # as the fake results have them
