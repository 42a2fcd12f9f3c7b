"""Groupings with the same number of groups in every layer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from quambench.core.errors import BadParameter
from quambench.grouping.base import GROUPINGS, ChannelStatistics, Grouping
from quambench.grouping.cluster import METHODS, by_layer, cluster
from quambench.grouping.groups import Groups, in_order
from quambench.models.config import ModelConfig


@GROUPINGS.register("clustered")
@dataclass(frozen=True)
class Clustered(Grouping):
    """Quamba2's grouping: N head groups in each SSD group, M groups of channels in each of those."""

    n_head_groups: int
    n_dim_groups: int
    method: str = "kmeans"  # how a head group's channels are cut into runs: see quambench/grouping/cluster.py

    def __post_init__(self) -> None:
        if self.n_head_groups < 1 or self.n_dim_groups < 1:
            raise BadParameter(f"groups are 1x1 or more (got {self.n_head_groups}x{self.n_dim_groups})")
        if self.method not in METHODS:
            raise BadParameter(f"method must be {', '.join(METHODS)} (got {self.method!r})")

    @property
    def looks(self) -> bool:
        return (self.n_head_groups, self.n_dim_groups) != (1, 1)

    def groups(self, statistics: Mapping[int, ChannelStatistics], config: ModelConfig) -> dict[int, Groups]:
        numbers = self.n_head_groups, self.n_dim_groups
        if not self.looks:
            return {layer: in_order(config, 1, 1) for layer in range(config.n_layers)}
        return by_layer(lambda s: cluster(s, config, *numbers, self.method), statistics)


@GROUPINGS.register("head")
@dataclass(frozen=True)
class PerHead(Grouping):
    """A group for each head."""

    @property
    def looks(self) -> bool:
        return False

    def n_dim_groups(self, config: ModelConfig) -> int:
        return 1

    def groups(self, statistics: Mapping[int, ChannelStatistics], config: ModelConfig) -> dict[int, Groups]:
        numbers = config.n_heads // config.n_groups, self.n_dim_groups(config)
        return {layer: in_order(config, *numbers) for layer in range(config.n_layers)}


@GROUPINGS.register("channel")
@dataclass(frozen=True)
class PerChannel(PerHead):
    """A group for each channel."""

    def n_dim_groups(self, config: ModelConfig) -> int:
        return config.head_dim
