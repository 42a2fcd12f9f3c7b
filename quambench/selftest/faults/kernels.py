"""Faults in the INT8 operators, whichever implementation of them runs: at least one for each."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from quambench_kernels import dispatch
from quambench_kernels.hadamard_quantize import reference as hadamard
from quambench_kernels.int8_causal_conv1d import reference as conv
from quambench_kernels.int8_linear import cpu
from quambench_kernels.int8_linear import reference as linear
from quambench_kernels.int8_selective_scan import reference as mamba
from quambench_kernels.int8_ssd import reference as mamba2
from quambench_kernels.rms_norm_quantize import reference as norm
from torch import Tensor

from quambench.selftest.faults.base import fault
from quambench.selftest.faults.planting import planted

STATE = {"int8_selective_scan": 13, "int8_ssd": 11}  # where the carried state stands among the arguments
SCANS = "kernel/int8_(selective_scan|ssd)"
around = dispatch.around


def both(spoil: Any) -> AbstractContextManager[Any]:
    """spoil(run, arguments, index of the state) around the scans of both architectures."""

    @contextmanager
    def plant() -> Iterator[None]:
        with ExitStack() as stack:
            for op, at in STATE.items():
                stack.enter_context(around(op, lambda run, *args, at=at: spoil(run, list(args), at)))
            yield

    return plant()


def rounding(
    op: str, module: Any, ref: Callable[..., Any], rounded: Callable[[Tensor], Tensor]
) -> AbstractContextManager[Any]:
    """An operator's reference in place of all implementations, its quotients rounded so."""

    def quantize(x: Tensor, scale: Tensor, q_max: int) -> Tensor:
        return rounded(x / scale.to(x.dtype)).clamp(-q_max - 1, q_max).to(torch.int8)

    def run(original: Any, *args: Any) -> Any:
        with planted(module, "quantize_ref", quantize):
            return ref(*args)

    return around(op, run)


@contextmanager
def after_the_product(spoil: AbstractContextManager[Any]) -> Iterator[None]:
    """A fault in what follows int8_linear's product, where nothing does both in one kernel."""
    with around("int8_linear", lambda run, x, w: run(x, w)), spoil:
        yield


def half_away(x: Tensor) -> Tensor:
    return x.sign() * (x.abs() + 0.5).floor()


def half_up(x: Tensor) -> Tensor:
    return (x + 0.5).floor()


@fault("INT8 product saturates at 16 bits", "kernel/int8_linear/", "layers.0.*")
def _() -> AbstractContextManager[Any]:
    return around("int8_linear", lambda run, x, w: run(x, w).clamp(-32768, 32767))


@fault("few rows are multiplied one input short", "kernel/int8_linear/")
def _() -> AbstractContextManager[Any]:
    """Where one C++ kernel serves them, in that kernel alone; else in whatever multiplies."""

    def short(run: Callable[..., Tensor], x: Tensor, *rest: Any) -> Tensor:
        few = x.shape[0] <= cpu.FEW
        return run(torch.cat([x[:, :-1], torch.zeros_like(x[:, -1:])], dim=1) if few else x, *rest)

    if dispatch.resolve("int8_linear", "auto", torch.device("cpu"), size=1) is cpu.few_rows:
        return planted(cpu.few_rows, "fused", partial(short, cpu.few_rows_fused))
    return around("int8_linear", short)


@fault("a projection's outputs are truncated", "kernel/int8_linear", "layers.0.(in_proj:output|z)")
def _() -> AbstractContextManager[Any]:
    return after_the_product(rounding("int8_linear.finish", linear, linear.finish_ref, torch.trunc))


@fault("a projection's outputs are all on the first one's grid", "kernel/int8_linear")
def _() -> AbstractContextManager[Any]:
    def first(
        run: Callable[..., Tensor], sums: Tensor, scale: Tensor, bias: Any, out: Tensor | None, q_max: int
    ) -> Tensor:
        return run(sums, scale, bias, out if out is None or out.ndim == 0 else out[:1].expand_as(out), q_max)

    return after_the_product(around("int8_linear.finish", first))


