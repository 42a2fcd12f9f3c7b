"""The INT8 model: integer weights and activations with fixed scales, as the runtime computes.

Linear multiplies INT8 by INT8 into INT32; convolution and scan compute in float32 on dequantized
INT8 and requantize; between decoding steps the SSM state is INT8. Prefill never reads a quantized
state: only its last one is stored. In a step y is read from the float state, before requantizing.
The forward signature is `LanguageModel`'s, so that both are evaluated by the same code.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from quambench_kernels.causal_conv1d import causal_conv1d, next_history
from quambench_kernels.hadamard_quantize import hadamard_quantize
from quambench_kernels.int8_causal_conv1d import int8_causal_conv1d
from quambench_kernels.int8_embedding import int8_embedding
from quambench_kernels.int8_linear import int8_linear
from quambench_kernels.int8_selective_scan import int8_selective_scan
from quambench_kernels.int8_ssd import int8_ssd
from quambench_kernels.rms_norm_quantize import add_rms_norm_quantize, gated_rms_norm_quantize, rms_norm_quantize
from quambench_kernels.selective_scan import selective_scan
from quambench_kernels.ssd import ssd
from torch import Tensor

from quambench.core.errors import BadParameter
from quambench.grids.grid import q_max
from quambench.grids.hadamard import base_signs, rotate
from quambench.grids.precision import FLOAT_BITS, Precision
from quambench.int8.recipe import WeightQuantizer, WeightRecipe
from quambench.int8.site_grid import AsymmetricGrid, SiteGrid, SiteScales, SymmetricGrid, Unquantized, site_grids
from quambench.int8.weights import FloatWeight, QuantizedTensor, Weight
from quambench.models.backbone import LanguageModel, LayerState, Tap, in_layer, no_tap
from quambench.models.config import ModelConfig
from quambench.models.mamba import MambaMixer
from quambench.models.mamba2 import Mamba2Mixer
from quambench.models.sites import sites_of

HEAD = "lm_head:input"


Disturb = Callable[[Tensor], Tensor]
"""What is done to a float tensor before it is rounded to the grid: nothing, but in noise measurements."""


def undisturbed(x: Tensor) -> Tensor:
    """The runtime as it is."""
    return x


class Span:
    """Sites side by side on the last axis of one tensor: name, grid and width of each.

    widths  of the sites
    scale   () where one scale serves all, else the table (C) that a kernel reads; None where some site has no scale
    """

    def __init__(self, parts: Sequence[tuple[str, SiteGrid, int]]) -> None:
        self.parts = tuple(parts)
        self.widths = [width for _, _, width in parts]
        self.scale = self._scale()

    def _scale(self) -> Tensor | None:
        scales = [grid.scale for _, grid, _ in self.parts if isinstance(grid, SymmetricGrid)]
        if len(scales) < len(self.parts):
            return None
        if len(scales) == 1:
            return scales[0]
        return torch.cat([scale.expand(n) for scale, n in zip(scales, self.widths, strict=True)])

    def quantize(self, x: Tensor) -> Tensor:
        """Float (..., C) -> integers, or themselves where a site stays float."""
        parts = zip(self.parts, x.split(self.widths, dim=-1), strict=True)
        return _joined([grid.quantize(part) for (_, grid, _), part in parts])

    def dequantize(self, q: Tensor) -> Tensor:
        """What was kept (..., C) -> float32."""
        parts = zip(self.parts, q.split(self.widths, dim=-1), strict=True)
        return _joined([grid.dequantize(part) for (_, grid, _), part in parts])

    def show(self, q: Tensor, tap: Tap) -> None:
        """What is kept, to whoever watches the sites."""
        if tap is not no_tap:
            for (site, grid, _), part in zip(self.parts, q.split(self.widths, dim=-1), strict=True):
                tap(site, grid.dequantize(part))


def _joined(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)


class QuantizedLinear:
    """A weight, INT8 with scale () or (out, 1) or as floats; bias float32 or None; its input's grid, with one scale ().

    A product of integers where input and weight are integers, else one of float32.
    """

    def __init__(self, weight: Weight, bias: Tensor | None, grid: SiteGrid) -> None:
        self.weight, self.bias, self.grid = weight, bias, grid
        self.scale: Tensor | None = None  # (out): what one step of input times one of each row stands for
        self.floats: Tensor | None = None  # (out, in): of a weight that no INT8 product takes
        if not isinstance(weight, QuantizedTensor):
            self.floats = weight.dequantize()
        elif isinstance(grid, SymmetricGrid):
            self.scale = (grid.scale * weight.scale.flatten()).expand(weight.q.shape[0]).contiguous()

    def __call__(self, x_q: Tensor) -> Tensor:
        """x_q (..., in) -> (..., out) float32."""
        if self.scale is not None:
            return int8_linear(x_q, self.weight.q, self.scale, self.bias)
        if self.floats is not None:
            return F.linear(self.grid.dequantize(x_q), self.floats, self.bias)
        assert isinstance(self.weight, QuantizedTensor)
        y = self.grid.product(x_q, self.weight)
        return y if self.bias is None else y + self.bias


class _Runtime:
    """A model's sites, and what the runtime does between them; of one block, or of what follows the last.

    Each verb takes what one site keeps to what the next keeps: by the INT8 kernel where all sites are symmetric
    grids, all weights integers and nothing is disturbed (`by_kernels`), else in float PyTorch between the grids,
    which serves any.
    """

    def __init__(self, grids: Mapping[str, SiteGrid], disturb: Disturb) -> None:
        self.grids, self.disturb = grids, disturb
        self.by_kernels = disturb is undisturbed and all(isinstance(g, SymmetricGrid) for g in grids.values())
        bits = {g.bits for g in grids.values() if isinstance(g, SymmetricGrid)}
        self.q_max = q_max(max(bits, default=8))

    def span(self, *sites: tuple[str, int]) -> Span:
        """Whole sites side by side, with their widths."""
        return Span([(site, self.grids[site], width) for site, width in sites])

    def enter(self, into: Span, x: Tensor, tap: Tap) -> Tensor:
        """Quantize: float -> what is kept; the tap sees what the integers stand for."""
        q = into.quantize(self.disturb(x))
        into.show(q, tap)
        return q

    def norm_into(self, into: Span, x: Tensor, residual: Tensor | None, eps: float, tap: Tap) -> tuple[Tensor, Tensor]:
        """RMSNorm of residual + x, its gain fused into what follows -> what is kept, and that sum."""
        scale = into.scale if self.by_kernels else None
        if residual is None:
            y, total = rms_norm_quantize(x, None, eps, scale, q_max=self.q_max), x
        else:
            y, total = add_rms_norm_quantize(x, residual, None, eps, scale, q_max=self.q_max)
        if scale is None:
            return self.enter(into, y, tap), total
        into.show(y, tap)
        return y, total

    def linear_into(self, into: Span, x_q: Tensor, linear: QuantizedLinear, tap: Tap) -> Tensor:
        """A projection -> what its output's sites keep."""
        if not self.by_kernels:
            return self.enter(into, linear(x_q), tap)
        q = int8_linear(x_q, linear.weight.q, linear.scale, linear.bias, into.scale, q_max=self.q_max)
        into.show(q, tap)
        return q

    def rotate_into(self, into: Span, y: Tensor, tap: Tap) -> Tensor:
        """The online Hadamard rotation -> what is kept."""
        if not self.by_kernels:
            return self.enter(into, rotate(y), tap)
        scale = into.scale
        assert scale is not None
        q = hadamard_quantize(y, scale, base_signs(y.shape[-1], y.device), q_max=self.q_max)
        into.show(q, tap)
        return q


