"""rms_norm_quantize in Triton: plain, after adding to the residual stream, or gated; read once, written once."""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators
# Triton reads the annotations of kernels, and knows constexpr alone.

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from quambench_kernels.triton_common import ceil_power, dense_last, launch, on_grid, read, scale_of, scale_step, silu


@triton.jit
def rms_norm_quantize_kernel(
    x, x_stride, residual, residual_stride, total, z, z_stride, z_scale,
    z_step, gain, scale, out, groups, part, count, eps, q_max,
    NORM_FIRST: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Compute one group of a row: `part` channels; `count` is that number as a float. Arguments that are None are
    left out.
    """
    row, group = (tl.program_id(0) // groups).to(tl.int64), tl.program_id(0) % groups
    inside = tl.arange(0, BLOCK) < part
    channel = group * part + tl.arange(0, BLOCK)
    to = row * (groups * part) + channel
    v = read(x + row * x_stride + channel, inside, None)
    if residual is not None:
        added = (v + read(residual + row * residual_stride + channel, inside, None)).to(total.dtype.element_ty)
        tl.store(total + to, added, mask=inside)
        v = added.to(tl.float32)  # the stored sum is the one that is normed
    if z is not None:
        of_z = None if z_scale is None else scale_of(z_scale, z_step, channel, inside)
        gate = silu(read(z + row * z_stride + channel, inside, of_z))
        v = v if NORM_FIRST else v * gate
    v = v * tl.div_rn(1.0, tl.sqrt_rn(tl.div_rn(tl.sum(v * v), count) + eps))
    if gain is not None:
        v *= read(gain + channel, inside, None)
    if z is not None:
        v = v * gate if NORM_FIRST else v
    if scale is None:
        tl.store(out + to, v.to(out.dtype.element_ty), mask=inside)
    else:
        tl.store(out + to, on_grid(v, tl.load(scale), q_max), mask=inside)


def rms_norm_quantize(
    x: Tensor,
    residual: Tensor | None,
    z: Tensor | None,
    z_scale: Tensor | None,
    norm_before_gate: bool,
    gain: Tensor | None,
    eps: float,
    n_groups: int,
    scale: Tensor | None,
    q_max: int,
) -> tuple[Tensor, Tensor | None]:
    """Compute rms_norm_quantize_ref, with its signature."""
    rows, before, gate = (None if m is None else dense_last(m) for m in (x, residual, z))
    assert rows is not None
    gain = None if gain is None else gain.contiguous()
    total = None if residual is None else torch.empty(x.shape, dtype=x.dtype, device=x.device)
    out = torch.empty(x.shape, dtype=x.dtype if scale is None else torch.int8, device=x.device)
    part = x.shape[-1] // n_groups
    block = ceil_power(part)
    launch(
        rms_norm_quantize_kernel, (len(rows) * n_groups,), rows, rows.stride(0), before, _stride(before), total, gate,
        _stride(gate), z_scale, scale_step(z_scale), gain, scale, out, n_groups, part, float(part), eps, float(q_max),
        NORM_FIRST=norm_before_gate, BLOCK=block, warps=min(16, max(1, block // 512)),
    )  # fmt: skip
    return out, total


def _stride(rows: Tensor | None) -> int:
    return 0 if rows is None else rows.stride(0)
