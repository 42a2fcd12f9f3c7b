"""What both kinds of quantized block share: projections, convolution, the state that is carried."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from quambench_kernels.causal_conv1d import causal_conv1d, next_history
from quambench_kernels.int8_causal_conv1d import int8_causal_conv1d
from torch import Tensor, nn

from quambench.int8.held import Held
from quambench.int8.ops import Disturb, QuantizedLinear, Runtime, Span
from quambench.int8.site_grid import SiteGrid
from quambench.int8.source import WeightSource
from quambench.int8.weights import Weight
from quambench.models.backbone import LayerState, Tap, no_tap
from quambench.models.config import ModelConfig
from quambench.models.sites import architecture_of


@dataclass(frozen=True, slots=True)
class Parts:
    """The parts that a block is built from, beside its model's config."""

    grids: Mapping[str, SiteGrid]  # by the site's name in its block
    source: WeightSource
    prefix: str  # "layers.3.", as the source names weights
    of_integers: bool  # whether weights are rounded to integers at all
    disturb: Disturb


class QuantizedBlock(Runtime):
    """What both architectures' quantized blocks share; a subclass gives the rest.

    A subclass sets in_proj, out_proj, conv_weight (C, K), conv_bias, A, and the spans conv_in and conv_out.
    """

    in_proj: QuantizedLinear
    out_proj: QuantizedLinear
    conv_weight: Tensor
    conv_bias: Tensor | None
    A: Tensor
    D: Tensor
    conv_in: Span
    conv_out: Span

    def __init__(self, config: ModelConfig, parts: Parts) -> None:
        super().__init__(parts.grids, parts.disturb)
        self.by_kernels &= parts.of_integers
        self.config = config
        self._source, self._prefix = parts.source, parts.prefix
        self._rounded: dict[str, Held[Weight]] = {}  # in forward order
        self._plain: dict[str, Held[Weight]] = {}
        self._held = nn.ModuleList()  # what moves them
        self.entry = self.span(("in_proj:input", config.d_model))
        self.exit = self.span(("out_proj:input", config.d_inner))

    @property
    def weights(self) -> dict[str, Weight]:
        """The weights that a precision speaks of, by the names that artefacts and reports use, in forward order."""
        return {name: held.value for name, held in self._rounded.items()}

    @property
    def plain(self) -> dict[str, Weight]:
        """The weights that are never rounded to a grid: other biases, a norm's gain."""
        return {name: held.value for name, held in self._plain.items()}

    def keep(self, name: str, weight: Weight) -> Held[Weight]:
        """Enter a weight under its name."""
        return self._enter(self._rounded, name, weight)

    def keep_plain(self, name: str) -> Tensor:
        """float32"""
        return self._enter(self._plain, name, self._source.plain(f"{self._prefix}{name}")).value.q

    def _enter(self, into: dict[str, Held[Weight]], name: str, weight: Weight) -> Held[Weight]:
        held = into[name] = Held(weight)
        self._held.append(held)
        return held

    def derive(self, **tensors: Tensor | None) -> None:
        """Set tensors that are computed from weights: they move with the block and are not stored."""
        for name, tensor in tensors.items():
            self.register_buffer(name, tensor, persistent=False)

    def built(self) -> None:
        """Let go of the weights that this block was made of."""
        del self._source

    def projection(self, name: str, splits: Sequence[int] = (), usual: bool = False) -> QuantizedLinear:
        weight = self._source.projection(f"{self._prefix}{name}.weight", splits, usual)
        has_bias = self._source.has(f"{self._prefix}{name}.bias")
        bias = self.keep_plain(f"{name}.bias") if has_bias else None
        return QuantizedLinear(self.keep(f"{name}.weight", weight), bias, self.grids[f"{name}:input"])

    def narrow(self, name: str, splits: Sequence[int] = (), usual: bool = False) -> Held[Weight]:
        return self.keep(name, self._source.narrow(f"{self._prefix}{name}", splits, usual))

    def other(self, name: str, splits: Sequence[int] = ()) -> Tensor:
        """float32, as the integers have it."""
        return self.keep(name, self._source.other(f"{self._prefix}{name}", splits)).value.dequantize()

    def conv(self, splits: Sequence[int] = ()) -> tuple[Tensor, Tensor | None]:
        """The convolution's weight (C, K) and bias, as the integers have them."""
        weight = self.narrow("conv1d.weight", splits, usual=True).value.dequantize()
        has_bias = self._source.has(f"{self._prefix}conv1d.bias")
        return weight, self.other("conv1d.bias", splits) if has_bias else None

    def empty_state(self, batch: int) -> LayerState:
        """Zeros, as each site's grid writes them."""
        c = self.config
        ssm = architecture_of(c).shapes(c)["ssm_state"]
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
