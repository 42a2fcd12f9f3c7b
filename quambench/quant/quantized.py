"""The INT8 model: integer weights and activations with fixed scales, as the runtime computes.

Linear multiplies INT8 by INT8 into INT32; convolution and scan compute in float32 on dequantized
INT8 and requantize; between decoding steps the SSM state is INT8. Prefill never reads a quantized
state: only its last one is stored. In a step y is read from the float state, before requantizing.
The forward signature is `LanguageModel`'s, so that both are evaluated by the same code.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from quambench_kernels.int8_linear import int8_linear
from torch import Tensor

from quambench.errors import BadParameter
from quambench.models.backbone import LanguageModel, LayerState, Tap, causal_conv1d, in_layer, no_tap, rms_norm
from quambench.models.config import ModelConfig
from quambench.models.mamba import MambaMixer, selective_scan
from quambench.models.mamba2 import Mamba2Mixer, ssd, ssd_sequential
from quambench.models.sites import sites_of
from quambench.quant.granularity import GRANULARITIES
from quambench.quant.grid import dequantize, quantize
from quambench.quant.weights import QuantizedTensor, quantize_rows, quantize_splits, quantize_tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Precision:
    """Bits of weights and activations; embedding, lm_head and the carried SSM state may stay float."""

    weight_bits: int = 8
    act_bits: int = 8
    embedding: bool = True
    lm_head: bool = True
    ssm_state: bool = True

    @property
    def id(self) -> str:
        """For people: "w8a8", with what stays float named."""
        kept = [name for name in ("embedding", "lm_head", "ssm_state") if not getattr(self, name)]
        return f"w{self.weight_bits}a{self.act_bits}" + "".join(f"-float_{name}" for name in kept)


Disturb = Callable[[Tensor], Tensor]
"""What is done to a float tensor before it is rounded to the grid: nothing, but in noise measurements."""


def undisturbed(x: Tensor) -> Tensor:
    """The runtime as it is."""
    return x


class SiteScales(Protocol):
    """What is read of a Calibration: per site its scale, granularity by name."""

    @property
    def scales(self) -> Mapping[str, Tensor]: ...
    @property
    def granularities(self) -> Mapping[str, str]: ...


@dataclass(frozen=True, slots=True)
class SiteGrid:
    """One site's fixed grid."""

    scale: Tensor  # (*scale_shape) float32
    granularity: str
    bits: int

    def broadcast(self, x: Tensor) -> Tensor:
        return GRANULARITIES[self.granularity].expand(self.scale, x)

    def quantize(self, x: Tensor) -> Tensor:
        return quantize(x, self.broadcast(x), self.bits)

    def dequantize(self, q: Tensor) -> Tensor:
        return dequantize(q, self.broadcast(q))


@dataclass(frozen=True, slots=True)
class QuantizedLinear:
    """INT8 weight; scale () or (out, 1); bias float32 or None."""

    weight: QuantizedTensor
    bias: Tensor | None

    def __call__(self, x_q: Tensor, x_scale: Tensor) -> Tensor:
        """x_q (..., in) int8 with one scale () -> (..., out) float32."""
        total = int8_linear(x_q, self.weight.q)
        y = total * (x_scale * self.weight.scale.flatten())
        return y if self.bias is None else y + self.bias


