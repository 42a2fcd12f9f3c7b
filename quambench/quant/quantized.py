"""The INT8 model: integer weights and activations with fixed scales, as the runtime computes.

Linear multiplies INT8 by INT8 into INT32; convolution and scan compute in float32 on dequantized
INT8 and requantize; between decoding steps the SSM state is INT8. Prefill never reads a quantized
state: only its last one is stored. In a step y is read from the float state, before requantizing.
The forward signature is `LanguageModel`'s, so that both are evaluated by the same code.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from quambench.errors import BadParameter
from quambench.models.backbone import LanguageModel, LayerState, Tap, causal_conv1d, in_layer, no_tap, rms_norm
from quambench.models.config import ModelConfig
from quambench.models.mamba import MambaMixer, selective_scan
from quambench.models.mamba2 import Mamba2Mixer, ssd, ssd_sequential
from quambench.models.sites import sites_of
from quambench.quant.recipe import WeightQuantizer, WeightRecipe
from quambench.quant.site_grid import SiteGrid, SiteScales, Unquantized, site_grids
from quambench.quant.weights import QuantizedTensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Precision:
    """Bits of weights and activations; embedding, lm_head and the carried SSM state may stay float.

    The asymmetric grid is for comparison: the INT8 runtime has none.
    """

    weight_bits: int = 8
    act_bits: int = 8
    embedding: bool = True
    lm_head: bool = True
    ssm_state: bool = True
    symmetric: bool = True

    @property
    def id(self) -> str:
        """For people: "w8a8", with what stays float named."""
        kept = [name for name in ("embedding", "lm_head", "ssm_state") if not getattr(self, name)]
        named = [f"float_{name}" for name in kept] + ([] if self.symmetric else ["asymmetric"])
        return "-".join([f"w{self.weight_bits}a{self.act_bits}", *named])

    def quantizes(self, site: str) -> bool:
        """Whether a site's values become integers at all."""
        return (self.ssm_state or not site.endswith("ssm_state")) and (self.lm_head or site != "lm_head:input")

    @classmethod
    def parse(cls, text: str) -> Precision:
        """Read an id: "w8a4", "w8a8-float_ssm_state-asymmetric".

        raises BadParameter
        """
        bits, *named = text.split("-")
        match = re.fullmatch(r"w([2-8])a([2-8])", bits)
        made = {"float_embedding": "embedding", "float_lm_head": "lm_head", "float_ssm_state": "ssm_state"}
        flags = made | {"asymmetric": "symmetric"}
        if match is None or not set(named) <= set(flags):
            known = "".join(f"[-{name}]" for name in flags)
            raise BadParameter(f"a precision is written w8a8{known}, bits 2 to 8 (got {text!r})")
        return cls(weight_bits=int(match[1]), act_bits=int(match[2]), **{flags[name]: False for name in named})


Disturb = Callable[[Tensor], Tensor]
"""What is done to a float tensor before it is rounded to the grid: nothing, but in noise measurements."""


def undisturbed(x: Tensor) -> Tensor:
    """The runtime as it is."""
    return x


@dataclass(frozen=True, slots=True)
class QuantizedLinear:
    """INT8 weight; scale () or (out, 1); bias float32 or None."""

    weight: QuantizedTensor
    bias: Tensor | None

    def __call__(self, x_q: Tensor, grid: SiteGrid) -> Tensor:
        """x_q (..., in) on a grid with one scale () -> (..., out) float32."""
        y = grid.product(x_q, self.weight)
        return y if self.bias is None else y + self.bias


@dataclass(frozen=True, slots=True)
class _Parts:
    """What a block is built from beside its mixer."""

    grids: Mapping[str, SiteGrid]  # by the site's name in its block
    weights: WeightQuantizer
    prefix: str  # "layers.3.", as Hessians name weights
    disturb: Disturb


