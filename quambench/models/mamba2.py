"""Mamba2's state space duality, in float PyTorch (Dao & Gu 2024, arXiv:2405.21060).

Letters: b batch, l and s positions in a chunk, c chunk, g SSD group, h head in its group,
p channel in its head (head_dim), n state index; A, B, C, D, Δ (dt) as in the paper.
`ssd_sequential` is the definition, `ssd` the chunked algorithm.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from quambench.models.backbone import DepthwiseConv, LayerState, Mixer, RMSNorm, Tap
from quambench.models.config import ModelConfig
from quambench.models.mamba import initial_dt_bias

SSD_BLOCK = 1 << 17  # pairs of positions, over heads and sequences, that are worked on at once


def ssd_sequential(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """The recurrence, one token at a time; also the decoding step (L = 1).

        h_t = exp(Δ_t A) h_{t-1} + Δ_t x_t B_t^T        y_t = h_t C_t

    x (B, L, H, P); dt (B, L, H); A (H), negative; B, C (B, L, G, N); state (B, H, P, N)
    returns y (B, L, H, P), without the D x term, and the last h (B, H, P, N)
    """
    heads_per_group = x.shape[2] // B.shape[2]
    B, C = (m.repeat_interleave(heads_per_group, dim=2) for m in (B, C))
    ys = []
    for t in range(x.shape[1]):
        decay = torch.exp(dt[:, t] * A)[..., None, None]
        drive = (dt[:, t, :, None] * x[:, t])[..., None] * B[:, t, :, None, :]
        state = decay * state + drive
        ys.append((state @ C[:, t, ..., None])[..., 0])
    return torch.stack(ys, dim=1), state


def ssd(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, state: Tensor, chunk: int) -> tuple[Tensor, Tensor]:
    """`ssd_sequential` by chunks: matrix products inside a chunk, a recurrence between chunks.

    A few sequences at a time, so that what lies between the products stays in a cache.
    """
    chunk = min(chunk, x.shape[1])
    at_once = max(1, SSD_BLOCK // (dt[0].numel() * chunk))
    parts = zip(*(m.split(at_once) for m in (x, dt, B, C, state)), strict=True)
    ys, states = zip(*(_ssd_of_few(x, dt, A, B, C, state, chunk) for x, dt, B, C, state in parts), strict=True)
    return torch.cat(ys), torch.cat(states)


def _ssd_of_few(
    x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, state: Tensor, chunk: int
) -> tuple[Tensor, Tensor]:
    """`ssd` with all temporaries at once.

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

    # 2. What each chunk adds to the state by its end.
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

    # 4. What the state at the chunk's start still contributes to each position.
    from_start = total.to(x.dtype).exp()  # (b, c, g, l, h)
    carried = (C @ torch.stack(starts, dim=1).flatten(-2)).unflatten(-1, x_dt.shape[-2:])
    y = torch.addcmul(y, carried, from_start[..., None]).transpose(2, 3)
    y = y.reshape(batch, -1, heads, head_dim)[:, :length]
    return y, state.permute(0, 1, 3, 4, 2).reshape(batch, heads, head_dim, d_state)


class Mamba2Mixer(Mixer):
    """in_proj -> (z, x, B, C, Δ); x, B, C -> conv -> SiLU; SSD; gated norm; out_proj."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        d_inner, heads = config.d_inner, config.n_heads
        self.in_proj = nn.Linear(config.d_model, sum(self.splits), bias=config.proj_bias)
        self.conv1d = DepthwiseConv(config.conv_channels, config.conv_width, config.conv_bias)
        self.dt_bias = nn.Parameter(initial_dt_bias(heads))
        self.A_log = nn.Parameter(torch.log(torch.empty(heads).uniform_(1, 16)))
        self.D = nn.Parameter(torch.ones(d_inner if config.d_per_channel else heads))
        self.norm = RMSNorm(d_inner, config.norm_eps, config.n_groups)
        self.out_proj = nn.Linear(d_inner, config.d_model, bias=config.proj_bias)

    @property
    def splits(self) -> tuple[int, int, int, int, int]:
        """Rows of in_proj for z, x, B, C and Δ."""
        c = self.config
        bc = c.n_groups * c.d_state
        return c.d_inner, c.d_inner, bc, bc, c.n_heads

    def empty_state(self, batch: int) -> LayerState:
        c = self.config
        zeros = self.D.new_zeros
        return LayerState(
            zeros(batch, c.conv_width - 1, c.conv_channels),
            zeros(batch, c.n_heads, c.head_dim, c.d_state),
        )

    def forward(self, hidden: Tensor, state: LayerState | None, tap: Tap) -> tuple[Tensor, LayerState]:
        c = self.config
        before = state or self.empty_state(hidden.shape[0])
        z, x, B, C, dt = self.in_proj(tap("in_proj:input", hidden)).split(self.splits, dim=-1)
        z, dt = tap("z", z), tap("dt", dt)
        xBC = torch.cat([tap("x_conv_in", x), tap("B_conv_in", B), tap("C_conv_in", C)], dim=-1)
        xBC, conv = self.conv1d(xBC, before.conv)
        x, B, C = F.silu(xBC).split(self.splits[1:4], dim=-1)
        x, B, C = tap("x_conv_out", x), tap("B_conv_out", B), tap("C_conv_out", C)

        x = x.unflatten(-1, (c.n_heads, c.head_dim))
        B, C = (m.unflatten(-1, (c.n_groups, c.d_state)) for m in (B, C))
        dt = F.softplus(dt + self.dt_bias).clamp(c.dt_min, c.dt_max)
        A = -torch.exp(self.A_log)
        if state is not None and hidden.shape[1] == 1:
            y, ssm = ssd_sequential(x, dt, A, B, C, before.ssm)
        else:
            y, ssm = ssd(x, dt, A, B, C, before.ssm, c.chunk_size)
        ssm = tap("ssm_state", ssm)
        y = y + x * self.D.view(-1, c.head_dim if c.d_per_channel else 1)
        y = self.gated_norm(y.flatten(-2), z)
        return self.out_proj(tap("out_proj:input", self.out_rotation(y))), LayerState(conv, ssm)

    def gated_norm(self, y: Tensor, z: Tensor) -> Tensor:
        """RMSNorm over each SSD group's channels, the gate SiLU(z) before it or after it."""
        if self.config.norm_before_gate:
            return self.norm(y) * F.silu(z)
        return self.norm(y * F.silu(z))
