"""int8_ssd in Triton: ssd's kernel, which reads integers where it is given scales."""

from __future__ import annotations

import torch
from torch import Tensor

from quambench_kernels.ssd.triton import run
from quambench_kernels.triton_common import scale_step


def int8_ssd(
    x_q: Tensor,
    x_scale: Tensor,
    dt_q: Tensor,
    dt_scale: Tensor,
    A: Tensor,
    B_q: Tensor,
    B_scale: Tensor,
    C_q: Tensor,
    C_scale: Tensor,
    D: Tensor,
    dt_bias: Tensor,
    state_q: Tensor,
    state_scale: Tensor,
    dt_min: float,
    dt_max: float,
    chunk: int,
    q_max: int,
) -> tuple[Tensor, Tensor]:
    """Compute int8_ssd_ref, with its signature. It has no use for chunks."""
    scales = tuple((scale, scale_step(scale)) for scale in (x_scale, dt_scale, B_scale, C_scale))
    of_h, of_p, of_n = state_scale.expand(state_q.shape[1:]).stride()
    return run(
        x_q, dt_q, A, B_q, C_q, D, state_q, dt_bias, dt_min, dt_max, scales, (state_scale, of_h, of_p, of_n), q_max,
        torch.float32,
    )  # fmt: skip
