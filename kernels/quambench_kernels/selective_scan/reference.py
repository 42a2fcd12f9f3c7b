"""The definition of selective_scan (Gu & Dao 2023, arXiv:2312.00752)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def selective_scan_ref(
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
    """Run the recurrence as the paper writes it, one token at a time.

        Δ_t = softplus(dt_t + dt_bias)    h_t = exp(Δ_t A) h_{t-1} + Δ_t B_t u_t    y_t = (C_t h_t + D u_t) SiLU(z_t)

    u, dt, z (B, L, E); A (E, N), negative; B, C (B, L, N); D, dt_bias (E); state (B, E, N)
    dt_bias None: dt is Δ itself; z None: y is not gated
    returns y (B, L, E) and the last h (B, E, N)
    """
    dt = step_sizes(dt, dt_bias)
    ys = []
    for t in range(u.shape[1]):
        decay = torch.exp(dt[:, t, :, None] * A)
        state = decay * state + (dt[:, t] * u[:, t])[..., None] * B[:, t, None, :]
        ys.append((state * C[:, t, None, :]).sum(-1) + D * u[:, t])
    return gated(torch.stack(ys, dim=1), z), state


def step_sizes(dt: Tensor, dt_bias: Tensor | None) -> Tensor:
    """Return Δ: softplus(dt + dt_bias), or dt itself without a bias."""
    return dt if dt_bias is None else F.softplus(dt + dt_bias)


def gated(y: Tensor, z: Tensor | None) -> Tensor:
    """Return y SiLU(z), or y itself without a gate."""
    return y if z is None else y * F.silu(z)
