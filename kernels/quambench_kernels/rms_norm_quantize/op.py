"""rms_norm_quantize, add_rms_norm_quantize, gated_rms_norm_quantize: checks, then dispatch."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from quambench_kernels.checks import FLOATS, Checks
from quambench_kernels.dispatch import register, resolve
from quambench_kernels.lazy import Later, register_triton
from quambench_kernels.library import operator, records_gradients
from quambench_kernels.narrow import UP_TO_FLOAT32, in_float32
from quambench_kernels.native import why_not
from quambench_kernels.rms_norm_quantize import cpu
from quambench_kernels.rms_norm_quantize.reference import rms_norm_quantize_ref

OP = "rms_norm_quantize"
register(OP, "native", in_float32(cpu.native), dtypes=UP_TO_FLOAT32, why_not=why_not(cpu.SOURCE))
register_triton(OP, Later(OP, "rms_norm_quantize"))
_REFERENCE = in_float32(rms_norm_quantize_ref)
register(OP, "reference", _REFERENCE, devices=("cpu", "cuda"))


def rms_norm_quantize(
    x: Tensor,
    gain: Tensor | None,
    eps: float,
    scale: Tensor | None,
    *,
    n_groups: int = 1,
    q_max: int = 127,
    impl: str = "auto",
) -> Tensor:
    """Compute quantize(x / sqrt(mean(x^2) + eps) * gain), the mean over each of n_groups equal parts of the last axis.

    x        (..., n) floating, any strides
    gain     (n) of x's dtype, or None for 1
    scale    () float32, or None: the norm stays floating
    q_max    the grid's upper end, 127 for 8 bits
    impl     "auto", or a name in `implementations("rms_norm_quantize")`
    returns  (..., n) int8, or of x's dtype
    raises   ValueError
    """
    check = Checks("rms_norm_quantize")
    _check(check, x, gain, n_groups, scale, q_max)
    if records_gradients(OP, impl, x, gain):
        return _REFERENCE(x, None, None, None, False, gain, eps, n_groups, scale, q_max)[0]
    return _plain(x, gain, eps, n_groups, scale, q_max, impl)


def add_rms_norm_quantize(
    x: Tensor,
    residual: Tensor,
    gain: Tensor | None,
    eps: float,
    scale: Tensor | None,
    *,
    q_max: int = 127,
    impl: str = "auto",
) -> tuple[Tensor, Tensor]:
    """Return `rms_norm_quantize` of residual + x, and that sum: the start of a block after the one that made x.

    x, residual (..., n), one dtype
    """
    check = Checks("add_rms_norm_quantize")
    check.shape("residual", residual, *x.shape)
    check.alike(x=x, residual=residual)
    _check(check, x, gain, 1, scale, q_max)
    if records_gradients(OP, impl, x, residual, gain):
        y, total = _REFERENCE(x, residual, None, None, False, gain, eps, 1, scale, q_max)
        assert total is not None
        return y, total
    return _added(x, residual, gain, eps, scale, q_max, impl)


def gated_rms_norm_quantize(
    x: Tensor,
    z: Tensor,
    z_scale: Tensor | None,
    gain: Tensor | None,
    eps: float,
    scale: Tensor | None,
    *,
    n_groups: int = 1,
    norm_before_gate: bool = False,
    q_max: int = 127,
    impl: str = "auto",
) -> Tensor:
    """Compute `rms_norm_quantize` of x SiLU(z), or with norm_before_gate quantize(norm(x) SiLU(z)): Mamba2's last norm.

    z (..., n) of x's dtype, or int8 with its scale z_scale, () or (n) float32
    """
    check = Checks("gated_rms_norm_quantize")
    check.shape("z", z, *x.shape)
    check.dtype("z", z, x.dtype if z_scale is None else torch.int8)
    if z_scale is not None:
        check.scale("z_scale", z_scale, None, x.shape[-1])
    check.together(x=x, z=z, z_scale=z_scale)
    _check(check, x, gain, n_groups, scale, q_max)
    if records_gradients(OP, impl, x, z, gain):
        return _REFERENCE(x, None, z, z_scale, norm_before_gate, gain, eps, n_groups, scale, q_max)[0]
    return _gated(x, z, z_scale, norm_before_gate, gain, eps, n_groups, scale, q_max, impl)


def _check(check: Checks, x: Tensor, gain: Tensor | None, n_groups: int, scale: Tensor | None, q_max: int) -> None:
    check.dtype("x", x, *FLOATS)
    if x.ndim < 1 or n_groups < 1 or x.shape[-1] % n_groups or not x.shape[-1]:
        check.refuse(f"x must be (..., n), n_groups = {n_groups} dividing n (got {tuple(x.shape)})")
    if gain is not None:
        check.shape("gain", gain, x.shape[-1])
        check.alike(x=x, gain=gain)
    if scale is not None:
        check.scale("scale", scale, None)
    check.q_max(q_max)
    check.together(x=x, scale=scale)


def _empty(x: Tensor, scale: Tensor | None) -> Tensor:
    return x.new_empty(x.shape, dtype=x.dtype if scale is None else torch.int8)


@operator(
    f"{OP}(Tensor x, Tensor? gain, float eps, int n_groups, Tensor? scale, int q_max, str impl) -> Tensor",
    lambda x, gain, eps, n_groups, scale, q_max, impl: _empty(x, scale),
)
def _plain(
    x: Tensor, gain: Tensor | None, eps: float, n_groups: int, scale: Tensor | None, q_max: int, impl: str
) -> Tensor:
    run: Callable[..., tuple[Tensor, Tensor | None]] = resolve(OP, impl, x.device, x.dtype)
    return run(x, None, None, None, False, gain, eps, n_groups, scale, q_max)[0]


@operator(
    "add_rms_norm_quantize(Tensor x, Tensor residual, Tensor? gain, float eps, Tensor? scale, int q_max, str impl)"
    " -> (Tensor, Tensor)",
    lambda x, residual, gain, eps, scale, q_max, impl: (_empty(x, scale), x.new_empty(x.shape)),
)
def _added(
    x: Tensor, residual: Tensor, gain: Tensor | None, eps: float, scale: Tensor | None, q_max: int, impl: str
) -> tuple[Tensor, Tensor]:
    run: Callable[..., tuple[Tensor, Tensor]] = resolve(OP, impl, x.device, x.dtype)
    return run(x, residual, None, None, False, gain, eps, 1, scale, q_max)


@operator(
    "gated_rms_norm_quantize(Tensor x, Tensor z, Tensor? z_scale, bool norm_before_gate, Tensor? gain, float eps,"
    " int n_groups, Tensor? scale, int q_max, str impl) -> Tensor",
    lambda x, z, z_scale, norm_before_gate, gain, eps, n_groups, scale, q_max, impl: _empty(x, scale),
)
def _gated(x: Tensor, z: Tensor, z_scale: Tensor | None, norm_before_gate: bool, gain: Tensor | None, eps: float,
           n_groups: int, scale: Tensor | None, q_max: int, impl: str) -> Tensor:  # fmt: skip
    run: Callable[..., tuple[Tensor, Tensor | None]] = resolve(OP, impl, x.device, x.dtype)
    return run(x, None, z, z_scale, norm_before_gate, gain, eps, n_groups, scale, q_max)[0]
