"""Faults in single implementations of operators, most of which the machine at hand does not choose."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any
from unittest.mock import patch

import quambench_kernels
import torch
from quambench_kernels.dispatch import around
from quambench_kernels.int8_linear import cpu
from quambench_kernels.selective_scan import op as scanning
from quambench_kernels.selective_scan.differentiable import CHUNK, differentiable
from torch import Tensor

from quambench.core.scratch import scratch
from quambench.selftest.faults.base import ONE, OTHER, fault
from quambench.selftest.faults.planting import planted

TRAINED = "percentile/w8a4/learned[steps=8]"  # a case of another module's faults too: recorded once


@contextmanager
def edited(file: str, old: str, new: str) -> Iterator[None]:
    """What other processes import of the kernels has this change in its source, as if somebody had saved it.

    raises ValueError where the source does not have what is to change
    """
    with scratch() as folder:
        (package,) = quambench_kernels.__path__
        copy = folder / "quambench_kernels"
        shutil.copytree(package, copy, ignore=shutil.ignore_patterns("__pycache__"))
        text = (copy / file).read_text(encoding="utf-8")
        if text.count(old) != 1:
            raise ValueError(f"{file} has {text.count(old)} places that read {old!r}: a fault is planted in one")
        (copy / file).write_text(text.replace(old, new), encoding="utf-8")
        with patch.object(sys, "path", [str(folder), *sys.path]):
            yield


# --- int8_linear ----------------------------------------------------------------------------------------


@fault("few_rows leaves out the columns that fours leave over", "kernel/int8_linear/few_rows")
def _() -> AbstractContextManager[Any]:
    def whole_fours(run: Callable[..., Tensor], x: Tensor, w: Tensor) -> Tensor:
        sums = run(x, w)
        sums[:, len(w) // 4 * 4 :] = 0
        return sums

    return around("int8_linear", whole_fours, "few_rows")


@fault("chunks of more products than float32 can add", "kernel/int8_linear/chunked_float32")
def _() -> AbstractContextManager[Any]:
    return planted(cpu, "CHUNK", 4096)


@fault("chunked_float32 forgets its last chunk", "kernel/int8_linear/chunked_float32")
def _() -> AbstractContextManager[Any]:
    def whole_chunks(run: Callable[..., Tensor], x: Tensor, w: Tensor) -> Tensor:
        whole = x.shape[1] // cpu.CHUNK * cpu.CHUNK or x.shape[1]
        return run(x[:, :whole], w[:, :whole])

    return around("int8_linear", whole_chunks, "chunked_float32")


@fault("the reference adds a bias to what stays float alone", "kernel/int8_linear.finish/reference")
def _() -> AbstractContextManager[Any]:
    def without(run: Callable[..., Tensor], sums: Tensor, scale: Tensor, bias: Any, out: Any, q_max: int) -> Tensor:
        return run(sums, scale, bias if out is None else None, out, q_max)

    return around("int8_linear.finish", without, "reference")


@fault("the finish in C++ knows 8 bits alone", "kernel/int8_linear.finish/native")
def _() -> AbstractContextManager[Any]:
    def wide(run: Callable[..., Tensor], *args: Any) -> Tensor:
        return run(*args[:-1], 127)

    return around("int8_linear.finish", wide, "native")


@fault("Triton's epilogue forgets the bias", "kernel/int8_linear/triton")
def _() -> AbstractContextManager[Any]:
    return edited(
        "int8_linear/triton.py", "        if bias is not None:\n", "        if bias is not None and scale is None:\n"
    )


# --- norms ------------------------------------------------------------------------------------------------


def _no_eps(run: Any, *args: Any) -> Any:
    return run(*args[:6], 0.0, *args[7:])


@fault("the norm in C++ without its eps", "kernel/rms_norm_quantize/native")
def _() -> AbstractContextManager[Any]:
    return around("rms_norm_quantize", _no_eps, "native")


@fault("the reference's norm without its eps", "kernel/rms_norm_quantize/reference")
def _() -> AbstractContextManager[Any]:
    return around("rms_norm_quantize", _no_eps, "reference")


@fault("Triton's norm adds its eps after the root", "kernel/rms_norm_quantize/triton")
def _() -> AbstractContextManager[Any]:
    right = "tl.sqrt_rn(tl.div_rn(tl.sum(v * v), count) + eps)"
    return edited("rms_norm_quantize/triton.py", right, "(tl.sqrt_rn(tl.div_rn(tl.sum(v * v), count)) + eps)")


# --- rotation, embedding, convolution ---------------------------------------------------------------------


@fault("the reference rotates by the base turned over", "kernel/hadamard_quantize/reference")
def _() -> AbstractContextManager[Any]:
    return around("hadamard_quantize", lambda run, x, scale, base, q_max: run(x, scale, base.T, q_max), "reference")


@fault("the reference's embedding by the next row's scale", "kernel/int8_embedding/reference")
def _() -> AbstractContextManager[Any]:
    return around("int8_embedding", lambda run, tokens, table, scale: run(tokens, table, scale.roll(1)), "reference")


@fault("the reference's convolution knows no history", "kernel/int8_causal_conv1d/reference")
def _() -> AbstractContextManager[Any]:
    def forgetful(
        run: Callable[..., Tensor], x: Tensor, s: Tensor, w: Tensor, b: Any, history: Tensor, *rest: Any
    ) -> Tensor:
        return run(x, s, w, b, torch.zeros_like(history), *rest)

    return around("int8_causal_conv1d", forgetful, "reference")


@fault("runs of channels are walked from the end", "kernel/int8_causal_conv1d_walking/native", architectures=OTHER)
def _() -> AbstractContextManager[Any]:
    def backwards(run: Callable[..., Tensor], *args: Any) -> Tensor:
        return run(*args[:6], args[6].flip(-1), *args[7:])

    return around("int8_causal_conv1d_walking", backwards, "native")


# --- scans ------------------------------------------------------------------------------------------------


@fault("in_place keeps the state of the last position but one", "kernel/selective_scan/in_place", architectures=ONE)
def _() -> AbstractContextManager[Any]:
    def early(run: Any, u: Tensor, dt: Tensor, A: Tensor, B: Tensor, *rest: Any) -> Any:
        y, _ = run(u, dt, A, B, *rest)
        B = B.clone()
        B[:, 1:].narrow(1, B.shape[1] - 2, 1).zero_() if B.shape[1] > 1 else None
        return y, run(u, dt, A, B, *rest)[1]

    return around("selective_scan", early, "in_place")


@fault(
    "the reference's scan of integers leaves out the gate", "kernel/int8_selective_scan/reference", architectures=ONE
)
def _() -> AbstractContextManager[Any]:
    def open_gate(run: Any, *args: Any) -> Any:
        return run(*args[:11], torch.full_like(args[11], 127), *args[12:])

    return around("int8_selective_scan", open_gate, "reference")


@fault("the reference deals heads out to groups in turn", "kernel/(int8_)?ssd/reference", architectures=OTHER)
def _() -> AbstractContextManager[Any]:
    def in_turn(run: Any, x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, *rest: Any) -> Any:
        times = x.shape[2] // B.shape[2]
        return run(x, dt, A, B.repeat(1, 1, times, 1), C.repeat(1, 1, times, 1), *rest)

    return around("ssd", in_turn, "reference")


@fault("the scan in C++ of floats leaves D out of a step", "kernel/ssd/native", architectures=OTHER)
def _() -> AbstractContextManager[Any]:
    def without(run: Any, x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Any, *rest: Any) -> Any:
        return run(x, dt, A, B, C, None if x.shape[1] == 1 else D, *rest)

    return around("ssd", without, "native")


@fault(
    "the form with gradients starts every chunk from nothing", "kernel/selective_scan/(differentiable|gradient)",
    architectures=ONE,
)  # fmt: skip
def _() -> AbstractContextManager[Any]:
    right = differentiable

    def restarted(u: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, state: Tensor, *rest: Any) -> Any:
        bias, z = rest
        ys = []
        for start in range(0, u.shape[1], CHUNK):
            part = slice(start, start + CHUNK)
            before = state if start == 0 else torch.zeros_like(state)
            gate = None if z is None else z[:, part]
            y, after = right(u[:, part], dt[:, part], A, B[:, part], C[:, part], D, before, bias, gate)
            ys.append(y)
        return torch.cat(ys, dim=1), after

    return planted(scanning, "differentiable", restarted)


@fault("gradients of a scan do not decay", "kernel/selective_scan/gradient", case=TRAINED, architectures=ONE)
def _() -> AbstractContextManager[Any]:
    recurrence = sys.modules["quambench_kernels.selective_scan.differentiable"]._LinearRecurrence

    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        _, states, initial = ctx.saved_tensors
        total = grad.flip(1).cumsum(1).flip(1)
        return total * torch.cat([initial[:, None], states[:, :-1]], dim=1), total, total[:, 0]

    return planted(recurrence, "backward", staticmethod(backward))
