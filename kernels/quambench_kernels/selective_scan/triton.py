"""selective_scan in Triton, from floats or from integers: int8_selective_scan is the same kernel with scales."""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators
# Triton reads the annotations of kernels, and knows constexpr alone.

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from quambench_kernels.checks import dense_rows
from quambench_kernels.triton_common import ceil_power, exp, launch, on_grid, read, scale_of, silu, softplus


@triton.jit
def selective_scan_kernel(
    u, u_sb, u_st, u_scale, dt, dt_sb, dt_st, dt_scale, dt_step,
    A, B, B_sb, B_st, B_scale, C, C_sb, C_st, C_scale, D,
    dt_bias, z, z_sb, z_st, z_scale, z_step,
    state, state_scale, scale_se, scale_sn, y, after, length, width,
    d_state, q_max, BE: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """Scan BE channels of a sequence: their states (BE, BN) stay in registers, and positions follow each other.

    u, dt, z (B, L, E), B, C (B, L, N) by their strides; A (E, N), D, dt_bias (E), state and after (B, E, N), y dense.
    Integers where there are scales: u_scale, B_scale, C_scale one, dt_scale and z_scale by steps of 0 or 1, the state's
    at e scale_se + n scale_sn. dt_bias and z may be None. A position's inputs are read while the one before is
    worked on.
    """
    b = tl.program_id(0).to(tl.int64)
    e, n = tl.program_id(1) * BE + tl.arange(0, BE), tl.arange(0, BN)
    in_e, in_n = e < width, n < d_state
    both = in_e[:, None] & in_n[None, :]
    at = b * width * d_state + e[:, None] * d_state + n[None, :]
    grid = None if state_scale is None else tl.load(
        state_scale + e[:, None] * scale_se + n[None, :] * scale_sn, mask=both, other=1.0
    )  # fmt: skip
    h = read(state + at, both, grid)
    a = read(A + e[:, None] * d_state + n[None, :], both, None)
    skip = read(D + e, in_e, None)
    bias = None if dt_bias is None else read(dt_bias + e, in_e, None)
    of_u = None if u_scale is None else tl.load(u_scale)
    of_B = None if B_scale is None else tl.load(B_scale)
    of_C = None if C_scale is None else tl.load(C_scale)
    of_dt = None if dt_scale is None else scale_of(dt_scale, dt_step, e, in_e)
    of_z = None if z_scale is None else scale_of(z_scale, z_step, e, in_e)
    us, dts, zs = u + b * u_sb + e, dt + b * dt_sb + e, u if z is None else z + b * z_sb + e
    Bs, Cs = B + b * B_sb + n, C + b * C_sb + n
    ys = y + b * length * width + e

    drive, step = read(us, in_e, of_u), read(dts, in_e, of_dt)
    b_row, c_row = read(Bs, in_n, of_B), read(Cs, in_n, of_C)
    gate = drive if z is None else read(zs, in_e, of_z)
    for t in range(length):
        more = tl.minimum(length - 1 - t, 1)  # the last position is read once more after itself, and not used
        us += more * u_st
        dts += more * dt_st
        Bs += more * B_st
        Cs += more * C_st
        next_drive, next_step = read(us, in_e, of_u), read(dts, in_e, of_dt)
        next_b, next_c = read(Bs, in_n, of_B), read(Cs, in_n, of_C)
        next_gate = next_drive
        if z is not None:
            zs += more * z_st
            next_gate = read(zs, in_e, of_z)

        delta = step if bias is None else softplus(step + bias)
        h = exp(delta[:, None] * a) * h + (delta * drive)[:, None] * b_row[None, :]
        out = tl.sum(h * c_row[None, :], axis=1) + skip * drive
        if z is not None:
            out *= silu(gate)
        tl.store(ys, out.to(y.dtype.element_ty), mask=in_e)
        ys += width
        drive, step, b_row, c_row, gate = next_drive, next_step, next_b, next_c, next_gate

    if state_scale is None:
        tl.store(after + at, h.to(after.dtype.element_ty), mask=both)
    else:
        tl.store(after + at, on_grid(h, grid, q_max), mask=both)


def selective_scan(
    u: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    state: Tensor,
    dt_bias: Tensor | None,
    z: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Compute selective_scan_ref, with its signature."""
    none = None, 0
    return run(u, None, dt, none, A, B, None, C, None, D, dt_bias, z, none, state, (None, 0, 0), 0, u.dtype)


def run(
    u: Tensor,
    u_scale: Tensor | None,
    dt: Tensor,
    dt_scale: tuple[Tensor | None, int],
    A: Tensor,
    B: Tensor,
    B_scale: Tensor | None,
    C: Tensor,
    C_scale: Tensor | None,
    D: Tensor,
    dt_bias: Tensor | None,
    z: Tensor | None,
    z_scale: tuple[Tensor | None, int],
    state: Tensor,
    state_scale: tuple[Tensor | None, int, int],
    q_max: int,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:
    """Start the kernel. Scales come with their steps; dtype is y's."""
    u, dt, B, C = (dense_rows(x) for x in (u, dt, B, C))
    z = None if z is None else dense_rows(z)
    A, D, state = (x.contiguous() for x in (A, D, state))
    dt_bias = None if dt_bias is None else dt_bias.contiguous()
    y, after = torch.empty(u.shape, dtype=dtype, device=u.device), torch.empty_like(state)
    (batch, length, width), d_state = u.shape, A.shape[1]
    if not length:
        return y, state.clone()
    tile = _tile(width, d_state)
    launch(
        selective_scan_kernel, (batch, -(-width // tile["BE"])), u, *u.stride()[:2], u_scale, dt, *dt.stride()[:2],
        *dt_scale, A, B, *B.stride()[:2], B_scale, C, *C.stride()[:2], C_scale, D, dt_bias,
        z, *((0, 0) if z is None else z.stride()[:2]), *z_scale, state, *state_scale, y, after, length, width, d_state,
        float(q_max), **tile,
    )  # fmt: skip
    return y, after


def _tile(width: int, d_state: int) -> dict[str, Any]:
    """Return the tile: a warp has at most 16 channels and 16 states to a lane, since many programs matter most."""
    across = ceil_power(d_state)
    return {"BE": min(ceil_power(width), max(1, min(16, 512 // across))), "BN": across, "warps": 1}