class _Block:
    """What both architectures' quantized blocks share; a subclass gives `forward`."""

    out_proj: QuantizedLinear

    def __init__(
        self, mixer: MambaMixer | Mamba2Mixer, grids: Mapping[str, SiteGrid], precision: Precision, disturb: Disturb
    ) -> None:
        self.config: ModelConfig = mixer.config
        self.grids, self.bits, self.int8_state = grids, precision.weight_bits, precision.ssm_state
        self.disturb = disturb
        self.rotation = mixer.out_rotation
        self.weights: dict[str, QuantizedTensor] = {}  # in forward order

    def keep(self, name: str, weight: QuantizedTensor) -> QuantizedTensor:
        """Enter a weight under the name that artefacts and reports use."""
        self.weights[name] = weight
        return weight

    def linear(self, name: str, linear: torch.nn.Linear, splits: tuple[int, ...] | None = None) -> QuantizedLinear:
        weight = linear.weight.detach()
        q = quantize_splits(weight, splits, self.bits) if splits else quantize_tensor(weight, self.bits)
        bias = None if linear.bias is None else linear.bias.detach().float()
        return QuantizedLinear(self.keep(f"{name}.weight", q), bias)

    def enter(self, site: str, x: Tensor, tap: Tap) -> Tensor:
        """Quantize at a site: float -> int8; the tap sees what the integers stand for."""
        grid = self.grids[site]
        q = grid.quantize(self.disturb(x))
        if tap is not no_tap:
            tap(site, grid.dequantize(q))
        return q

    def read(self, site: str, q: Tensor) -> Tensor:
        """Dequantize at a site: int8 -> float32."""
        return self.grids[site].dequantize(q)

    def empty_state(self, batch: int) -> LayerState:
        c = self.config
        ssm = (c.d_inner, c.d_state) if c.architecture == "mamba" else (c.n_heads, c.head_dim, c.d_state)
        conv = torch.zeros((batch, c.conv_width - 1, c.conv_channels), dtype=torch.int8)
        return LayerState(conv, torch.zeros((batch, *ssm), dtype=torch.int8 if self.int8_state else torch.float32))

    def store_state(self, ssm: Tensor, tap: Tap) -> Tensor:
        """Float SSM state -> what is carried to the next token: INT8, or itself where it stays float."""
        return self.enter("ssm_state", ssm, tap) if self.int8_state else tap("ssm_state", ssm)

    def read_state(self, ssm: Tensor) -> Tensor:
        """What was carried -> float32."""
        return self.read("ssm_state", ssm) if self.int8_state else ssm

    def project_out(self, y: Tensor, tap: Tap) -> Tensor:
        q = self.enter("out_proj:input", self.rotation(y), tap)
        return self.out_proj(q, self.grids["out_proj:input"].scale)

    def forward(self, hidden: Tensor, state: LayerState | None, tap: Tap) -> tuple[Tensor, LayerState]:
        raise NotImplementedError


class _MambaBlock(_Block):
    def __init__(
        self, mixer: MambaMixer, grids: Mapping[str, SiteGrid], precision: Precision, disturb: Disturb
    ) -> None:
        super().__init__(mixer, grids, precision, disturb)
        self.in_proj = self.linear("in_proj", mixer.in_proj)
        weight = quantize_tensor(mixer.conv1d.weight[:, 0], self.bits)
        self.conv_weight = self.keep("conv1d.weight", weight).dequantize()
        self.conv_bias = None
        if mixer.conv1d.bias is not None:
            self.conv_bias = self.keep("conv1d.bias", quantize_tensor(mixer.conv1d.bias, self.bits)).dequantize()
        self.x_proj = self.linear("x_proj", mixer.x_proj)
        dt_weight = self.keep("dt_proj.weight", quantize_tensor(mixer.dt_proj.weight, self.bits))
        self.dt_proj = QuantizedLinear(dt_weight, None)  # its bias is added after dt_proj:output
        self.dt_bias = self.keep("dt_proj.bias", quantize_tensor(mixer.dt_proj.bias, self.bits)).dequantize()
        self.A = -torch.exp(self.keep("A_log", quantize_tensor(mixer.A_log, self.bits)).dequantize())
        self.D = self.keep("D", quantize_tensor(mixer.D, self.bits)).dequantize()
        self.out_proj = self.linear("out_proj", mixer.out_proj)

    def forward(self, hidden: Tensor, state: LayerState | None, tap: Tap) -> tuple[Tensor, LayerState]:
        c, g = self.config, self.grids
        before = state or self.empty_state(hidden.shape[0])
        q = self.enter("in_proj:input", hidden, tap)
        xz = self.enter("in_proj:output", self.in_proj(q, g["in_proj:input"].scale), tap)
        # History and input share the site's scale, so they meet as integers.
        conv_in = torch.cat([before.conv, xz[..., : c.d_inner]], dim=1)
        z = self.read("in_proj:output", xz)[..., c.d_inner :]
        x, _ = causal_conv1d(
            self._read_x(conv_in[:, c.conv_width - 1 :]),
            self.conv_weight,
            self.conv_bias,
            self._read_x(conv_in[:, : c.conv_width - 1]),
        )
        x_q = self.enter("x_proj:input", F.silu(x), tap)
        low = self.enter("x_proj:output", self.x_proj(x_q, g["x_proj:input"].scale), tap)
        _, B, C = self.read("x_proj:output", low).split([c.dt_rank, c.d_state, c.d_state], dim=-1)
        dt = self.dt_proj(low[..., : c.dt_rank].contiguous(), g["x_proj:output"].scale)
        dt = self.read("dt_proj:output", self.enter("dt_proj:output", dt, tap))
        dt = F.softplus(dt + self.dt_bias)
        u = self.read("x_proj:input", x_q)
        y, ssm = selective_scan(u, dt, self.A, B, C, self.D, self.read_state(before.ssm))
        after = LayerState(conv_in[:, conv_in.shape[1] - (c.conv_width - 1) :], self.store_state(ssm, tap))
        return self.project_out(y * F.silu(z), tap), after

    def _read_x(self, q: Tensor) -> Tensor:
        """x's half of in_proj:output, dequantized."""
        scale = self.grids["in_proj:output"].scale
        return dequantize(q, scale if scale.ndim == 0 else scale[: self.config.d_inner])


