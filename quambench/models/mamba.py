"""Mamba's mixer, in float PyTorch (Gu & Dao 2023, arXiv:2312.00752).

Letters: A, B, C, D and Δ (dt) as in the paper. The scan itself is an operation of quambench_kernels.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from quambench_kernels.selective_scan import selective_scan
from torch import Tensor, nn

from quambench.models.architecture import ARCHITECTURES, FLOAT, PRODUCT, Architecture, Site
from quambench.models.backbone import DepthwiseConv, LayerState, Mixer, Tap, parameter
from quambench.models.config import ModelConfig


class MambaMixer(Mixer):
    """in_proj -> (x, z); x -> conv -> SiLU -> x_proj -> (Δ_low, B, C); scan; gate by SiLU(z); out_proj."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        d_inner, rank, n = config.d_inner, config.dt_rank, config.d_state
        self.in_proj = nn.Linear(config.d_model, 2 * d_inner, bias=config.proj_bias)
        self.conv1d = DepthwiseConv(d_inner, config.conv_width, config.conv_bias)
        self.x_proj = nn.Linear(d_inner, rank + 2 * n, bias=False)
        self.dt_proj = nn.Linear(rank, d_inner)
        self.A_log = parameter((d_inner, n), lambda: torch.log(torch.arange(1.0, n + 1)).repeat(d_inner, 1))
        self.D = nn.Parameter(torch.ones(d_inner))
        self.out_proj = nn.Linear(d_inner, config.d_model, bias=config.proj_bias)
        nn.init.uniform_(self.dt_proj.weight, -(rank**-0.5), rank**-0.5)
        self.dt_proj.bias = parameter((d_inner,), lambda: initial_dt_bias(d_inner))

    def empty_state(self, batch: int) -> LayerState:
        c = self.config
        conv, ssm = self.conv1d.weight.new_zeros, self.D.new_zeros
        return LayerState(conv(batch, c.conv_width - 1, c.d_inner), ssm(batch, c.d_inner, c.d_state))

    def forward(self, hidden: Tensor, state: LayerState | None, tap: Tap) -> tuple[Tensor, LayerState]:
        c = self.config
        before = state or self.empty_state(hidden.shape[0])
        xz = tap("in_proj:output", self.in_proj(tap("in_proj:input", hidden)))
        x, z = xz.chunk(2, dim=-1)
        x, conv = self.conv1d(x, before.conv)
        x = tap("x_proj:input", x)
        low = tap("x_proj:output", self.x_proj(x))
        dt_low, B, C = low.split([c.dt_rank, c.d_state, c.d_state], dim=-1)
        dt = tap("dt_proj:output", F.linear(dt_low, self.dt_proj.weight))
        A = -torch.exp(self.A_log)
        y, ssm = selective_scan(x, dt, A, B, C, self.D, before.ssm, dt_bias=self.dt_proj.bias, z=z)
        ssm = tap("ssm_state", ssm)
        y = tap("out_proj:input", self.out_rotation(y))
        return self.out_proj(y), LayerState(conv, ssm)


def initial_dt_bias(width: int, low: float = 1e-3, high: float = 0.1, floor: float = 1e-4) -> Tensor:
    """Return a bias (width,) whose softplus is log-uniform in [low, high]: both papers' initialisation of Δ."""
    dt = torch.exp(torch.rand(width) * math.log(high / low) + math.log(low)).clamp(min=floor)
    return dt + torch.log(-torch.expm1(-dt))


def _shapes(c: ModelConfig) -> dict[str, tuple[int, ...]]:
    return {
        "in_proj:input": (c.d_model,),
        "in_proj:output": (2 * c.d_inner,),
        "x_proj:input": (c.d_inner,),
        "x_proj:output": (c.dt_rank + 2 * c.d_state,),
        "dt_proj:output": (c.d_inner,),
        "ssm_state": (c.d_inner, c.d_state),
        "out_proj:input": (c.d_inner,),
    }


ARCHITECTURES.add(
    "mamba",
    Architecture(
        name="mamba",
        title="Mamba",
        mixer=MambaMixer,
        sites=(
            Site("in_proj:input", "normed hidden, B·L·D", "running_max", ("tensor",), PRODUCT),
            Site("in_proj:output", "x and z together, B·L·2E", "running_max", ("tensor", "split", "channel"), FLOAT),
            Site("x_proj:input", "x after conv and SiLU, B·L·E", "case", ("tensor",), PRODUCT),
            Site(
                "x_proj:output",
                "Δ_low, B and C together, B·L·(R+2N)",
                "running_max",
                ("tensor", "split"),
                "an INT8 matrix product, which takes one scale for all of Δ_low",
            ),
            Site("dt_proj:output", "Δ before bias and softplus, B·L·E", "running_max", ("tensor", "channel"), FLOAT),
            Site("ssm_state", "state, B·E·N", "case", ("tensor", "channel", "channel_state"), FLOAT),
            Site("out_proj:input", "y after gate and Hadamard, B·L·E", "running_max", ("tensor",), PRODUCT),
        ),
        shapes=_shapes,
        scan_input="x_proj:input",
        has_heads=False,
        quamba_keys={
            "in_proj:input": ("in_proj:input",),
            "in_proj:output": ("in_proj:output",),
            "x_proj:input": ("x_proj:input",),
            "x_proj:output": ("x_proj:output",),
            "dt_proj:output": ("dt_proj:output",),
            "ssm_state": ("ssm_state_act:input",),
            "out_proj:input": ("out_proj:input",),
        },
    ),
)