class _Block:
    """What both architectures' quantized blocks share; a subclass gives `forward`."""

    out_proj: QuantizedLinear

    def __init__(self, mixer: MambaMixer | Mamba2Mixer, parts: _Parts) -> None:
        self.config: ModelConfig = mixer.config
        self.grids, self.disturb = parts.grids, parts.disturb
        self.quantizer, self.prefix = parts.weights, parts.prefix
        self.rotation = mixer.out_rotation
        self.weights: dict[str, QuantizedTensor] = {}  # in forward order

    def keep(self, name: str, weight: QuantizedTensor) -> QuantizedTensor:
        """Enter a weight under the name that artefacts and reports use."""
        self.weights[name] = weight
        return weight

    def projection(
        self, name: str, linear: torch.nn.Linear, splits: Sequence[int] = (), usual: bool = False
    ) -> QuantizedLinear:
        weight = self.quantizer.projection(f"{self.prefix}{name}.weight", linear.weight.detach(), splits, usual)
        bias = None if linear.bias is None else linear.bias.detach().float()
        return QuantizedLinear(self.keep(f"{name}.weight", weight), bias)

    def conv(self, mixer: MambaMixer | Mamba2Mixer, splits: Sequence[int] = ()) -> tuple[Tensor, Tensor | None]:
        """The convolution's weight (C, K) and bias, as the integers have them."""
        weight = self.quantizer.narrow(mixer.conv1d.weight[:, 0], splits, usual=True)
        weight = self.keep("conv1d.weight", weight)
        if mixer.conv1d.bias is None:
            return weight.dequantize(), None
        bias = self.keep("conv1d.bias", self.quantizer.other(mixer.conv1d.bias, splits))
        return weight.dequantize(), bias.dequantize()

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
        """Zeros, as each site's grid writes them."""
        c = self.config
        ssm = (c.d_inner, c.d_state) if c.architecture == "mamba" else (c.n_heads, c.head_dim, c.d_state)
        conv = torch.cat([g.quantize(torch.zeros(batch, c.conv_width - 1, n)) for g, n in self.conv_grids()], dim=-1)
        return LayerState(conv, self.grids["ssm_state"].quantize(torch.zeros(batch, *ssm)))

    def conv_grids(self) -> Sequence[tuple[SiteGrid, int]]:
        """The grids that the convolution's channels are on, and how many each."""
        raise NotImplementedError

    def read_conv_in(self, q: Tensor) -> Tensor:
        """The convolution's inputs, dequantized."""
        grids = self.conv_grids()
        parts = q.split([n for _, n in grids], dim=-1)
        return torch.cat([grid.dequantize(part) for (grid, _), part in zip(grids, parts, strict=True)], dim=-1)

    def store_state(self, ssm: Tensor, tap: Tap) -> Tensor:
        """Float SSM state -> what is carried to the next token: INT8, or itself where it stays float."""
        return self.enter("ssm_state", ssm, tap)

    def read_state(self, ssm: Tensor) -> Tensor:
        """What was carried -> float32."""
        return self.read("ssm_state", ssm)

    def project_out(self, y: Tensor, tap: Tap) -> Tensor:
        q = self.enter("out_proj:input", self.rotation(y), tap)
        return self.out_proj(q, self.grids["out_proj:input"])

    def forward(self, hidden: Tensor, state: LayerState | None, tap: Tap) -> tuple[Tensor, LayerState]:
        raise NotImplementedError


class _MambaBlock(_Block):
    def __init__(self, mixer: MambaMixer, parts: _Parts) -> None:
        super().__init__(mixer, parts)
        c, quantizer = mixer.config, self.quantizer
        self.in_proj = self.projection("in_proj", mixer.in_proj, (c.d_inner, c.d_inner))
        self.conv_weight, self.conv_bias = self.conv(mixer)
        x_weight = quantizer.narrow(mixer.x_proj.weight.detach(), (c.dt_rank, c.d_state, c.d_state))
        self.x_proj = QuantizedLinear(self.keep("x_proj.weight", x_weight), None)
        dt_weight = self.keep("dt_proj.weight", quantizer.narrow(mixer.dt_proj.weight.detach()))
        self.dt_proj = QuantizedLinear(dt_weight, None)  # its bias is added after dt_proj:output
        self.dt_bias = self.keep("dt_proj.bias", quantizer.other(mixer.dt_proj.bias)).dequantize()
        self.A = -torch.exp(self.keep("A_log", quantizer.other(mixer.A_log)).dequantize())
        self.D = self.keep("D", quantizer.other(mixer.D)).dequantize()
        self.out_proj = self.projection("out_proj", mixer.out_proj)

    def conv_grids(self) -> Sequence[tuple[SiteGrid, int]]:
        n = self.config.d_inner
        return [(self.grids["in_proj:output"].channels(0, n), n)]

    def forward(self, hidden: Tensor, state: LayerState | None, tap: Tap) -> tuple[Tensor, LayerState]:
        c, g = self.config, self.grids
        before = state or self.empty_state(hidden.shape[0])
        q = self.enter("in_proj:input", hidden, tap)
        xz = self.enter("in_proj:output", self.in_proj(q, g["in_proj:input"]), tap)
        # History and input are on the site's own grid, so they meet as integers.
        conv_in = torch.cat([before.conv, xz[..., : c.d_inner]], dim=1)
        z = self.read("in_proj:output", xz)[..., c.d_inner :]
        past, now = self.read_conv_in(conv_in).tensor_split([c.conv_width - 1], dim=1)
        x, _ = causal_conv1d(now, self.conv_weight, self.conv_bias, past)
        x_q = self.enter("x_proj:input", F.silu(x), tap)
        low = self.enter("x_proj:output", self.x_proj(x_q, g["x_proj:input"]), tap)
        _, B, C = self.read("x_proj:output", low).split([c.dt_rank, c.d_state, c.d_state], dim=-1)
        dt_low = low[..., : c.dt_rank].contiguous()
        dt = self.dt_proj(dt_low, g["x_proj:output"].channels(0, 1))  # all of Δ_low has one scale
        dt = self.read("dt_proj:output", self.enter("dt_proj:output", dt, tap))
        dt = F.softplus(dt + self.dt_bias)
        u = self.read("x_proj:input", x_q)
        y, ssm = selective_scan(u, dt, self.A, B, C, self.D, self.read_state(before.ssm))
        after = LayerState(conv_in[:, conv_in.shape[1] - (c.conv_width - 1) :], self.store_state(ssm, tap))
        return self.project_out(y * F.silu(z), tap), after


