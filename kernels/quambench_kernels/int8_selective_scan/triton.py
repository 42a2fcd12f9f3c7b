"""int8_selective_scan in Triton: selective_scan's kernel, which reads integers where it is given scales."""

from __future__ import annotations

import torch
from torch import Tensor

from quambench_kernels.selective_scan.triton import run
from quambench_kernels.triton_common import scale_step


def int8_selective_scan(
    u_q: Tensor,
    u_scale: Tensor,
    dt_q: Tensor,
    dt_scale: Tensor,
    A: Tensor,
    B_q: Tensor,
    B_scale: Tensor,
    C_q: Tensor,
    C_scale: Tensor,
    D: Tensor,
    dt_bias: Tensor,
    z_q: Tensor,
    z_scale: Tensor,
    state_q: Tensor,
    state_scale: Tensor,
    q_max: int,
) -> tuple[Tensor, Tensor]:
    """Compute int8_selective_scan_ref, with its signature."""
    steps = state_scale.expand(A.shape).stride()
    return run(
        u_q, u_scale, dt_q, (dt_scale, scale_step(dt_scale)), A, B_q, B_scale, C_q, C_scale, D, dt_bias, z_q,
        (z_scale, scale_step(z_scale)), state_q, (state_scale, steps[0], steps[1]), q_max, torch.float32,
    )  # fmt: skip