@dataclass(frozen=True, slots=True)
class _Parts:
    """What a block is built from beside its mixer."""

    grids: Mapping[str, SiteGrid]  # by the site's name in its block
    weights: WeightQuantizer
    prefix: str  # "layers.3.", as Hessians name weights
    disturb: Disturb


class _Block(_Runtime):
    """What both architectures' quantized blocks share; a subclass gives the rest.

    A subclass sets in_proj, out_proj, conv_weight (C, K), conv_bias, A, and the spans conv_in and conv_out.
    """

    in_proj: QuantizedLinear
    out_proj: QuantizedLinear
    conv_weight: Tensor
    conv_bias: Tensor | None
    A: Tensor
    conv_in: Span
    conv_out: Span

    def __init__(self, mixer: MambaMixer | Mamba2Mixer, parts: _Parts) -> None:
        super().__init__(parts.grids, parts.disturb)
        self.by_kernels &= parts.weights.bits.weights < FLOAT_BITS
        self.config: ModelConfig = mixer.config
        self.quantizer, self.prefix = parts.weights, parts.prefix
        self.weights: dict[str, Weight] = {}  # in forward order
        self.entry = self.span(("in_proj:input", mixer.config.d_model))
        self.exit = self.span(("out_proj:input", mixer.config.d_inner))

    def keep(self, name: str, weight: Weight) -> Weight:
        """Enter a weight under the name that artefacts and reports use."""
        self.weights[name] = weight
        return weight

    def projection(
        self, name: str, linear: torch.nn.Linear, splits: Sequence[int] = (), usual: bool = False
    ) -> QuantizedLinear:
        weight = self.quantizer.projection(f"{self.prefix}{name}.weight", linear.weight.detach(), splits, usual)
        bias = None if linear.bias is None else linear.bias.detach().float()
        return QuantizedLinear(self.keep(f"{name}.weight", weight), bias, self.grids[f"{name}:input"])

    def conv(self, mixer: MambaMixer | Mamba2Mixer, splits: Sequence[int] = ()) -> tuple[Tensor, Tensor | None]:
        """The convolution's weight (C, K) and bias, as the integers have them."""
        weight = self.quantizer.narrow(mixer.conv1d.weight[:, 0], splits, usual=True)
        weight = self.keep("conv1d.weight", weight)
        if mixer.conv1d.bias is None:
            return weight.dequantize(), None
        bias = self.keep("conv1d.bias", self.quantizer.other(mixer.conv1d.bias, splits))
        return weight.dequantize(), bias.dequantize()

    def empty_state(self, batch: int) -> LayerState:
        """Zeros, as each site's grid writes them."""
        c = self.config
        ssm = (c.d_inner, c.d_state) if c.architecture == "mamba" else (c.n_heads, c.head_dim, c.d_state)
        zeros = self.A.new_zeros
        conv = self.conv_in.quantize(zeros(batch, c.conv_width - 1, sum(self.conv_in.widths)))
        return LayerState(conv, self.grids["ssm_state"].quantize(zeros(batch, *ssm)))

    def store_state(self, ssm: Tensor, tap: Tap) -> Tensor:
        """Float SSM state -> what is carried to the next token: INT8, or itself where it stays float."""
        kept = self.grids["ssm_state"].quantize(self.disturb(ssm))
        self.show_state(kept, tap)
        return kept

    def show_state(self, ssm: Tensor, tap: Tap) -> None:
        if tap is not no_tap:
            tap("ssm_state", self.read_state(ssm))

    def read_state(self, ssm: Tensor) -> Tensor:
        """What was carried -> float32."""
        return self.grids["ssm_state"].dequantize(ssm)

    def conv_into(self, x_q: Tensor, history: Tensor, tap: Tap) -> tuple[Tensor, Tensor]:
        """Convolution and SiLU -> what its output's sites keep, and the history for the next call.

        History and input are on the same grids, so they meet as integers.
        """
        if self.by_kernels:
            x_scale, out_scale = self.conv_in.scale, self.conv_out.scale
            assert x_scale is not None
            assert out_scale is not None
            q, after = int8_causal_conv1d(
                x_q, x_scale, self.conv_weight, self.conv_bias, history, out_scale, q_max=self.q_max
            )
            self.conv_out.show(q, tap)
            return q, after
        past, now = self.conv_in.dequantize(history), self.conv_in.dequantize(x_q)
        y, _ = causal_conv1d(now, self.conv_weight, self.conv_bias, past, silu=True)
        return self.enter(self.conv_out, y, tap), next_history(x_q, history)

    def forward(
        self, x: Tensor, residual: Tensor | None, state: LayerState | None, tap: Tap
    ) -> tuple[Tensor, Tensor, LayerState]:
        """What the block before made, and the residual stream before that was added (None before the first block).

        returns what this block makes, the residual stream with x added, and the state.
        """
        before = state or self.empty_state(x.shape[0])
        q, total = self.norm_into(self.entry, x, residual, self.config.norm_eps, tap)
        y, after = self.mix(q, before, tap)
        return self.out_proj(self.rotate_into(self.exit, y, tap)), total, after

    def mix(self, q: Tensor, before: LayerState, tap: Tap) -> tuple[Tensor, LayerState]:
        """in_proj's input as it is kept (B, L, D) -> float y (B, L, E), as the rotation before out_proj takes it."""
        raise NotImplementedError