class _Mamba2Block(_Block):
    def __init__(
        self, mixer: Mamba2Mixer, grids: Mapping[str, SiteGrid], precision: Precision, disturb: Disturb
    ) -> None:
        super().__init__(mixer, grids, precision, disturb)
        self.splits = mixer.splits
        self.in_proj = self.linear("in_proj", mixer.in_proj, self.splits)
        conv = self.splits[1:4]
        weight = quantize_splits(mixer.conv1d.weight[:, 0], conv, self.bits)
        self.conv_weight = self.keep("conv1d.weight", weight).dequantize()
        self.conv_bias = None
        if mixer.conv1d.bias is not None:
            self.conv_bias = self.keep("conv1d.bias", quantize_splits(mixer.conv1d.bias, conv, self.bits)).dequantize()
        self.dt_bias = mixer.dt_bias.detach().half().float()  # stays half precision
        self.A = -torch.exp(self.keep("A_log", quantize_tensor(mixer.A_log, self.bits)).dequantize())
        self.D = self.keep("D", quantize_tensor(mixer.D, self.bits)).dequantize()
        self.norm_gain = mixer.norm.weight.detach().float()
        self.out_proj = self.linear("out_proj", mixer.out_proj)

    def forward(self, hidden: Tensor, state: LayerState | None, tap: Tap) -> tuple[Tensor, LayerState]:
        c, g = self.config, self.grids
        before = state or self.empty_state(hidden.shape[0])
        q = self.enter("in_proj:input", hidden, tap)
        z, x, B, C, dt = self.in_proj(q, g["in_proj:input"].scale).split(self.splits, dim=-1)
        z = self.read("z", self.enter("z", z, tap))
        dt = self.read("dt", self.enter("dt", dt, tap))
        q_in = [self.enter(f"{n}_conv_in", m, tap) for n, m in (("x", x), ("B", B), ("C", C))]
        conv_in = torch.cat([before.conv, torch.cat(q_in, dim=-1)], dim=1)
        past, now = self._read_conv_in(conv_in).tensor_split([c.conv_width - 1], dim=1)
        xBC, _ = causal_conv1d(now, self.conv_weight, self.conv_bias, past)
        x, B, C = (
            self.read(f"{n}_conv_out", self.enter(f"{n}_conv_out", m, tap))
            for n, m in zip("xBC", F.silu(xBC).split(self.splits[1:4], dim=-1), strict=True)
        )
        x = x.unflatten(-1, (c.n_heads, c.head_dim))
        B, C = (m.unflatten(-1, (c.n_groups, c.d_state)) for m in (B, C))
        dt = F.softplus(dt + self.dt_bias).clamp(c.dt_min, c.dt_max)
        ssm = self.read_state(before.ssm)
        if state is not None and hidden.shape[1] == 1:
            y, ssm = ssd_sequential(x, dt, self.A, B, C, ssm)
        else:
            y, ssm = ssd(x, dt, self.A, B, C, ssm, c.chunk_size)
        after = LayerState(conv_in[:, conv_in.shape[1] - (c.conv_width - 1) :], self.store_state(ssm, tap))
        y = y + x * self.D.view(-1, c.head_dim if c.d_per_channel else 1)
        return self.project_out(self._gated_norm(y.flatten(-2), z), tap), after

    def _read_conv_in(self, q: Tensor) -> Tensor:
        """x, B and C before the convolution, each by its own scale."""
        parts = q.split(self.splits[1:4], dim=-1)
        return torch.cat([self.read(f"{n}_conv_in", m) for n, m in zip("xBC", parts, strict=True)], dim=-1)

    def _gated_norm(self, y: Tensor, z: Tensor) -> Tensor:
        c = self.config
        if c.norm_before_gate:
            return rms_norm(y, self.norm_gain, c.norm_eps, c.n_groups) * F.silu(z)
        return rms_norm(y * F.silu(z), self.norm_gain, c.norm_eps, c.n_groups)


