"""What a grouping is: from what calibration saw of a Mamba2 model's channels to each layer's Groups."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from quambench.errors import UnknownName
from quambench.grouping.groups import Groups
from quambench.models.config import ModelConfig
from quambench.registry import Registry
from quambench.spec import Spec


@dataclass(frozen=True, slots=True)
class ChannelStatistics:
    """Of one layer's x after convolution and SiLU, over the calibration sequences.

    mean_abs  (E,) float64: largest, over sequences, of the mean of |x| over positions
    amax      (E,) float64: largest |x|
    energy    (E,) float64: mean of x^2
    """

    mean_abs: Tensor
    amax: Tensor
    energy: Tensor


class Grouping(ABC):
    """A subclass is a frozen dataclass; its fields are what a spec may set."""

    @property
    def looks(self) -> bool:
        """At statistics; else the order of channels stays."""
        return True

    @abstractmethod
    def groups(self, statistics: Mapping[int, ChannelStatistics], config: ModelConfig) -> dict[int, Groups]:
        """Statistics by layer, none where it does not look -> Groups by layer.

        raises BadParameter where the model has too few heads or channels
        """


GROUPINGS: Registry[type[Grouping]] = Registry("grouping", "quambench/grouping/")
"""By name; "clustered" goes by its numbers, 4x4."""

_NUMBERS = re.compile(r"(0|[1-9]\d*)x(0|[1-9]\d*)")


@dataclass(frozen=True, slots=True)
class GroupingSpec(Spec):
    """A grouping by name and the parameters given, e.g. 4x4, 4x4[method=dp], adaptive[base=8]."""

    kind: ClassVar[str] = "a grouping"
    fixed: ClassVar[frozenset[str]] = frozenset({"n_head_groups", "n_dim_groups"})

    @property
    def numbers(self) -> tuple[int, ...]:
        """(4, 2) for 4x2; () for another name."""
        match = _NUMBERS.fullmatch(self.name)
        return tuple(map(int, match.groups())) if match else ()

    def found(self) -> type[Grouping]:
        if self.numbers:
            return GROUPINGS["clustered"]
        named = [name for name in GROUPINGS if name != "clustered"]
        if self.name not in named:
            raise UnknownName("grouping of heads and channels", self.name, ("1x1", "4x4", *named))
        return GROUPINGS[self.name]

    def build(self) -> Any:
        return self.make(**dict(zip(("n_head_groups", "n_dim_groups"), self.numbers, strict=False)))