class _MambaBlock(_Block):
    def __init__(self, mixer: MambaMixer, parts: _Parts) -> None:
        super().__init__(mixer, parts)
        c, quantizer, g = mixer.config, self.quantizer, self.grids
        self.in_proj = self.projection("in_proj", mixer.in_proj, (c.d_inner, c.d_inner))
        self.conv_weight, self.conv_bias = self.conv(mixer)
        x_weight = quantizer.narrow(mixer.x_proj.weight.detach(), (c.dt_rank, c.d_state, c.d_state))
        self.x_proj = QuantizedLinear(self.keep("x_proj.weight", x_weight), None, g["x_proj:input"])
        dt_weight = self.keep("dt_proj.weight", quantizer.narrow(mixer.dt_proj.weight.detach()))
        dt_grid = g["x_proj:output"].channels(0, 1)  # all of Δ_low has one scale
        self.dt_proj = QuantizedLinear(dt_weight, None, dt_grid)  # its bias is added after dt_proj:output
        self.dt_bias = self.keep("dt_proj.bias", quantizer.other(mixer.dt_proj.bias)).dequantize()
        self.A = -torch.exp(self.keep("A_log", quantizer.other(mixer.A_log)).dequantize())
        self.D = self.keep("D", quantizer.other(mixer.D)).dequantize()
        self.out_proj = self.projection("out_proj", mixer.out_proj)
        self.xz = self.span(("in_proj:output", 2 * c.d_inner))
        x_grid = g["in_proj:output"].channels(0, c.d_inner)
        self.conv_in = Span([("in_proj:output", x_grid, c.d_inner)])
        self.conv_out = self.span(("x_proj:input", c.d_inner))
        self.low = self.span(("x_proj:output", c.dt_rank + 2 * c.d_state))
        self.dt = self.span(("dt_proj:output", c.d_inner))
        self.grid_of_z = g["in_proj:output"].channels(c.d_inner, c.d_inner)
        self.grids_of_BC = [g["x_proj:output"].channels(c.dt_rank + i * c.d_state, 1) for i in (0, 1)]

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
        g, (of_B, of_C) = self.grids, self.grids_of_BC
        if self.by_kernels:
            of_u, of_dt, of_z, of_state = (
                _scale(m) for m in (g["x_proj:input"], g["dt_proj:output"], self.grid_of_z, g["ssm_state"])
            )
            y, ssm = int8_selective_scan(
                u, of_u, dt, of_dt, self.A, B, _scale(of_B), C, _scale(of_C), self.D, self.dt_bias, z, of_z,
                state, of_state, q_max=self.q_max,
            )  # fmt: skip
            self.show_state(ssm, tap)
            return y, ssm
        u, dt, z = g["x_proj:input"].dequantize(u), g["dt_proj:output"].dequantize(dt), self.grid_of_z.dequantize(z)
        B, C = of_B.dequantize(B), of_C.dequantize(C)
        state = self.read_state(state)
        y, ssm = selective_scan(u, dt, self.A, B, C, self.D, state, dt_bias=self.dt_bias, z=z)
        return y, self.store_state(ssm, tap)


