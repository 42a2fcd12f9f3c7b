"""Mamba's selective state space, in float PyTorch (Gu & Dao 2023, arXiv:2312.00752).

Letters: B batch, L sequence, E inner width, N d_state, and the paper's A, B, C, D, Δ (dt).
The scan stands here three times: `selective_scan_sequential` is the definition, and `selective_scan`
the same function in two arrangements, one to train with and one to evaluate with.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from quambench.models.backbone import DepthwiseConv, LayerState, Mixer, Tap
from quambench.models.config import ModelConfig

SCAN_CHUNK = 32  # steps whose exponentials are taken in one call in training; bounds memory at B*32*E*N
SCAN_BLOCK = 1 << 17  # exponentials taken in one call in evaluation: as many as stay in a cache until they are used


def selective_scan_sequential(
    u: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, state: Tensor
) -> tuple[Tensor, Tensor]:
    """The recurrence as the paper writes it, one token at a time.

        h_t = exp(Δ_t A) h_{t-1} + Δ_t B_t u_t        y_t = C_t h_t + D u_t

    u, dt (B, L, E); A (E, N), negative; B, C (B, L, N); D (E); state (B, E, N)
    returns y (B, L, E) and the last h (B, E, N)
    """
    ys = []
    for t in range(u.shape[1]):
        decay = torch.exp(dt[:, t, :, None] * A)
        state = decay * state + (dt[:, t] * u[:, t])[..., None] * B[:, t, None, :]
        ys.append((state * C[:, t, None, :]).sum(-1) + D * u[:, t])
    return torch.stack(ys, dim=1), state


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


def selective_scan(
    u: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, state: Tensor
) -> tuple[Tensor, Tensor]:
    """`selective_scan_sequential` as a CPU runs it fast; which way, only gradients decide."""
    inputs = (u, dt, A, B, C, D, state)
    recorded = torch.is_grad_enabled() and any(x.requires_grad for x in inputs)
    return (_scan_by_chunks if recorded else _scan_in_place)(*inputs)


def _scan_by_chunks(
    u: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, state: Tensor
) -> tuple[Tensor, Tensor]:
    """With gradients: exponentials and products of SCAN_CHUNK steps at once, every state kept."""
    drive_u = dt * u
    ys = []
    for start in range(0, u.shape[1], SCAN_CHUNK):
        part = slice(start, start + SCAN_CHUNK)
        decay = torch.exp(dt[:, part, :, None] * A)
        drive = drive_u[:, part, :, None] * B[:, part, None, :]
        states = _LinearRecurrence.apply(decay, drive, state)
        ys.append((states @ C[:, part, :, None])[..., 0])
        state = states[:, -1]
    return torch.addcmul(torch.cat(ys, dim=1), u, D), state


def _scan_in_place(
    u: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, state: Tensor
) -> tuple[Tensor, Tensor]:
    """Without gradients: one state, overwritten from step to step, and one buffer of exponentials.

    Inside, the state lies as (B, N, E): with the long axis innermost every product is a vector
    instruction, and y a product of a row and a matrix. The state returned is a (B, E, N) view of
    it, which the next call finds as it wants it.
    """
    (batch, length, width), n = u.shape, A.shape[1]
    u, dt, B, C = (x.transpose(0, 1).contiguous() for x in (u, dt, B, C))  # time first
    state = state.transpose(1, 2).clone(memory_format=torch.contiguous_format)
    ys = u.new_empty(length, batch, 1, width)
    steps = zip((dt * u)[:, :, None], B[..., None], C[:, :, None], ys, strict=True)
    block = min(length, max(1, SCAN_BLOCK // state.numel()))
    buffer = u.new_empty(block, batch, n, width)
    A = A.t().contiguous()
    for dts in dt[:, :, None].split(block):
        for decay in torch.mul(dts, A, out=buffer[: len(dts)]).exp_():
            drive_u, b, c, y = next(steps)
            state.mul_(decay).addcmul_(drive_u, b)
            torch.bmm(c, state, out=y)
    return torch.addcmul(ys[:, :, 0], u, D).transpose(0, 1), state.transpose(1, 2)


class MambaMixer(Mixer):
    """in_proj -> (x, z); x -> conv -> SiLU -> x_proj -> (Δ_low, B, C); scan; gate by SiLU(z); out_proj."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        d_inner, rank, n = config.d_inner, config.dt_rank, config.d_state
        self.in_proj = nn.Linear(config.d_model, 2 * d_inner, bias=config.proj_bias)
        self.conv1d = DepthwiseConv(d_inner, config.conv_width, config.conv_bias)
        self.x_proj = nn.Linear(d_inner, rank + 2 * n, bias=False)
        self.dt_proj = nn.Linear(rank, d_inner)
        self.A_log = nn.Parameter(torch.log(torch.arange(1.0, n + 1)).repeat(d_inner, 1))
        self.D = nn.Parameter(torch.ones(d_inner))
        self.out_proj = nn.Linear(d_inner, config.d_model, bias=config.proj_bias)
        nn.init.uniform_(self.dt_proj.weight, -(rank**-0.5), rank**-0.5)
        self.dt_proj.bias.data = initial_dt_bias(d_inner)

    def empty_state(self, batch: int) -> LayerState:
        c = self.config
        zeros = self.D.new_zeros
        return LayerState(zeros(batch, c.conv_width - 1, c.d_inner), zeros(batch, c.d_inner, c.d_state))

    def forward(self, hidden: Tensor, state: LayerState | None, tap: Tap) -> tuple[Tensor, LayerState]:
        c = self.config
        before = state or self.empty_state(hidden.shape[0])
        xz = tap("in_proj:output", self.in_proj(tap("in_proj:input", hidden)))
        x, z = xz.chunk(2, dim=-1)
        x, conv = self.conv1d(x, before.conv)
        x = tap("x_proj:input", F.silu(x))
        low = tap("x_proj:output", self.x_proj(x))
        dt_low, B, C = low.split([c.dt_rank, c.d_state, c.d_state], dim=-1)
        dt = tap("dt_proj:output", F.linear(dt_low, self.dt_proj.weight))
        dt = F.softplus(dt + self.dt_proj.bias)
        y, ssm = selective_scan(x, dt, -torch.exp(self.A_log), B, C, self.D, before.ssm)
        ssm = tap("ssm_state", ssm)
        y = tap("out_proj:input", self.out_rotation(y * F.silu(z)))
        return self.out_proj(y), LayerState(conv, ssm)


def initial_dt_bias(width: int, low: float = 1e-3, high: float = 0.1, floor: float = 1e-4) -> Tensor:
    """Bias whose softplus is log-uniform in [low, high]: both papers' initialisation of Δ."""
    dt = torch.exp(torch.rand(width) * math.log(high / low) + math.log(low)).clamp(min=floor)
    return dt + torch.log(-torch.expm1(-dt))
