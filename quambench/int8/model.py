"""The INT8 model: integer weights and activations with fixed scales, as the runtime computes.

Linear multiplies INT8 by INT8 into INT32; convolution and scan compute in float32 on dequantized
INT8 and requantize; between decoding steps the SSM state is INT8. Prefill never reads a quantized
state: only its last one is stored. In a step y is read from the float state, before requantizing.
The forward signature is `LanguageModel`'s, so that both are evaluated by the same code.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import cast

import torch
from quambench_kernels.int8_embedding import int8_embedding
from quambench_kernels.rms_norm_quantize import rms_norm_quantize
from torch import Tensor, nn

from quambench.core.errors import BadParameter
from quambench.grids.precision import FLOAT_BITS, Precision
from quambench.int8.block import Parts, QuantizedBlock
from quambench.int8.held import Held, Part, on_cpu
from quambench.int8.mamba import QuantizedMamba
from quambench.int8.mamba2 import QuantizedMamba2
from quambench.int8.ops import Disturb, QuantizedLinear, Runtime, undisturbed
from quambench.int8.recipe import WeightRecipe
from quambench.int8.site_grid import SiteScales, Unquantized, site_grids
from quambench.int8.source import RoundedWeights, WeightSource
from quambench.int8.weights import QuantizedTensor, Weight
from quambench.models.backbone import LanguageModel, LayerState, Tap, in_layer, no_tap
from quambench.models.config import ModelConfig
from quambench.models.sites import sites_of

HEAD = "lm_head:input"

BLOCKS: Mapping[str, Callable[[ModelConfig, Parts], QuantizedBlock]] = {
    "mamba": QuantizedMamba,
    "mamba2": QuantizedMamba2,
}
"""The INT8 block of each architecture."""


@torch.no_grad()
def quantize_model(
    prepared: LanguageModel,
    calibration: SiteScales,
    precision: Precision,
    disturb: Disturb = undisturbed,
    recipe: WeightRecipe = WeightRecipe(),  # noqa: B008  (frozen)
    hessians: Mapping[str, Tensor] | None = None,
    device: torch.device = torch.device("cpu"),  # noqa: B008  (immutable)
) -> QuantizedModel:
    """Round a prepared float model (int8/fuse.py) to integers by the scales of its calibration.

    prepared, calibration  on the CPU, where everything is made: integers are the same wherever the model then runs
    hessians               weight name -> (in, in), where the recipe asks for GPTQ
    device                 where the model runs

    raises BadParameter
    """
    precision.check_layers(prepared.config.n_layers)
    source = RoundedWeights(prepared, precision, recipe, hessians or {})
    return QuantizedModel(prepared.config, calibration, precision, source, disturb).to(device)


class QuantizedModel(Part):
    """INT8 language model of the weights of a source and of a calibration's scales."""

    @torch.no_grad()
    def __init__(
        self,
        config: ModelConfig,
        calibration: SiteScales,
        precision: Precision,
        source: WeightSource,
        disturb: Disturb = undisturbed,
    ) -> None:
        """raises BadParameter where a site has no scale, or what the source raises"""
        super().__init__()
        self.config, self.precision = config, precision
        missing = [s for s in sites_of(config) if s not in calibration.scales]
        if missing:
            raise BadParameter(f"the calibration has no scale for {missing[0]} ({len(missing)} sites missing)")
        # Each site's grid, also where a site of few bits is kept float; on the CPU, for whoever compares there.
        grids = site_grids(calibration, config, precision.grid_bits, precision.symmetric)
        self.calibrated = {s: grid if precision.has_grid(s) else Unquantized() for s, grid in grids.items()}
        self.grids = {s: grid if precision.quantizes(s) else Unquantized() for s, grid in self.calibrated.items()}
        self.top = Runtime({HEAD: self.grids[HEAD]}, disturb)
        self.exit = self.top.span((HEAD, config.d_model))
        self._embedding = Held(_embedding(source, precision))
        self._head: Held[Weight] = Held(_head(source, precision))
        self._head_linear = QuantizedLinear(self._head, None, self.grids[HEAD]) if precision.lm_head else None
        self.layers = nn.ModuleList(self._block(i, source, disturb) for i in range(config.n_layers))

    def _block(self, i: int, source: WeightSource, disturb: Disturb) -> QuantizedBlock:
        prefix = f"layers.{i}."
        local = {s.removeprefix(prefix): g for s, g in self.grids.items() if s.startswith(prefix)}
        of_integers = self.precision.of(i).weights < FLOAT_BITS
        return BLOCKS[self.config.architecture](self.config, Parts(local, source, prefix, of_integers, disturb))

    @property
    def blocks(self) -> list[QuantizedBlock]:
        """The blocks, first to last."""
        return cast(list[QuantizedBlock], list(self.layers))

    @property
    def embedding(self) -> Tensor | QuantizedTensor:
        """(vocab_size, D): integers with a scale a row, or floats."""
        held = self._embedding.value
        return held if isinstance(held, QuantizedTensor) else held.dequantize()

    @property
    def lm_head(self) -> Tensor | QuantizedLinear:
        """A product of integers; or float weights (vocab_size, D)."""
        return self._head.value.dequantize() if self._head_linear is None else self._head_linear

    def weights(self) -> dict[str, Weight]:
        """All weights that a precision speaks of by name, embedding first and lm_head last; on the CPU."""
        named = {"embedding.weight": self._embedding.value} if self.precision.embedding else {}
        for i, block in enumerate(self.blocks):
            named |= {f"layers.{i}.{name}": weight for name, weight in block.weights.items()}
        if self.precision.lm_head:
            named["lm_head.weight"] = self._head.value
        return {name: on_cpu(weight) for name, weight in named.items()}

    def plain_weights(self) -> dict[str, Weight]:
        """The rest, in float32, which no precision rounds; on the CPU."""
        named = {} if self.precision.embedding else {"embedding.weight": self._embedding.value}
        for i, block in enumerate(self.blocks):
            named |= {f"layers.{i}.{name}": weight for name, weight in block.plain.items()}
        if not self.precision.lm_head:
            named["lm_head.weight"] = self._head.value
        return {name: on_cpu(weight) for name, weight in named.items()}

    @property
    def n_bytes(self) -> int:
        """What `weights` take, at their own bits, with their scales."""
        return sum(w.n_bytes for w in self.weights().values())

    def forward(
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
        table = self.embedding
        if isinstance(table, Tensor):
            return table[tokens]
        return int8_embedding(tokens, table.q, table.scale.flatten())

    def head(self, hidden: Tensor, tap: Tap = no_tap) -> Tensor:
        """Residual stream (..., D) -> logits (..., vocab_size). The norms' gains are fused into what follows."""
        eps, head = self.config.norm_eps, self.lm_head
        if isinstance(head, Tensor):
            return rms_norm_quantize(hidden, None, eps, None) @ head.T
        q, _ = self.top.norm_into(self.exit, hidden, None, eps, tap)
        logits: Tensor = head(q)
        return logits


def _embedding(source: WeightSource, precision: Precision) -> Weight:
    name = "embedding.weight"
    return source.rows(name, precision.embedding_bits) if precision.embedding else source.plain(name)


def _head(source: WeightSource, precision: Precision) -> Weight:
    name = "lm_head.weight"
    return source.projection(name) if precision.lm_head else source.plain(name)