class _Mamba2Block(_Block):
    def __init__(self, mixer: Mamba2Mixer, parts: _Parts) -> None:
        super().__init__(mixer, parts)
        splits = mixer.splits
        self.in_proj = self.projection("in_proj", mixer.in_proj, splits, usual=True)
        self.conv_weight, self.conv_bias = self.conv(mixer, splits[1:4])
        self.dt_bias = mixer.dt_bias.detach().half().float()  # stays half precision
        self.A = -torch.exp(self.keep("A_log", self.quantizer.other(mixer.A_log)).dequantize())
        self.D = self.keep("D", self.quantizer.other(mixer.D)).dequantize()
        self.norm_gain = mixer.norm.weight.detach().float()
        self.out_proj = self.projection("out_proj", mixer.out_proj)
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
            of_x, of_B, of_C = (_scale(grid) for _, grid, _ in self.conv_out.parts)
            y, ssm = int8_ssd(
                x, of_x, dt, _scale(g["dt"]), self.A, B, of_B, C, of_C, D, self.dt_bias, state,
                _scale(g["ssm_state"]), q_max=self.q_max, **limits,
            )  # fmt: skip
            self.show_state(ssm, tap)
            return y, ssm
        x, B, C = parts(self.conv_out.dequantize(xBC))
        dt = g["dt"].dequantize(dt)
        y, ssm = ssd(x, dt, self.A, B, C, D, self.read_state(state), dt_bias=self.dt_bias, **limits)
        return y, self.store_state(ssm, tap)

    def gated_norm(self, y: Tensor, z: Tensor) -> Tensor:
        c = self.config
        kept: tuple[Tensor, Tensor | None] = (z, _scale(self.grids["z"])) if self.by_kernels else (
            self.grids["z"].dequantize(z), None
        )  # fmt: skip
        return gated_rms_norm_quantize(
            y, *kept, self.norm_gain, c.norm_eps, None, n_groups=c.n_groups, norm_before_gate=c.norm_before_gate
        )


