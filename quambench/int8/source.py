"""Where an INT8 model's weights come from: a float model whose weights are rounded now, or a file that holds them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from torch import Tensor

from quambench.core.errors import BadParameter
from quambench.grids.precision import Precision
from quambench.int8.recipe import WeightQuantizer, WeightRecipe
from quambench.int8.weights import FloatWeight, Weight
from quambench.models.backbone import LanguageModel
from quambench.models.sites import layer_of


class WeightSource(Protocol):
    """Weights by the names that artefacts use: "embedding.weight", "layers.0.in_proj.weight".

    How a weight is rounded depends on what it is for, so each use has a method; a file answers all of them alike.
    """

    def has(self, name: str) -> bool:
        """Whether the model has such a weight. Biases may be missing."""

    def projection(self, name: str, splits: Sequence[int] = (), usual: bool = False) -> Weight:
        """A weight (out, in) for which 4 bits may be enough (`WeightQuantizer.projection`)."""

    def narrow(self, name: str, splits: Sequence[int] = (), usual: bool = False) -> Weight:
        """A weight that stays finer where others take 4 bits (`WeightQuantizer.narrow`)."""

    def other(self, name: str, splits: Sequence[int] = ()) -> Weight:
        """A weight that is added or exponentiated (`WeightQuantizer.other`)."""

    def rows(self, name: str, bits: int | None) -> Weight:
        """The embedding (`WeightQuantizer.rows`)."""

    def plain(self, name: str) -> FloatWeight:
        """A weight that is never rounded to a grid, in float32."""


class RoundedWeights:
    """The weights of a prepared model (int8/fuse.py), rounded when they are asked for."""

    def __init__(
        self, prepared: LanguageModel, precision: Precision, recipe: WeightRecipe, hessians: Mapping[str, Tensor]
    ) -> None:
        """hessians: weight name -> (in, in), where the recipe asks for GPTQ"""
        self._weights = _named(prepared)
        self._precision, self._recipe, self._hessians = precision, recipe, hessians

    def has(self, name: str) -> bool:
        return name in self._weights

    def projection(self, name: str, splits: Sequence[int] = (), usual: bool = False) -> Weight:
        return self._quantizer(name).projection(name, self._weights[name], splits, usual)

    def narrow(self, name: str, splits: Sequence[int] = (), usual: bool = False) -> Weight:
        return self._quantizer(name).narrow(self._weights[name], splits, usual)

    def other(self, name: str, splits: Sequence[int] = ()) -> Weight:
        return self._quantizer(name).other(self._weights[name], splits)

    def rows(self, name: str, bits: int | None) -> Weight:
        return self._quantizer(name).rows(self._weights[name], bits)

    def plain(self, name: str) -> FloatWeight:
        return FloatWeight(self._weights[name].float())

    def _quantizer(self, name: str) -> WeightQuantizer:
        bits = self._precision.of(layer_of(name))
        own = self._recipe.at(bits.weights) if self._precision.layers else self._recipe
        return WeightQuantizer(own, bits, self._hessians)


def weight_shapes(model: LanguageModel) -> dict[str, tuple[int, ...]]:
    """Name of each weight of such a model -> its shape; what a file of it must hold."""
    return {name: tuple(weight.shape) for name, weight in _named(model).items()}


def _named(model: LanguageModel) -> dict[str, Tensor]:
    """A model's weights by the names of artefacts; norms before a projection are fused into it, and are none."""
    named = {"embedding.weight": model.backbone.embedding.weight, "lm_head.weight": model.lm_head.weight}
    for i, block in enumerate(model.blocks):
        for name, weight in block.mixer.named_parameters():
            # Checkpoints have an axis of one input channel in the convolution's weight, and no use for it.
            named[f"layers.{i}.{name}"] = weight[:, 0] if name == "conv1d.weight" else weight
    return {name: weight.detach() for name, weight in named.items()}


class StoredWeights:
    """Weights as they were stored: how a use rounds is decided already."""

    def __init__(self, weights: Mapping[str, Weight]) -> None:
        self._weights = weights

    def has(self, name: str) -> bool:
        return name in self._weights

    def projection(self, name: str, splits: Sequence[int] = (), usual: bool = False) -> Weight:
        return self._weights[name]

    def narrow(self, name: str, splits: Sequence[int] = (), usual: bool = False) -> Weight:
        return self._weights[name]

    def other(self, name: str, splits: Sequence[int] = ()) -> Weight:
        return self._weights[name]

    def rows(self, name: str, bits: int | None) -> Weight:
        return self._weights[name]

    def plain(self, name: str) -> FloatWeight:
        weight = self._weights[name]
        if not isinstance(weight, FloatWeight):
            raise BadParameter(f"{name} must be stored as floats")
        return weight