class QuantizedModel:
    """INT8 language model built from a prepared float model (quant/fuse.py) and its scales."""

    @torch.no_grad()
    def __init__(
        self,
        prepared: LanguageModel,
        calibration: SiteScales,
        precision: Precision,
        disturb: Disturb = undisturbed,
    ) -> None:
        config = self.config = prepared.config
        self.disturb = disturb
        missing = [s for s in sites_of(config) if s not in calibration.scales]
        if missing:
            raise BadParameter(f"the calibration has no scale for {missing[0]} ({len(missing)} sites missing)")
        grids = {
            site: SiteGrid(scale, calibration.granularities[site], precision.act_bits)
            for site, scale in calibration.scales.items()
        }
        embedding, head = prepared.backbone.embedding.weight.detach(), prepared.lm_head.weight.detach()
        self.top_weights: dict[str, QuantizedTensor] = {}
        self.embedding, self.head_weight = embedding.float(), head.float()
        if precision.embedding:
            self.top_weights["embedding.weight"] = quantize_rows(embedding, precision.weight_bits)
            self.embedding = self.top_weights["embedding.weight"].dequantize()
        self.head_grid: SiteGrid | None = None
        if precision.lm_head:
            self.top_weights["lm_head.weight"] = quantize_tensor(head, precision.weight_bits)
            self.lm_head = QuantizedLinear(self.top_weights["lm_head.weight"], None)
            self.head_grid = grids["lm_head:input"]
        self.blocks: list[_Block] = []
        for i, block in enumerate(prepared.blocks):
            local = {s.removeprefix(f"layers.{i}."): g for s, g in grids.items() if s.startswith(f"layers.{i}.")}
            mixer = block.mixer
            make: Callable[..., _Block] = _MambaBlock if isinstance(mixer, MambaMixer) else _Mamba2Block
            self.blocks.append(make(mixer, local, precision, disturb))

    def weights(self) -> dict[str, QuantizedTensor]:
        """All integer weights by name, embedding first and lm_head last."""
        named = dict(self.top_weights)
        head = named.pop("lm_head.weight", None)
        for i, block in enumerate(self.blocks):
            named |= {f"layers.{i}.{name}": weight for name, weight in block.weights.items()}
        return named if head is None else named | {"lm_head.weight": head}

    @property
    def n_bytes(self) -> int:
        """What the weights take, at their own bits, with their scales."""
        return sum(w.q.nbytes + w.scale.nbytes for w in self.weights().values())

    def __call__(
        self, tokens: Tensor, state: list[LayerState] | None = None, tap: Tap = no_tap
    ) -> tuple[Tensor, list[LayerState]]:
        """`LanguageModel.forward`: tokens (B, L) -> logits (B, L, vocab_size), states (INT8)."""
        hidden, after = self.hidden(tokens, state, tap)
        return self.head(hidden, tap), after

    def hidden(
        self, tokens: Tensor, state: list[LayerState] | None = None, tap: Tap = no_tap
    ) -> tuple[Tensor, list[LayerState]]:
        """tokens (B, L) -> float32 residual stream after the last block (B, L, D), and the states."""
        hidden = self.embedding[tokens]
        states = []
        for i, block in enumerate(self.blocks):
            normed = self._norm(hidden)
            inner, after = block.forward(normed, None if state is None else state[i], in_layer(tap, i))
            hidden = hidden + inner
            states.append(after)
        return hidden, states

    def head(self, hidden: Tensor, tap: Tap = no_tap) -> Tensor:
        """Residual stream (..., D) -> logits (..., vocab_size)."""
        normed = self._norm(hidden)
        if self.head_grid is None:
            return normed @ self.head_weight.T
        q = self.head_grid.quantize(self.disturb(normed))
        tap("lm_head:input", self.head_grid.dequantize(q))
        return self.lm_head(q, self.head_grid.scale)

    def _norm(self, hidden: Tensor) -> Tensor:
        """Block norms and norm_f: unit gain, since fusing moved the gains into what follows."""
        return rms_norm(hidden, torch.ones((), dtype=hidden.dtype), self.config.norm_eps)
