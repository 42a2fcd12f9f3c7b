"""The INT8 model: integer weights and activations with fixed scales, as the runtime computes.

Linear multiplies INT8 by INT8 into INT32; convolution and scan compute in float32 on dequantized
INT8 and requantize; between decoding steps the SSM state is INT8. Prefill never reads a quantized
state: only its last one is stored. In a step y is read from the float state, before requantizing.
The forward signature is `LanguageModel`'s, so that both are evaluated by the same code.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from typing import Any, TypeVar

import torch
from quambench_kernels.int8_embedding import int8_embedding
from quambench_kernels.rms_norm_quantize import rms_norm_quantize
from torch import Tensor

from quambench.core.errors import BadParameter
from quambench.grids.precision import Precision
from quambench.int8.block import Parts, QuantizedBlock
from quambench.int8.mamba import QuantizedMamba
from quambench.int8.mamba2 import QuantizedMamba2
from quambench.int8.ops import Disturb, QuantizedLinear, Runtime, Span, undisturbed
from quambench.int8.recipe import WeightQuantizer, WeightRecipe
from quambench.int8.site_grid import AsymmetricGrid, SiteScales, SymmetricGrid, Unquantized, site_grids
from quambench.int8.weights import FloatWeight, QuantizedTensor, Weight
from quambench.models.backbone import LanguageModel, LayerState, Tap, in_layer, no_tap
from quambench.models.sites import sites_of

HEAD = "lm_head:input"


BLOCKS: Mapping[str, Callable[..., QuantizedBlock]] = {"mamba": QuantizedMamba, "mamba2": QuantizedMamba2}
"""Of each architecture its INT8 block."""


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
    elif isinstance(value, Span | QuantizedLinear | Runtime):
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
        self.top = Runtime({HEAD: self.grids[HEAD]}, disturb)
        self.exit = self.top.span((HEAD, config.d_model))
        if precision.embedding:
            rows = self.top_weights["embedding.weight"] = quantizer(None).rows(embedding, precision.embedding_bits)
            self.embedding = rows if isinstance(rows, QuantizedTensor) else rows.dequantize()
        if precision.lm_head:
            self.top_weights["lm_head.weight"] = quantizer(None).projection("lm_head.weight", head)
            self.lm_head = QuantizedLinear(self.top_weights["lm_head.weight"], None, self.grids[HEAD])
        self.blocks: list[QuantizedBlock] = []
        for i, block in enumerate(prepared.blocks):
            prefix = f"layers.{i}."
            local = {s.removeprefix(prefix): g for s, g in self.grids.items() if s.startswith(prefix)}
            mixer = block.mixer
            made = BLOCKS[config.architecture](mixer, Parts(local, quantizer(i), prefix, disturb))
            self.blocks.append(self._placed(made))
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
