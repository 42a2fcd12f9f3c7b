"""int8_causal_conv1d: checks, then dispatch."""

from __future__ import annotations

import torch
from torch import Tensor

from quambench_kernels.causal_conv1d.reference import next_history
from quambench_kernels.checks import Checks
from quambench_kernels.dispatch import register, resolve
from quambench_kernels.int8_causal_conv1d import cpu
from quambench_kernels.int8_causal_conv1d.reference import int8_causal_conv1d_ref, int8_causal_conv1d_walking_ref
from quambench_kernels.lazy import Later, register_triton
from quambench_kernels.library import operator
from quambench_kernels.native import why_not

OP = "int8_causal_conv1d"
WALKING = "int8_causal_conv1d_walking"
register(OP, "native", cpu.native, why_not=why_not(cpu.SOURCE))
register_triton(OP, Later(OP, "int8_causal_conv1d"))
register(OP, "reference", int8_causal_conv1d_ref, devices=("cpu", "cuda"))
register(WALKING, "native", cpu.native_walking, why_not=why_not(cpu.SOURCE))
register_triton(WALKING, Later(OP, "int8_causal_conv1d_walking"))
register(WALKING, "reference", int8_causal_conv1d_walking_ref, devices=("cpu", "cuda"))


def int8_causal_conv1d(
    x_q: Tensor,
    x_scale: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    history_q: Tensor,
    out_scale: Tensor,
    *,
    q_max: int = 127,
    impl: str = "auto",
) -> tuple[Tensor, Tensor]:
    """Dequantize, convolve over the past, SiLU, quantize; in float32 between.

    x_q        (B, L, C) int8, any strides; history_q (B, K-1, C) int8, what the call before returned
    x_scale    () or (C) float32: tensor units per integer step
    weight     (C, K), bias (C) or None: float32
    out_scale  () or (C) float32: one, or a table by channel; its cost is the same for any number of groups
    q_max      the grid's upper end, 127 for 8 bits
    impl       "auto", or a name in `implementations("int8_causal_conv1d")`
    returns    (B, L, C) int8 and history (B, K-1, C) int8
    raises     ValueError
    """
    check = Checks(OP)
    _check_inputs(check, x_q, x_scale, weight, bias, history_q, q_max)
    check.scale("out_scale", out_scale, None, x_q.shape[2])
    check.together(x_q=x_q, out_scale=out_scale)
    return _run(x_q, x_scale, weight, bias, history_q, out_scale, q_max, impl)


def int8_causal_conv1d_walking(
    x_q: Tensor,
    x_scale: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    history_q: Tensor,
    head_sizes: Tensor,
    dim_sizes: Tensor,
    scale: Tensor,
    *,
    q_max: int = 127,
    impl: str = "auto",
) -> tuple[Tensor, Tensor]:
    """Compute `int8_causal_conv1d` with a scale per group, found as Quamba2 does: by walking runs of heads and
    channels.

    head_sizes (G, nh) int64, dim_sizes (G, nh, nd) int64, scale (G, nh, nd) float32: C channels in the groups' order
    raises ValueError
    """
    check = Checks(WALKING)
    _check_inputs(check, x_q, x_scale, weight, bias, history_q, q_max)
    check.shape("head_sizes", head_sizes, None, None)
    check.positive("the number of SSD groups", len(head_sizes))
    check.shape("dim_sizes", dim_sizes, *head_sizes.shape, None)
    check.shape("scale", scale, *dim_sizes.shape)
    check.dtype("scale", scale, torch.float32)
    check.dtype("head_sizes", head_sizes, torch.int64)
    check.dtype("dim_sizes", dim_sizes, torch.int64)
    check.together(x_q=x_q, head_sizes=head_sizes, dim_sizes=dim_sizes, scale=scale)
    heads = int(head_sizes.sum())
    head_dim = x_q.shape[2] // max(heads, 1)
    in_all = (head_sizes.sum(-1) * len(head_sizes) == heads).all() and (dim_sizes.sum(-1) == head_dim).all()
    if not in_all or heads * head_dim != x_q.shape[2]:
        check.refuse(f"the runs of heads and channels must add up to {x_q.shape[2]} channels")
    return _run_walking(x_q, x_scale, weight, bias, history_q, head_sizes, dim_sizes, scale, head_dim, q_max, impl)


def _check_inputs(
    check: Checks, x_q: Tensor, x_scale: Tensor, weight: Tensor, bias: Tensor | None, history_q: Tensor, q_max: int
) -> None:
    check.shape("x_q", x_q, None, None, None)
    check.shape("weight", weight, x_q.shape[2], None)
    check.shape("history_q", history_q, x_q.shape[0], weight.shape[1] - 1, x_q.shape[2])
    if bias is not None:
        check.shape("bias", bias, x_q.shape[2])
        check.dtype("bias", bias, torch.float32)
    check.dtype("x_q", x_q, torch.int8)
    check.dtype("history_q", history_q, torch.int8)
    check.dtype("weight", weight, torch.float32)
    check.scale("x_scale", x_scale, None, x_q.shape[2])
    check.q_max(q_max)
    check.together(x_q=x_q, x_scale=x_scale, weight=weight, bias=bias, history_q=history_q)


_INPUTS = "Tensor x_q, Tensor x_scale, Tensor weight, Tensor? bias, Tensor history_q"


@operator(
    f"{OP}({_INPUTS}, Tensor out_scale, int q_max, str impl) -> (Tensor, Tensor)",
    lambda x_q, x_scale, weight, bias, history_q, *_: (x_q.new_empty(x_q.shape), x_q.new_empty(history_q.shape)),
)
def _run(x_q: Tensor, x_scale: Tensor, weight: Tensor, bias: Tensor | None, history_q: Tensor, out_scale: Tensor,
         q_max: int, impl: str) -> tuple[Tensor, Tensor]:  # fmt: skip
    y = resolve(OP, impl, x_q.device)(x_q, x_scale, weight, bias, history_q, out_scale, q_max)
    return y, next_history(x_q, history_q)


@operator(
    f"{WALKING}({_INPUTS}, Tensor head_sizes, Tensor dim_sizes, Tensor scale, int head_dim, int q_max, str impl)"
    " -> (Tensor, Tensor)",
    lambda x_q, x_scale, weight, bias, history_q, *_: (x_q.new_empty(x_q.shape), x_q.new_empty(history_q.shape)),
)
def _run_walking(x_q: Tensor, x_scale: Tensor, weight: Tensor, bias: Tensor | None, history_q: Tensor,
                 head_sizes: Tensor, dim_sizes: Tensor, scale: Tensor, head_dim: int, q_max: int,
                 impl: str) -> tuple[Tensor, Tensor]:  # fmt: skip
    run = resolve(WALKING, impl, x_q.device)
    y = run(x_q, x_scale, weight, bias, history_q, head_sizes, dim_sizes, scale, head_dim, q_max)
    return y, next_history(x_q, history_q)
