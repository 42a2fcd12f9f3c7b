"""The fastest form of selective_scan in plain PyTorch, in any floating dtype on any device."""

from __future__ import annotations

import torch
from torch import Tensor

from quambench_kernels.selective_scan.reference import gated, step_sizes

BLOCK = 1 << 17  # exponentials taken in one call: as many as stay in a cache until they are used


def in_place(
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
    """Compute selective_scan_ref, with its signature.

    There is one state, overwritten from step to step, and one buffer of exponentials. Inside, the state lies as
    (B, N, E): with the long axis innermost every product is a vector instruction, and y a product of a row and a
    matrix. The state returned is a (B, E, N) view of it, which the next call finds as it wants it.
    """
    gate = z
    dt = step_sizes(dt, dt_bias)
    (batch, length, width), n = u.shape, A.shape[1]
    u, dt, B, C = (x.transpose(0, 1).contiguous() for x in (u, dt, B, C))  # time first
    state = state.transpose(1, 2).clone(memory_format=torch.contiguous_format)
    ys = u.new_empty(length, batch, 1, width)
    steps = zip((dt * u)[:, :, None], B[..., None], C[:, :, None], ys, strict=True)
    block = min(length, max(1, BLOCK // state.numel()))
    buffer = u.new_empty(block, batch, n, width)
    A = A.t().contiguous()
    for dts in dt[:, :, None].split(block):
        for decay in torch.mul(dts, A, out=buffer[: len(dts)]).exp_():
            drive_u, b, c, y = next(steps)
            state.mul_(decay).addcmul_(drive_u, b)
            torch.bmm(c, state, out=y)
    return gated(torch.addcmul(ys[:, :, 0], u, D).transpose(0, 1), gate), state.transpose(1, 2)
