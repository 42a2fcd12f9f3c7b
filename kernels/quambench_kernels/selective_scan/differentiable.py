"""The form of selective_scan with a backward, which runs where autograd records."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from quambench_kernels.selective_scan.reference import gated, step_sizes

CHUNK = 32  # steps whose exponentials are taken in one call; bounds memory at B * CHUNK * E * N


class _LinearRecurrence(torch.autograd.Function):
    """h_t = decay_t * h_{t-1} + drive_t over axis 1, with the backward recurrence written by hand.

    Autograd through an indexed loop makes a full-size zero gradient per step (quadratic); here
    backward is the same loop run from the end: g_t = grad_t + decay_{t+1} g_{t+1}.
    """

    @staticmethod
    def forward(ctx: Any, decay: Tensor, drive: Tensor, initial: Tensor) -> Tensor:
        states = torch.empty_like(drive)
        previous = initial
        for a, b, out in zip(decay.unbind(1), drive.unbind(1), states.unbind(1), strict=True):
            previous = torch.addcmul(b, a, previous, out=out)
        ctx.save_for_backward(decay, states, initial)
        return states

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        decay, states, initial = ctx.saved_tensors
        total = torch.empty_like(grad)
        later = torch.zeros_like(initial)
        for t in range(grad.shape[1] - 1, -1, -1):
            later = torch.add(grad[:, t], later, out=total[:, t])
            later = later * decay[:, t]
        before = torch.cat([initial[:, None], states[:, :-1]], dim=1)
        return total * before, total, later


def differentiable(
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
    """Compute selective_scan_ref, with its signature; exponentials and products of CHUNK steps at once, all states
    kept.
    """
    dt = step_sizes(dt, dt_bias)
    drive_u = dt * u
    ys = []
    for start in range(0, u.shape[1], CHUNK):
        part = slice(start, start + CHUNK)
        decay = torch.exp(dt[:, part, :, None] * A)
        drive = drive_u[:, part, :, None] * B[:, part, None, :]
        states = _LinearRecurrence.apply(decay, drive, state)  # type: ignore[no-untyped-call]
        ys.append((states @ C[:, part, :, None])[..., 0])
        state = states[:, -1]
    return gated(torch.addcmul(torch.cat(ys, dim=1), u, D), z), state
