"""int8_linear: checks, then dispatch."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from quambench_kernels.checks import Checks
from quambench_kernels.dispatch import register, resolve
from quambench_kernels.int8_linear import cpu
from quambench_kernels.int8_linear.reference import finish_ref, int8_linear_ref
from quambench_kernels.lazy import Later, register_triton
from quambench_kernels.library import operator

# 128 * 128 * K <= 2^31 - 1, so that no sum leaves int32.
MAX_K = (2**31 - 1) // 2**14  # 131,071

OP = "int8_linear"
FINISH = "int8_linear.finish"  # the step after the integer product: all implementations are the same to the bit
register(OP, "int_mm", cpu.int_mm, why_not=cpu.why_not_int_mm, auto=cpu.int_mm_is_faster)
register(OP, "few_rows", cpu.few_rows, why_not=cpu.why_not_native, sizes=range(cpu.FEW + 1))
register(OP, "chunked_float32", cpu.chunked_float32)
register_triton(OP, Later(OP, "product", fused=Later(OP, "fused")))
register(OP, "reference", int8_linear_ref, devices=("cpu", "cuda"), auto=lambda: False)
register(FINISH, "native", cpu.native_finish, why_not=cpu.why_not_native)
register(FINISH, "reference", finish_ref, devices=("cpu", "cuda"))


def int8_linear(
    x_q: Tensor,
    w_q: Tensor,
    scale: Tensor | None = None,
    bias: Tensor | None = None,
    out_scale: Tensor | None = None,
    *,
    q_max: int = 127,
    impl: str = "auto",
) -> Tensor:
    """Compute x_q w_q^T, exact in INT32; with a scale then float32, times scale plus bias; with an out_scale then INT8.

    x_q        (..., K) int8, any strides
    w_q        (N, K) int8, contiguous; K from 1 to MAX_K
    scale      () or (N) float32: what one step of x times one of each row of w stands for
    bias       (N) float32, or None
    out_scale  () or (N) float32: the grids of the output's columns; several for an output that is split later
    q_max      the grids' upper end, 127 for 8 bits
    impl       "auto", or a name in `implementations("int8_linear")`
    returns    (..., N) int32, float32 or int8
    raises     ValueError for arguments that break this, or an implementation that cannot run here
    """
    check = Checks(OP)
    _check_product(check, x_q, w_q)
    if scale is None and (bias is not None or out_scale is not None):
        check.refuse("a bias or an out_scale needs a scale, without which the integers stand for nothing")
    n = w_q.shape[0]
    if scale is not None:
        check.scale("scale", scale, None, n)
    if bias is not None:
        check.scale("bias", bias, n)
    if out_scale is not None:
        check.scale("out_scale", out_scale, None, n)
    check.q_max(q_max)
    check.together(x_q=x_q, w_q=w_q, scale=scale, bias=bias, out_scale=out_scale)
    return _run(x_q, w_q, scale, bias, out_scale, q_max, impl)


def _dtype(scale: Tensor | None, out_scale: Tensor | None) -> torch.dtype:
    return torch.int32 if scale is None else torch.float32 if out_scale is None else torch.int8


@operator(
    f"{OP}(Tensor x_q, Tensor w_q, Tensor? scale, Tensor? bias, Tensor? out_scale, int q_max, str impl) -> Tensor",
    lambda x_q, w_q, scale, bias, out_scale, q_max, impl: x_q.new_empty(
        *x_q.shape[:-1], w_q.shape[0], dtype=_dtype(scale, out_scale)
    ),
)
def _run(x_q: Tensor, w_q: Tensor, scale: Tensor | None, bias: Tensor | None, out_scale: Tensor | None, q_max: int,
         impl: str) -> Tensor:  # fmt: skip
    x = x_q.reshape(-1, x_q.shape[-1])
    product: Callable[..., Tensor] = resolve(OP, impl, x_q.device, size=x.shape[0])
    # The product and its finish in one kernel.
    fused: Callable[..., Tensor] | None = getattr(product, "fused", None)
    if scale is None:
        y = product(x, w_q)
    elif fused is not None:
        y = fused(x, w_q, scale, bias, out_scale, q_max)
    else:
        finish: Callable[..., Tensor] = resolve(FINISH, "reference" if impl == "reference" else "auto", x_q.device)
        y = finish(product(x, w_q), scale, bias, out_scale, q_max)
    return y.view(*x_q.shape[:-1], w_q.shape[0])


def _check_product(check: Checks, x_q: Tensor, w_q: Tensor) -> None:
    if x_q.dtype != torch.int8 or w_q.dtype != torch.int8:
        check.refuse(f"x_q and w_q must be int8 (got {x_q.dtype} and {w_q.dtype})")
    if x_q.ndim < 1 or w_q.ndim != 2 or x_q.shape[-1] != w_q.shape[1]:
        check.refuse(f"x_q must be (..., K) and w_q (N, K) (got {tuple(x_q.shape)} and {tuple(w_q.shape)})")
    if not 1 <= w_q.shape[1] <= MAX_K:
        check.refuse(f"K must be from 1 to {MAX_K}, beyond which an int32 sum can overflow (got {w_q.shape[1]})")
    if not w_q.is_contiguous():
        check.refuse(f"w_q must be contiguous (got strides {w_q.stride()}); make it so once, where the weight is made")
    if x_q.device != w_q.device:
        check.refuse(f"x_q and w_q must be on one device (got {x_q.device} and {w_q.device})")
