"""The contract of a grouping: from statistics of a Mamba2 model's channels to each layer's Groups."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from quambench.core.registry import Registry
from quambench.grouping.groups import Groups
from quambench.models.config import ModelConfig


@dataclass(frozen=True, slots=True)
class ChannelStatistics:
    """Statistics of one layer's x after convolution and SiLU, over the calibration sequences.

    mean_abs  (E,) float64: largest, over sequences, of the mean of |x| over positions
    amax      (E,) float64: largest |x|
    energy    (E,) float64: mean of x^2
    """

    mean_abs: Tensor
    amax: Tensor
    energy: Tensor


class Grouping(ABC):
    """Base of all groupings. A subclass is a frozen dataclass; its fields are what a spec may set."""

    @property
    def looks(self) -> bool:
        """Whether it needs statistics. A grouping that does not leaves the order of channels as it is."""
        return True

    @abstractmethod
    def groups(self, statistics: Mapping[int, ChannelStatistics], config: ModelConfig) -> dict[int, Groups]:
        """Return Groups by layer, from statistics by layer (empty where it does not look at them).

        raises BadParameter where the model has too few heads or channels
        """


GROUPINGS: Registry[type[Grouping]] = Registry("grouping", "quambench/grouping/")
"""By name; "clustered" goes by its numbers, 4x4."""