class _Mamba2Block(_Block):
    def __init__(self, mixer: Mamba2Mixer, parts: _Parts) -> None:
        super().__init__(mixer, parts)
        self.splits = mixer.splits
        self.in_proj = self.projection("in_proj", mixer.in_proj, self.splits, usual=True)
        self.conv_weight, self.conv_bias = self.conv(mixer, self.splits[1:4])
        self.dt_bias = mixer.dt_bias.detach().half().float()  # stays half precision
        self.A = -torch.exp(self.keep("A_log", self.quantizer.other(mixer.A_log)).dequantize())
        self.D = self.keep("D", self.quantizer.other(mixer.D)).dequantize()
        self.norm_gain = mixer.norm.weight.detach().float()
        self.out_proj = self.projection("out_proj", mixer.out_proj)

    def conv_grids(self) -> Sequence[tuple[SiteGrid, int]]:
        return [(self.grids[f"{name}_conv_in"], n) for name, n in zip("xBC", self.splits[1:4], strict=True)]

    def forward(self, hidden: Tensor, state: LayerState | None, tap: Tap) -> tuple[Tensor, LayerState]:
        c, g = self.config, self.grids
        before = state or self.empty_state(hidden.shape[0])
        q = self.enter("in_proj:input", hidden, tap)
        z, x, B, C, dt = self.in_proj(q, g["in_proj:input"]).split(self.splits, dim=-1)
        z = self.read("z", self.enter("z", z, tap))
        dt = self.read("dt", self.enter("dt", dt, tap))
        q_in = [self.enter(f"{n}_conv_in", m, tap) for n, m in (("x", x), ("B", B), ("C", C))]
        conv_in = torch.cat([before.conv, torch.cat(q_in, dim=-1)], dim=1)
        past, now = self.read_conv_in(conv_in).tensor_split([c.conv_width - 1], dim=1)
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
        recipe: WeightRecipe = WeightRecipe(),  # noqa: B008  (frozen)
        hessians: Mapping[str, Tensor] | None = None,
    ) -> None:
        """hessians: weight name -> (in, in), where the recipe asks for GPTQ.

        raises BadParameter
        """
        config = self.config = prepared.config
        self.disturb = disturb
        missing = [s for s in sites_of(config) if s not in calibration.scales]
        if missing:
            raise BadParameter(f"the calibration has no scale for {missing[0]} ({len(missing)} sites missing)")
        # Each site's grid, also where the precision keeps it float.
        self.calibrated = site_grids(calibration, config, precision.act_bits, precision.symmetric)
        self.grids = {s: grid if precision.quantizes(s) else Unquantized() for s, grid in self.calibrated.items()}
        quantizer = WeightQuantizer(recipe, precision.weight_bits, hessians or {})
        embedding, head = prepared.backbone.embedding.weight.detach(), prepared.lm_head.weight.detach()
        self.top_weights: dict[str, QuantizedTensor] = {}
        self.embedding, self.head_weight = embedding.float(), head.float()
        if precision.embedding:
            self.top_weights["embedding.weight"] = quantizer.rows(embedding)
            self.embedding = self.top_weights["embedding.weight"].dequantize()
        self.head_grid: SiteGrid | None = None
        if precision.lm_head:
            self.top_weights["lm_head.weight"] = quantizer.projection("lm_head.weight", head)
            self.lm_head = QuantizedLinear(self.top_weights["lm_head.weight"], None)
            self.head_grid = self.grids["lm_head:input"]
        self.blocks: list[_Block] = []
        for i, block in enumerate(prepared.blocks):
            prefix = f"layers.{i}."
            local = {s.removeprefix(prefix): g for s, g in self.grids.items() if s.startswith(prefix)}
            mixer = block.mixer
            make: Callable[..., _Block] = _MambaBlock if isinstance(mixer, MambaMixer) else _Mamba2Block
            self.blocks.append(make(mixer, _Parts(local, quantizer, prefix, disturb)))

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
        return sum(w.n_bytes for w in self.weights().values())

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
        return self.lm_head(q, self.head_grid)

    def _norm(self, hidden: Tensor) -> Tensor:
        """Block norms and norm_f: unit gain, since fusing moved the gains into what follows."""
        return rms_norm(hidden, torch.ones((), dtype=hidden.dtype), self.config.norm_eps)
