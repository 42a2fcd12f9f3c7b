"""The definition of ssd (Dao & Gu 2024, arXiv:2405.21060)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def ssd_ref(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    state: Tensor,
    dt_bias: Tensor | None,
    dt_min: float,
    dt_max: float,
    chunk: int,
) -> tuple[Tensor, Tensor]:
    """Run the recurrence, one token at a time.

        Δ_t = clamp(softplus(dt_t + dt_bias))    h_t = exp(Δ_t A) h_{t-1} + Δ_t x_t B_t^T    y_t = h_t C_t + D x_t

    x (B, L, H, P); dt (B, L, H); A (H), negative; B, C (B, L, G, N); D (H) or (H, P); dt_bias (H); state (B, H, P, N)
    dt_bias None: dt is Δ itself; D None: nothing is added; chunk is for implementations that work by chunks
    returns y (B, L, H, P) and the last h (B, H, P, N)
    """
    dt = step_sizes(dt, dt_bias, dt_min, dt_max)
    heads_per_group = x.shape[2] // B.shape[2]
    B, C = (m.repeat_interleave(heads_per_group, dim=2) for m in (B, C))
    ys = []
    for t in range(x.shape[1]):
        decay = torch.exp(dt[:, t] * A)[..., None, None]
        drive = (dt[:, t, :, None] * x[:, t])[..., None] * B[:, t, :, None, :]
        state = decay * state + drive
        ys.append((state @ C[:, t, ..., None])[..., 0])
    return with_skip(torch.stack(ys, dim=1), x, D), state


def step_sizes(dt: Tensor, dt_bias: Tensor | None, dt_min: float, dt_max: float) -> Tensor:
    """Return Δ: clamp(softplus(dt + dt_bias)), or dt itself without a bias."""
    return dt if dt_bias is None else F.softplus(dt + dt_bias).clamp(dt_min, dt_max)


def with_skip(y: Tensor, x: Tensor, D: Tensor | None) -> Tensor:
    """Return y + D x, or y itself without D."""
    return y if D is None else y + x * (D[:, None] if D.ndim == 1 else D)
