"""How a model's weights become integers: which observer, at which granularity, rounded how."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from quambench.core.errors import BadParameter
from quambench.grids.grid import q_max
from quambench.grids.precision import FLOAT_BITS, Bits
from quambench.int8 import w4
from quambench.int8.gptq import gptq
from quambench.int8.weights import (
    LARGEST,
    FloatWeight,
    Weight,
    grid_end,
    quantize_rows,
    quantize_splits,
    quantize_tensor,
)
from quambench.observers import OBSERVERS, ObserverSpec

GRANULARITIES = ("quamba", "tensor", "split", "channel", "group")


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightRecipe:
    """Observer and granularity of projection and convolution weights.

    granularity  "quamba": one scale per tensor, and per split (z, x, B, C, Δ) in Mamba2; "tensor";
                 "split": also in Mamba; "channel": per output channel;
                 "group": 4 bits in groups of 128 inputs for in_proj, out_proj and lm_head; elsewhere 8 bits, or
                 half precision where activations are float
    gptq         rounds those three with error feedback instead of to nearest

    What is not multiplied or convolved with (A_log, D, biases) keeps its largest magnitude.
    raises BadParameter
    """

    observer: ObserverSpec = LARGEST
    granularity: str = "quamba"
    gptq: bool = False

    def __post_init__(self) -> None:
        if self.granularity in OBSERVERS:
            raise BadParameter(f"weights need a granularity too: write weights={self.granularity}@channel")
        if self.granularity not in GRANULARITIES:
            raise BadParameter(f"weights must be per {', '.join(GRANULARITIES)} (got {self.granularity!r})")
        if self.gptq and self.granularity != "group":
            raise BadParameter("gptq is for weights in groups of 4 bits: take granularity group")
        if self.gptq and self.observer != LARGEST:
            raise BadParameter(f"gptq takes each group's largest magnitude, not {self.observer}")

    @property
    def id(self) -> str:
        """For people: "weights=percentile[alpha=0.9999]@channel"; "" for Quamba's own."""
        if self == WeightRecipe():
            return ""
        if self.gptq:
            return "gptq"
        observer = "" if self.observer == LARGEST else f"{self.observer}@"
        return f"weights={observer}{self.granularity}"

    @classmethod
    def parse(cls, text: str) -> WeightRecipe:
        """Read an id: "gptq", "weights=channel", "weights=mse@channel"."""
        if text == "gptq":
            return cls(granularity="group", gptq=True)
        observer, _, granularity = text.removeprefix("weights=").rpartition("@")
        return cls(observer=ObserverSpec.parse(observer) if observer else LARGEST, granularity=granularity)

    def at(self, bits: int) -> WeightRecipe:
        """This recipe for one layer of a mix: groups are of 4 bits, others take Quamba's own in their place."""
        return WeightRecipe() if self.granularity == "group" and bits != w4.BITS else self


@dataclass(frozen=True, slots=True)
class WeightQuantizer:
    """A recipe at work on one model, or one layer of a mix.

    bits      of all weights, with groups of the grouped ones; and of the activations that they meet
    hessians  weight name -> (in, in), the sum of x xT over calibration tokens; for gptq alone
    """

    recipe: WeightRecipe = field(default_factory=WeightRecipe)
    bits: Bits = field(default_factory=Bits)
    hessians: Mapping[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.recipe.granularity == "group" and self.bits.weights != w4.BITS:
            raise BadParameter(f"weights in groups are of 4 bits (got {self.bits.weights})")

    @property
    def _other_bits(self) -> int:
        """Of what is in no groups: Quamba2's W4A16 rounds nothing else, its W4A8 needs integers throughout."""
        if self.recipe.granularity != "group":
            return self.bits.weights
        return FLOAT_BITS if self.bits.acts == FLOAT_BITS else 8

    def projection(self, name: str, weight: Tensor, splits: Sequence[int] = (), usual: bool = False) -> Weight:
        """A weight (out, in) that 4 bits may be enough for.

        splits  rows of its parts, if its output has any; usual: Quamba gives each a scale of its own
        """
        if self.recipe.granularity != "group":
            return self.narrow(weight, splits, usual)
        if name not in self.hessians and self.recipe.gptq:
            raise BadParameter(f"gptq needs the Hessian of {name}; calibration gathers it")
        if self.recipe.gptq:
            grouped = gptq(weight, self.hessians[name])
        else:
            grouped = w4.round_to_nearest(weight, threshold=self._group_ends(weight))
        if self.bits.acts == FLOAT_BITS:
            return grouped  # no INT8 product waits for it
        whole = w4.to_int8(grouped)
        return replace(whole, packed_bytes=grouped.n_bytes + whole.scale.nbytes)

    def narrow(self, weight: Tensor, splits: Sequence[int] = (), usual: bool = False) -> Weight:
        """A weight (rows, ...) that stays finer where others take 4 bits: x_proj, dt_proj, convolution."""
        observer, bits = self.recipe.observer, self._other_bits
        if bits == FLOAT_BITS:
            return FloatWeight(weight.half())
        if self.recipe.granularity == "channel":
            return quantize_rows(weight, bits, observer)
        by_split = self.recipe.granularity == "split" or (usual and self.recipe.granularity != "tensor")
        if splits and by_split:
            return quantize_splits(weight, splits, bits, observer)
        return quantize_tensor(weight, bits, observer)

    def other(self, weight: Tensor, splits: Sequence[int] = ()) -> Weight:
        """What is added or exponentiated: by its largest magnitude, per tensor or per split; float32 where float."""
        if self._other_bits == FLOAT_BITS:
            return FloatWeight(weight.detach().float())
        if splits:
            return quantize_splits(weight, splits, self._other_bits)
        return quantize_tensor(weight, self._other_bits)

    def rows(self, weight: Tensor, bits: int | None = None) -> Weight:
        """The embedding, which meets no activations. bits: its own, where they are not the recipe's."""
        usual = 8 if self.recipe.granularity == "group" else self.bits.weights
        bits = usual if bits is None else bits
        return FloatWeight(weight.half()) if bits == FLOAT_BITS else quantize_rows(weight, bits)

    def _group_ends(self, weight: Tensor) -> Tensor | None:
        """(out, n_groups) thresholds by the recipe's observer; None for the largest magnitude.

        An observer that searches a grid searches one whose end is 7 steps away, where a group's is 7.5.
        """
        observer = self.recipe.observer
        if observer == LARGEST:
            return None
        reach = (2**w4.BITS - 1) / 2 / q_max(w4.BITS) if observer.found().follows_grid else 1.0
        groups = weight.split(w4.GROUP, dim=1)  # the last may be shorter: an observation of its own
        return reach * torch.stack([grid_end(group[None], observer, w4.BITS) for group in groups], dim=1)
