"""causal_conv1d: checks, then dispatch."""

from __future__ import annotations

from torch import Tensor

from quambench_kernels import upstream
from quambench_kernels.causal_conv1d import cpu
from quambench_kernels.causal_conv1d.reference import causal_conv1d_ref, next_history
from quambench_kernels.checks import FLOATS, Checks
from quambench_kernels.dispatch import register, resolve
from quambench_kernels.lazy import Later, register_triton
from quambench_kernels.library import operator, records_gradients
from quambench_kernels.narrow import UP_TO_FLOAT32, in_float32
from quambench_kernels.native import why_not
from quambench_kernels.upstream import register_upstream

OP = "causal_conv1d"
register(OP, "native", in_float32(cpu.native), dtypes=UP_TO_FLOAT32, why_not=why_not(cpu.SOURCE))
register_upstream(OP, "causal_conv1d", upstream.causal_conv1d, sizes=upstream.WIDTHS)
register_triton(OP, Later(OP, "causal_conv1d"))
register(OP, "reference", in_float32(causal_conv1d_ref), devices=("cpu", "cuda"))


def causal_conv1d(
    x: Tensor, weight: Tensor, bias: Tensor | None, history: Tensor, *, silu: bool = False, impl: str = "auto"
) -> tuple[Tensor, Tensor]:
    """Convolve depthwise over the past only, and return the history that the next call needs; one dtype throughout.

    x (B, L, C), any strides; weight (C, K); bias (C) or None; history (B, K-1, C), zeros at a sequence's start
    silu     whether y is SiLU of the sum
    impl     "auto", or a name in `implementations("causal_conv1d")`
    returns  y (B, L, C) and history (B, K-1, C)
    raises   ValueError
    """
    check = Checks(OP)
    check.shape("x", x, None, None, None)
    check.shape("weight", weight, x.shape[2], None)
    check.shape("history", history, x.shape[0], weight.shape[1] - 1, x.shape[2])
    if bias is not None:
        check.shape("bias", bias, x.shape[2])
    check.alike(x=x, weight=weight, bias=bias, history=history)
    check.dtype("x", x, *FLOATS)
    if records_gradients(OP, impl, x, weight, bias, history):
        return in_float32(causal_conv1d_ref)(x, weight, bias, history, silu), next_history(x, history)
    return _run(x, weight, bias, history, silu, impl)


@operator(
    "causal_conv1d(Tensor x, Tensor weight, Tensor? bias, Tensor history, bool silu, str impl) -> (Tensor, Tensor)",
    lambda x, weight, bias, history, silu, impl: (x.new_empty(x.shape), x.new_empty(history.shape)),
)
def _run(
    x: Tensor, weight: Tensor, bias: Tensor | None, history: Tensor, silu: bool, impl: str
) -> tuple[Tensor, Tensor]:
    y = resolve(OP, impl, x.device, x.dtype, weight.shape[1])(x, weight, bias, history, silu)
    return y, next_history(x, history)