@fault("convolution one tap off", "kernel/int8_causal_conv1d", "layers.0.({scan}|x_conv_out)")
def _() -> AbstractContextManager[Any]:
    return around("int8_causal_conv1d", lambda run, x, scale, weight, *rest: run(x, scale, weight.roll(1, 1), *rest))


@fault("convolution rounds ties away from zero", "kernel/int8_causal_conv1d")
def _() -> AbstractContextManager[Any]:
    return rounding("int8_causal_conv1d", conv, conv.int8_causal_conv1d_ref, half_away)


@fault("convolution starts each call from nothing", "kernel/int8_causal_conv1d", "layers.0.({scan}|x_conv_out)")
def _() -> AbstractContextManager[Any]:
    return around("int8_causal_conv1d", lambda run, x, s, w, b, h, *rest: run(x, s, w, b, torch.zeros_like(h), *rest))


@fault("state rounded half away from zero", SCANS)
def _() -> AbstractContextManager[Any]:
    @contextmanager
    def plant() -> Iterator[None]:
        with (
            rounding("int8_selective_scan", mamba, mamba.int8_selective_scan_ref, half_away),
            rounding("int8_ssd", mamba2, mamba2.int8_ssd_ref, half_away),
        ):
            yield

    return plant()


@fault("state read four times as large", SCANS, "layers.0.ssm_state")
def _() -> AbstractContextManager[Any]:
    def larger(run: Any, args: list[Any], at: int) -> tuple[Tensor, Tensor]:
        args[at + 1] = args[at + 1] * 4
        y, state = run(*args)
        return y, (state.int() * 4).clamp(-args[-1] - 1, args[-1]).to(torch.int8)

    return both(larger)


@fault("state reset between steps", SCANS, "layers.0.ssm_state")
def _() -> AbstractContextManager[Any]:
    def reset(run: Callable[..., tuple[Tensor, Tensor]], args: list[Any], at: int) -> tuple[Tensor, Tensor]:
        args[at] = torch.zeros_like(args[at])
        return run(*args)

    return both(reset)


@fault("a step leaves its state as it was", SCANS, "layers.0.ssm_state")
def _() -> AbstractContextManager[Any]:
    def stale(run: Any, args: list[Any], at: int) -> tuple[Tensor, Tensor]:
        y, state = run(*args)
        return y, state if args[0].shape[1] > 1 else args[at].clone()

    return both(stale)


@fault("online rotation rounds half up", "kernel/hadamard_quantize")
def _() -> AbstractContextManager[Any]:
    return rounding("hadamard_quantize", hadamard, hadamard.hadamard_quantize_ref, half_up)


@fault("online rotation by the base turned over", "kernel/hadamard_quantize", "layers.0.out_proj:input")
def _() -> AbstractContextManager[Any]:
    return around("hadamard_quantize", lambda run, x, scale, base, q_max: run(x.flip(-1), scale, base, q_max))


@fault("norms round ties away from zero", "kernel/rms_norm_quantize")
def _() -> AbstractContextManager[Any]:
    return rounding("rms_norm_quantize", norm, norm.rms_norm_quantize_ref, half_away)


@fault("what a block makes is added to the residual stream twice", "kernel/rms_norm_quantize", "layers.1.in_proj:input")
def _() -> AbstractContextManager[Any]:
    def twice(run: Any, x: Tensor, residual: Tensor | None, *rest: Any) -> Any:
        return run(x, residual if residual is None else residual + x, *rest)

    return around("rms_norm_quantize", twice)


# Layer 0's norm takes a row's scale away again; what its block adds does not.
@fault("embedding read with the next row's scale", "kernel/int8_embedding", "layers.1.in_proj:input")
def _() -> AbstractContextManager[Any]:
    return around("int8_embedding", lambda run, tokens, table, scale: run(tokens, table, scale.roll(1)))
