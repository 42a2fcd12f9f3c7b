"""The form of ssd by chunks in PyTorch, in any floating dtype: products inside a chunk, a recurrence between chunks.

Letters: b batch, l and s positions in a chunk, c chunk, g SSD group, h head in its group, p channel in its
head (head_dim), n state index.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from quambench_kernels.ssd.reference import ssd_ref, step_sizes, with_skip

BLOCK = 1 << 17  # pairs of positions, over heads and sequences, that are worked on at once


def by_chunks(
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
    """Compute ssd_ref, with its signature, by chunks; one position is ssd_ref itself. Differentiable."""
    if x.shape[1] == 1:
        return ssd_ref(x, dt, A, B, C, D, state, dt_bias, dt_min, dt_max, chunk)
    y, after = chunked(x, step_sizes(dt, dt_bias, dt_min, dt_max), A, B, C, state, chunk)
    return with_skip(y, x, D), after


def chunked(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, state: Tensor, chunk: int) -> tuple[Tensor, Tensor]:
    """Compute the scan alone, dt being Δ; a few sequences at a time, so that all temporaries stay in a cache."""
    chunk = min(chunk, x.shape[1])
    at_once = max(1, BLOCK // (dt[0].numel() * chunk))
    parts = zip(*(m.split(at_once) for m in (x, dt, B, C, state)), strict=True)
    ys, states = zip(*(_of_few(x, dt, A, B, C, state, chunk) for x, dt, B, C, state in parts), strict=True)
    return torch.cat(ys), torch.cat(states)


def _of_few(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, state: Tensor, chunk: int) -> tuple[Tensor, Tensor]:
    """Compute `chunked` with all temporaries at once.

    A sequence that no chunk divides is padded with Δ = 0, which neither decays nor drives the
    state. Sums of Δ A are taken in float64: their differences are exponents, where the rounding of
    a long float32 sum would show.
    """
    batch, length, heads, head_dim = x.shape
    groups, d_state = B.shape[2:]
    pad = -length % chunk
    x_dt = F.pad(x * dt[..., None], (0, 0, 0, 0, 0, pad)).view(batch, -1, chunk, groups, heads // groups, head_dim)
    x_dt = x_dt.transpose(2, 3)  # (b, c, g, l, h, p)
    B, C = (F.pad(m, (0, 0, 0, 0, 0, pad)).view(batch, -1, chunk, groups, d_state).transpose(2, 3) for m in (B, C))
    log_decay = F.pad(dt.double() * A.double(), (0, 0, 0, pad))
    total = log_decay.view(batch, -1, chunk, groups, heads // groups).transpose(2, 3).cumsum(3)  # (b, c, g, l, h)

    # 1. Inside each chunk: position s acts on position l >= s, decayed by what lies between.
    by_head = total.transpose(3, 4)  # (b, c, g, h, l)
    between = (by_head[..., :, None] - by_head[..., None, :]).to(x.dtype)  # (b, c, g, h, l, s)
    future = torch.ones(chunk, chunk, dtype=torch.bool, device=x.device).triu(1)
    mixing = between.masked_fill_(future, -torch.inf).exp() * (C @ B.mT)[:, :, :, None]
    y = (mixing @ x_dt.transpose(3, 4)).transpose(3, 4)

    # 2. Each chunk's addition to the state by its end.
    to_end = (total[..., -1:, :] - total).to(x.dtype).exp()  # (b, c, g, l, h)
    added = B.mT @ (x_dt * to_end[..., None]).flatten(-2)
    added = added.unflatten(-1, x_dt.shape[-2:])  # (b, c, g, n, h, p)

    # 3. The state at each chunk's start, from chunk to chunk.
    across = total[..., -1, :].to(x.dtype).exp()[..., None, :, None]  # (b, c, g, 1, h, 1)
    state = state.view(batch, groups, heads // groups, head_dim, d_state).permute(0, 1, 4, 2, 3)
    starts = []
    for c in range(added.shape[1]):
        starts.append(state)
        state = across[:, c] * state + added[:, c]

    # 4. The contribution to each position of the state at the chunk's start.
    from_start = total.to(x.dtype).exp()  # (b, c, g, l, h)
    carried = (C @ torch.stack(starts, dim=1).flatten(-2)).unflatten(-1, x_dt.shape[-2:])
    y = torch.addcmul(y, carried, from_start[..., None]).transpose(2, 3)
    y = y.reshape(batch, -1, heads, head_dim)[:, :length]
    return y, state.permute(0, 1, 3, 4, 2).reshape(batch, heads, head_dim, d_state)
