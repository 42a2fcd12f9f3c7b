"""int8_embedding: checks, then dispatch."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from quambench_kernels.checks import Checks
from quambench_kernels.dispatch import register, resolve
from quambench_kernels.int8_embedding import cpu
from quambench_kernels.int8_embedding.reference import int8_embedding_ref
from quambench_kernels.lazy import Later, register_triton
from quambench_kernels.library import operator
from quambench_kernels.native import why_not

OP = "int8_embedding"
register(OP, "native", cpu.native, why_not=why_not(cpu.SOURCE))
register_triton(OP, Later(OP, "int8_embedding"))
register(OP, "reference", int8_embedding_ref, devices=("cpu", "cuda"))


def int8_embedding(tokens: Tensor, table_q: Tensor, scale: Tensor, *, impl: str = "auto") -> Tensor:
    """Return table_q[tokens] * scale[tokens]: exact, one float32 product a value.

    tokens   (...) int64, each from 0 to V - 1
    table_q  (V, D) int8; scale (V,) float32
    impl     "auto", or a name in `implementations("int8_embedding")`
    returns  (..., D) float32
    raises   ValueError; on a CPU IndexError for a token outside the table, whose row is NaN on a GPU
    """
    check = Checks(OP)
    check.shape("table_q", table_q, None, None)
    check.shape("scale", scale, table_q.shape[0])
    check.dtype("tokens", tokens, torch.int64)
    check.dtype("table_q", table_q, torch.int8)
    check.dtype("scale", scale, torch.float32)
    check.together(tokens=tokens, table_q=table_q, scale=scale)
    return _run(tokens, table_q, scale, impl)


@operator(
    f"{OP}(Tensor tokens, Tensor table_q, Tensor scale, str impl) -> Tensor",
    lambda tokens, table_q, scale, impl: scale.new_empty(*tokens.shape, table_q.shape[1]),
)
def _run(tokens: Tensor, table_q: Tensor, scale: Tensor, impl: str) -> Tensor:
    if (
        tokens.device.type == "cpu"
        and tokens.numel()
        and not 0 <= int(tokens.min()) <= int(tokens.max()) < len(table_q)
    ):
        raise IndexError(f"{OP}: tokens must be from 0 to {len(table_q) - 1}")
    run: Callable[..., Tensor] = resolve(OP, impl, tokens.device)
    return run(tokens, table_q, scale)