def _scale(grid: SiteGrid) -> Tensor:
    assert isinstance(grid, SymmetricGrid)
    return grid.scale


V = TypeVar("V")


def _moved(value: V, device: torch.device, done: dict[int, tuple[Tensor, Tensor]]) -> V:
    """Every tensor of a block on a device; each once, so that what is shared stays so.

    done  id of a tensor -> it and its copy
    """
    found: Any = value
    if isinstance(value, Tensor):
        found = done.setdefault(id(value), (value, value.to(device)))[1]
    elif isinstance(value, dict):
        found = {key: _moved(v, device, done) for key, v in value.items()}
    elif isinstance(value, list | tuple):
        found = type(value)(_moved(v, device, done) for v in value)
    elif isinstance(value, SymmetricGrid | AsymmetricGrid | QuantizedTensor | FloatWeight):
        parts = {f.name: _moved(getattr(value, f.name), device, done) for f in fields(value)}
        found = replace(value, **parts)
    elif isinstance(value, Span | QuantizedLinear | _Runtime):
        for name, v in vars(value).items():
            setattr(value, name, _moved(v, device, done))
    moved: V = found
    return moved


class QuantizedModel:
    """INT8 language model built from a prepared float model (int8/fuse.py) and its scales.

    It is made on the CPU, so that its integers are the same wherever it then runs.
    """

    @torch.no_grad()
    def __init__(
        self,
        prepared: LanguageModel,
        calibration: SiteScales,
        precision: Precision,
        disturb: Disturb = undisturbed,
        recipe: WeightRecipe = WeightRecipe(),  # noqa: B008  (frozen)
        hessians: Mapping[str, Tensor] | None = None,
        device: torch.device = torch.device("cpu"),  # noqa: B008  (immutable)
    ) -> None:
        """prepared, calibration: on the CPU; device: where it runs

        hessians  weight name -> (in, in), where the recipe asks for GPTQ
        raises BadParameter
        """
        config = self.config = prepared.config
        precision.check_layers(config.n_layers)
        missing = [s for s in sites_of(config) if s not in calibration.scales]
        if missing:
            raise BadParameter(f"the calibration has no scale for {missing[0]} ({len(missing)} sites missing)")
        # Each site's grid, also where a site of few bits is kept float.
        grids = site_grids(calibration, config, precision.grid_bits, precision.symmetric)
        self.calibrated = {s: grid if precision.has_grid(s) else Unquantized() for s, grid in grids.items()}
        self.grids = {s: grid if precision.quantizes(s) else Unquantized() for s, grid in self.calibrated.items()}

        def quantizer(layer: int | None) -> WeightQuantizer:
            bits = precision.of(layer)
            own = recipe.at(bits.weights) if precision.layers else recipe
            return WeightQuantizer(own, bits, hessians or {})

        self.device = device
        embedding, head = prepared.backbone.embedding.weight.detach(), prepared.lm_head.weight.detach()
        self.top_weights: dict[str, Weight] = {}
        self.embedding: Tensor | QuantizedTensor = embedding.float()
        self.lm_head: Tensor | QuantizedLinear = head.float()
        self.top = _Runtime({HEAD: self.grids[HEAD]}, disturb)
        self.exit = self.top.span((HEAD, config.d_model))
        if precision.embedding:
            rows = self.top_weights["embedding.weight"] = quantizer(None).rows(embedding, precision.embedding_bits)
            self.embedding = rows if isinstance(rows, QuantizedTensor) else rows.dequantize()
        if precision.lm_head:
            self.top_weights["lm_head.weight"] = quantizer(None).projection("lm_head.weight", head)
            self.lm_head = QuantizedLinear(self.top_weights["lm_head.weight"], None, self.grids[HEAD])
        self.blocks: list[_Block] = []
        for i, block in enumerate(prepared.blocks):
            prefix = f"layers.{i}."
            local = {s.removeprefix(prefix): g for s, g in self.grids.items() if s.startswith(prefix)}
            mixer = block.mixer
            make: Callable[..., _Block] = _MambaBlock if isinstance(mixer, MambaMixer) else _Mamba2Block
            self.blocks.append(self._placed(make(mixer, _Parts(local, quantizer(i), prefix, disturb))))
        self.embedding, self.lm_head = self._placed(self.embedding), self._placed(self.lm_head)
        self.top, self.exit = self._placed(self.top), self._placed(self.exit)

    def _placed(self, part: V) -> V:
        return part if self.device.type == "cpu" else _moved(part, self.device, {})

    def weights(self) -> dict[str, Weight]:
        """All weights that a precision speaks of by name, embedding first and lm_head last."""
        named = dict(self.top_weights)
        head = named.pop("lm_head.weight", None)
        for i, block in enumerate(self.blocks):
            own = block.weights if self.device.type == "cpu" else _moved(block.weights, torch.device("cpu"), {})
            named |= {f"layers.{i}.{name}": weight for name, weight in own.items()}
        return named if head is None else named | {"lm_head.weight": head}

    @property
    def n_bytes(self) -> int:
        """What `weights` take, at their own bits, with their scales."""
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
        x, residual = self.embed(tokens), None
        states = []
        for i, block in enumerate(self.blocks):
            x, residual, after = block.forward(x, residual, None if state is None else state[i], in_layer(tap, i))
            states.append(after)
        return x if residual is None else residual + x, states

    def embed(self, tokens: Tensor) -> Tensor:
        """tokens (...) -> (..., D) float32."""
        if isinstance(self.embedding, Tensor):
            return self.embedding[tokens]
        return int8_embedding(tokens, self.embedding.q, self.embedding.scale.flatten())

    def head(self, hidden: Tensor, tap: Tap = no_tap) -> Tensor:
        """Residual stream (..., D) -> logits (..., vocab_size). The norms' gains are fused into what follows."""
        eps = self.config.norm_eps
        if isinstance(self.lm_head, Tensor):
            return rms_norm_quantize(hidden, None, eps, None) @ self.lm_head.T
        q, _ = self.top.norm_into(self.exit, hidden, None, eps, tap)
        return self.lm_head(q)
