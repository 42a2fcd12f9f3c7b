"""Mamba's quantized block."""

from __future__ import annotations

import torch
from quambench_kernels.int8_selective_scan import int8_selective_scan
from quambench_kernels.selective_scan import selective_scan
from torch import Tensor

from quambench.int8.block import Parts, QuantizedBlock
from quambench.int8.held import Grids
from quambench.int8.ops import QuantizedLinear, Span, scale_of
from quambench.models.backbone import LayerState, Tap
from quambench.models.config import ModelConfig


class QuantizedMamba(QuantizedBlock):
    dt_bias: Tensor

    def __init__(self, config: ModelConfig, parts: Parts) -> None:
        super().__init__(config, parts)
        c, g = config, self.grids
        self.in_proj = self.projection("in_proj", (c.d_inner, c.d_inner))
        weight, bias = self.conv()
        self.derive(conv_weight=weight, conv_bias=bias)
        x_weight = self.narrow("x_proj.weight", (c.dt_rank, c.d_state, c.d_state))
        self.x_proj = QuantizedLinear(x_weight, None, g["x_proj:input"])
        dt_weight = self.narrow("dt_proj.weight")
        dt_grid = g["x_proj:output"].channels(0, 1)  # all of Δ_low has one scale
        self.dt_proj = QuantizedLinear(dt_weight, None, dt_grid)  # its bias is added after dt_proj:output
        self.derive(dt_bias=self.other("dt_proj.bias"), A=-torch.exp(self.other("A_log")), D=self.other("D"))
        self.out_proj = self.projection("out_proj")
        self.built()
        self.xz = self.span(("in_proj:output", 2 * c.d_inner))
        x_grid = g["in_proj:output"].channels(0, c.d_inner)
        self.conv_in = Span([("in_proj:output", x_grid, c.d_inner)])
        self.conv_out = self.span(("x_proj:input", c.d_inner))
        self.low = self.span(("x_proj:output", c.dt_rank + 2 * c.d_state))
        self.dt = self.span(("dt_proj:output", c.d_inner))
        BC = [g["x_proj:output"].channels(c.dt_rank + i * c.d_state, 1) for i in (0, 1)]
        self.parts = Grids({"z": g["in_proj:output"].channels(c.d_inner, c.d_inner), "B": BC[0], "C": BC[1]})

    def mix(self, q: Tensor, before: LayerState, tap: Tap) -> tuple[Tensor, LayerState]:
        c = self.config
        xz = self.linear_into(self.xz, q, self.in_proj, tap)
        x, z = xz.split([c.d_inner, c.d_inner], dim=-1)
        u, conv = self.conv_into(x, before.conv, tap)
        low = self.linear_into(self.low, u, self.x_proj, tap)
        dt_low, B, C = low.split([c.dt_rank, c.d_state, c.d_state], dim=-1)
        dt = self.linear_into(self.dt, dt_low, self.dt_proj, tap)
        y, ssm = self.scan(u, dt, B, C, z, before.ssm, tap)
        return y, LayerState(conv, ssm)

    def scan(
        self, u: Tensor, dt: Tensor, B: Tensor, C: Tensor, z: Tensor, state: Tensor, tap: Tap
    ) -> tuple[Tensor, Tensor]:
        """All as they are kept -> gated y float, and the state as it is carried."""
        g, grid_of_z, of_B, of_C = self.grids, self.parts["z"], self.parts["B"], self.parts["C"]
        if self.by_kernels:
            of_u, of_dt, of_z, of_state = (
                scale_of(m) for m in (g["x_proj:input"], g["dt_proj:output"], grid_of_z, g["ssm_state"])
            )
            y, ssm = int8_selective_scan(
                u, of_u, dt, of_dt, self.A, B, scale_of(of_B), C, scale_of(of_C), self.D, self.dt_bias, z, of_z,
                state, of_state, q_max=self.q_max,
            )  # fmt: skip
            self.show_state(ssm, tap)
            return y, ssm
        u, dt, z = g["x_proj:input"].dequantize(u), g["dt_proj:output"].dequantize(dt), grid_of_z.dequantize(z)
        B, C = of_B.dequantize(B), of_C.dequantize(C)
        state = self.read_state(state)
        y, ssm = selective_scan(u, dt, self.A, B, C, self.D, state, dt_bias=self.dt_bias, z=z)
        return y, self.store_state(ssm, tap)
