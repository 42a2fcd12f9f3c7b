"""hadamard_quantize: checks, then dispatch."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from quambench_kernels.checks import Checks
from quambench_kernels.dispatch import register, resolve
from quambench_kernels.hadamard_quantize import cpu
from quambench_kernels.hadamard_quantize.reference import hadamard_quantize_ref
from quambench_kernels.lazy import Later, register_triton
from quambench_kernels.library import operator
from quambench_kernels.native import why_not

OP = "hadamard_quantize"
register(OP, "native", cpu.native, dtypes=[torch.float32], why_not=why_not(cpu.SOURCE))
register_triton(OP, Later(OP, "hadamard_quantize"))
register(OP, "reference", hadamard_quantize_ref, devices=("cpu", "cuda"))


def hadamard_quantize(x: Tensor, scale: Tensor, base: Tensor, *, q_max: int = 127, impl: str = "auto") -> Tensor:
    """Compute quantize(H x) over the last axis, H = (base (x) Sylvester's matrix) / sqrt(n), orthonormal.

    x        (..., n) floating, any strides; n = m * 2^k
    scale    () float32
    base     (m, m) float32 of +-1: (1, 1) of 1, or a Hadamard matrix of order 12 or 40
    q_max    the grid's upper end, 127 for 8 bits
    impl     "auto", or a name in `implementations("hadamard_quantize")`
    returns  (..., n) int8
    raises   ValueError
    """
    check = Checks(OP)
    if base.ndim != 2 or not base.shape[0] or base.shape[0] != base.shape[1]:
        check.refuse(f"base must be (m, m), m at least 1 (got {tuple(base.shape)})")
    check.dtype("base", base, torch.float32)
    check.dtype("x", x, torch.float64, torch.float32, torch.bfloat16, torch.float16)
    times, rest = divmod(x.shape[-1] if x.ndim else 0, len(base))
    if rest or times < 1 or times & (times - 1):
        check.refuse(f"x must be (..., {len(base)} * 2^k) (got {tuple(x.shape)})")
    check.scale("scale", scale, None)
    check.q_max(q_max)
    check.together(x=x, scale=scale, base=base)
    return _run(x, scale, base, q_max, impl)


@operator(
    f"{OP}(Tensor x, Tensor scale, Tensor base, int q_max, str impl) -> Tensor",
    lambda x, scale, base, q_max, impl: x.new_empty(x.shape, dtype=torch.int8),
)
def _run(x: Tensor, scale: Tensor, base: Tensor, q_max: int, impl: str) -> Tensor:
    run: Callable[..., Tensor] = resolve(OP, impl, x.device, x.dtype)
    return run(x, scale, base, q_max)
