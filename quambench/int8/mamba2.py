"""Mamba2's quantized block."""

from __future__ import annotations

from typing import Any

import torch
from quambench_kernels.int8_ssd import int8_ssd
from quambench_kernels.rms_norm_quantize import gated_rms_norm_quantize
from quambench_kernels.ssd import ssd
from torch import Tensor

from quambench.int8.block import Parts, QuantizedBlock
from quambench.int8.ops import scale_of
from quambench.models.backbone import LayerState, Tap
from quambench.models.config import ModelConfig
from quambench.models.mamba2 import projected_widths


class QuantizedMamba2(QuantizedBlock):
    dt_bias: Tensor
    norm_gain: Tensor

    def __init__(self, config: ModelConfig, parts: Parts) -> None:
        super().__init__(config, parts)
        splits = projected_widths(config)
        self.in_proj = self.projection("in_proj", splits, usual=True)
        weight, bias = self.conv(splits[1:4])
        self.derive(conv_weight=weight, conv_bias=bias)
        self.derive(dt_bias=self.keep_plain("dt_bias").half().float())  # stays half precision
        self.derive(A=-torch.exp(self.other("A_log")), D=self.other("D"), norm_gain=self.keep_plain("norm.weight"))
        self.out_proj = self.projection("out_proj")
        self.built()
        names = ("z", "x_conv_in", "B_conv_in", "C_conv_in", "dt")
        self.projected = self.span(*zip(names, splits, strict=True))
        self.conv_in = self.span(*zip(names[1:4], splits[1:4], strict=True))
        self.conv_out = self.span(*((f"{n}_conv_out", w) for n, w in zip("xBC", splits[1:4], strict=True)))

    def mix(self, q: Tensor, before: LayerState, tap: Tap) -> tuple[Tensor, LayerState]:
        c, conv_in = self.config, self.conv_in.widths
        z, x, dt = self.linear_into(self.projected, q, self.in_proj, tap).split(
            [c.d_inner, sum(conv_in), c.n_heads], dim=-1
        )
        xBC, conv = self.conv_into(x, before.conv, tap)
        y, ssm = self.scan(xBC, dt, before.ssm, tap)
        return self.gated_norm(y.flatten(-2), z), LayerState(conv, ssm)

    def scan(self, xBC: Tensor, dt: Tensor, state: Tensor, tap: Tap) -> tuple[Tensor, Tensor]:
        """All as they are kept -> y float (B, L, H, P), and the state as it is carried."""
        c, g = self.config, self.grids
        D = self.D.view(-1, c.head_dim) if c.d_per_channel else self.D
        limits: dict[str, Any] = dict(dt_min=c.dt_min, dt_max=c.dt_max, chunk=c.chunk_size)

        def parts(m: Tensor) -> tuple[Tensor, ...]:
            x, B, C = m.split(self.conv_out.widths, dim=-1)
            B, C = (n.unflatten(-1, (c.n_groups, c.d_state)) for n in (B, C))
            return x.unflatten(-1, (c.n_heads, c.head_dim)), B, C

        if self.by_kernels:
            x, B, C = parts(xBC)
            of_x, of_B, of_C = (scale_of(grid) for grid in self.conv_out.grids)
            y, ssm = int8_ssd(
                x, of_x, dt, scale_of(g["dt"]), self.A, B, of_B, C, of_C, D, self.dt_bias, state,
                scale_of(g["ssm_state"]), q_max=self.q_max, **limits,
            )  # fmt: skip
            self.show_state(ssm, tap)
            return y, ssm
        x, B, C = parts(self.conv_out.dequantize(xBC))
        dt = g["dt"].dequantize(dt)
        y, ssm = ssd(x, dt, self.A, B, C, D, self.read_state(state), dt_bias=self.dt_bias, **limits)
        return y, self.store_state(ssm, tap)

    def gated_norm(self, y: Tensor, z: Tensor) -> Tensor:
        c = self.config
        kept: tuple[Tensor, Tensor | None] = (z, scale_of(self.grids["z"])) if self.by_kernels else (
            self.grids["z"].dequantize(z), None
        )  # fmt: skip
        return gated_rms_norm_quantize(
            y, *kept, self.norm_gain, c.norm_eps, None, n_groups=c.n_groups, norm_before_gate=c.norm_before_gate
        )
