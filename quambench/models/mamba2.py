"""Mamba2's mixer, in float PyTorch (Dao & Gu 2024, arXiv:2405.21060).

Letters: A, B, C, D and Δ (dt) as in the paper. The state space duality itself is an operation of quambench_kernels.
"""

from __future__ import annotations

from typing import Any

import torch
from quambench_kernels.rms_norm_quantize import gated_rms_norm_quantize
from quambench_kernels.ssd import ssd
from torch import Tensor, nn

from quambench.models.architecture import ARCHITECTURES, FLOAT, PRODUCT, Architecture, Site
from quambench.models.backbone import DepthwiseConv, LayerState, Mixer, RMSNorm, Tap, parameter
from quambench.models.config import ModelConfig
from quambench.models.mamba import initial_dt_bias


class Mamba2Mixer(Mixer):
    """in_proj -> (z, x, B, C, Δ); x, B, C -> conv -> SiLU; SSD; gated norm; out_proj."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        d_inner, heads = config.d_inner, config.n_heads
        self.in_proj = nn.Linear(config.d_model, sum(self.splits), bias=config.proj_bias)
        self.conv1d = DepthwiseConv(config.conv_channels, config.conv_width, config.conv_bias)
        self.dt_bias = parameter((heads,), lambda: initial_dt_bias(heads))
        self.A_log = parameter((heads,), lambda: torch.log(torch.empty(heads).uniform_(1, 16)))
        self.D = nn.Parameter(torch.ones(d_inner if config.d_per_channel else heads))
        self.norm = RMSNorm(d_inner, config.norm_eps, config.n_groups)
        self.out_proj = nn.Linear(d_inner, config.d_model, bias=config.proj_bias)

    @property
    def splits(self) -> tuple[int, int, int, int, int]:
        """The rows of in_proj for z, x, B, C and Δ."""
        return projected_widths(self.config)

    def empty_state(self, batch: int) -> LayerState:
        c = self.config
        conv, ssm = self.conv1d.weight.new_zeros, self.D.new_zeros
        return LayerState(
            conv(batch, c.conv_width - 1, c.conv_channels),
            ssm(batch, c.n_heads, c.head_dim, c.d_state),
        )

    def forward(self, hidden: Tensor, state: LayerState | None, tap: Tap) -> tuple[Tensor, LayerState]:
        c = self.config
        before = state or self.empty_state(hidden.shape[0])
        z, x, B, C, dt = self.in_proj(tap("in_proj:input", hidden)).split(self.splits, dim=-1)
        z, dt = tap("z", z), tap("dt", dt)
        xBC = torch.cat([tap("x_conv_in", x), tap("B_conv_in", B), tap("C_conv_in", C)], dim=-1)
        xBC, conv = self.conv1d(xBC, before.conv)
        x, B, C = xBC.split(self.splits[1:4], dim=-1)
        x, B, C = tap("x_conv_out", x), tap("B_conv_out", B), tap("C_conv_out", C)

        x = x.unflatten(-1, (c.n_heads, c.head_dim))
        B, C = (m.unflatten(-1, (c.n_groups, c.d_state)) for m in (B, C))
        A, D = -torch.exp(self.A_log), self.D.view(-1, c.head_dim) if c.d_per_channel else self.D
        limits: dict[str, Any] = dict(dt_min=c.dt_min, dt_max=c.dt_max, chunk=c.chunk_size)
        y, ssm = ssd(x, dt, A, B, C, D, before.ssm, dt_bias=self.dt_bias, **limits)
        ssm = tap("ssm_state", ssm)
        y = self.gated_norm(y.flatten(-2), z)
        return self.out_proj(tap("out_proj:input", self.out_rotation(y))), LayerState(conv, ssm)

    def gated_norm(self, y: Tensor, z: Tensor) -> Tensor:
        """Return RMSNorm over each SSD group's channels, with the gate SiLU(z) before it or after it."""
        n, before = self.norm, self.config.norm_before_gate
        return gated_rms_norm_quantize(y, z, None, n.weight, n.eps, None, n_groups=n.n_groups, norm_before_gate=before)


def projected_widths(config: ModelConfig) -> tuple[int, int, int, int, int]:
    """Return the rows of in_proj for z, x, B, C and Δ."""
    bc = config.n_groups * config.d_state
    return config.d_inner, config.d_inner, bc, bc, config.n_heads


def _shapes(c: ModelConfig) -> dict[str, tuple[int, ...]]:
    inner, bc = (c.d_inner,), (c.n_groups * c.d_state,)
    return {
        "in_proj:input": (c.d_model,),
        "z": inner,
        "x_conv_in": inner,
        "B_conv_in": bc,
        "C_conv_in": bc,
        "dt": (c.n_heads,),
        "x_conv_out": inner,
        "B_conv_out": bc,
        "C_conv_out": bc,
        "ssm_state": (c.n_heads, c.head_dim, c.d_state),
        "out_proj:input": inner,
    }


_PER_HEAD = ("tensor", "head", "channel")
_PER_SSD_GROUP = ("tensor", "ssd_group", "channel")
_OF_STATE = ("tensor", "head", "channel", "channel_state")

ARCHITECTURES.add(
    "mamba2",
    Architecture(
        name="mamba2",
        title="Mamba2",
        mixer=Mamba2Mixer,
        sites=(
            Site("in_proj:input", "normed hidden, B·L·D", "running_max", ("tensor",), PRODUCT),
            Site("z", "gate, B·L·E", "running_max", _PER_HEAD, FLOAT),
            Site("x_conv_in", "x before conv, B·L·E", "running_max", _PER_HEAD, FLOAT),
            Site("B_conv_in", "B before conv, B·L·GN", "running_max", ("tensor", "channel"), FLOAT),
            Site("C_conv_in", "C before conv, B·L·GN", "running_max", ("tensor", "channel"), FLOAT),
            Site("dt", "Δ before bias and softplus, B·L·H", "running_max", ("tensor", "head"), FLOAT),
            Site("x_conv_out", "x after conv and SiLU, B·L·E", "case", _PER_HEAD, FLOAT, grouped=True),
            Site("B_conv_out", "B after conv and SiLU, B·L·GN", "running_max", _PER_SSD_GROUP, FLOAT),
            Site("C_conv_out", "C after conv and SiLU, B·L·GN", "running_max", _PER_SSD_GROUP, FLOAT),
            Site("ssm_state", "state, B·H·P·N", "case", _OF_STATE, FLOAT, grouped=True),
            Site("out_proj:input", "y after gated norm and Hadamard, B·L·E", "running_max", ("tensor",), PRODUCT),
        ),
        shapes=_shapes,
        scan_input="x_conv_out",
        has_heads=True,
        quamba_keys={
            "in_proj:input": ("in_proj:input",),
            "z": ("z_act:input", "z_act:output"),
            "x_conv_in": ("x_conv_in:input", "x_conv_in:output"),
            "B_conv_in": ("B_conv_in:input", "B_conv_in:output"),
            "C_conv_in": ("C_conv_in:input", "C_conv_in:output"),
            "dt": ("dt_act:input", "dt_act:output"),
            "x_conv_out": ("x_conv_out:input",),
            "B_conv_out": ("B_conv_out:input",),
            "C_conv_out": ("C_conv_out:input",),
            "ssm_state": ("ssm_state_act:input",),
            "out_proj:input": ("out_proj:input",),
        },
        half=("dt_bias",),
    ),
)
