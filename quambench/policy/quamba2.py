"""Quamba2's grouped recipe (Chiang et al. 2025, arXiv:2503.22879), for Mamba2.

x after the convolution has a scale per group of heads and channels, the state one per group and n, B and C
after the convolution one per SSD group; every other site one per tensor. Quamba2 keeps a running maximum
everywhere; here the observer of the case stands at x and the state.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from quambench.core.errors import BadParameter
from quambench.grouping import GROUPINGS
from quambench.models.config import ModelConfig
from quambench.models.sites import architecture_of, sites_of
from quambench.observers import ObserverSpec
from quambench.policy.base import (
    PER_TENSOR,
    POLICIES,
    Assignment,
    Plan,
    Policy,
    Sensitivity,
    granularity_in_groups,
    is_clustering,
    observer_at,
)


@POLICIES.register("quamba2")
@dataclass(frozen=True)
class Quamba2(Policy):
    """Quamba2's recipe with any number of groups, from 1x1 to per channel."""

    groups: ClassVar[bool] = True

    def plan(
        self, config: ModelConfig, observer: ObserverSpec, grouping: str, sensitivity: Sensitivity | None = None
    ) -> Plan:
        if not (kind := architecture_of(config)).has_heads:
            raise BadParameter(f"quamba2 groups heads, and a {kind.title} model has none: leave it out")
        if not (is_clustering(grouping) or grouping == PER_TENSOR or grouping in GROUPINGS):
            raise BadParameter(f"quamba2 groups heads and channels, 1x1 to channel (got {grouping})")
        return {
            name: Assignment(observer_at(site, observer), granularity_in_groups(site))
            for name, site in sites_of(config).items()
        }
