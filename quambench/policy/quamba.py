"""Quamba's ungrouped recipe, for Mamba and Mamba2.

The observer of the case stands where Quamba has its percentile: the scan's input x and the SSM
state. Every other site keeps a running maximum, one scale per tensor.
"""

from __future__ import annotations

from dataclasses import dataclass

from quambench.models.config import ModelConfig
from quambench.models.sites import sites_of
from quambench.observers import ObserverSpec
from quambench.policy.base import POLICIES, Assignment, Plan, Policy, Sensitivity, granularity_at, observer_at


@POLICIES.register("quamba")
@dataclass(frozen=True)
class Quamba(Policy):
    """The case's observer at the percentile sites, running_max elsewhere."""

    def plan(
        self, config: ModelConfig, observer: ObserverSpec, grouping: str, sensitivity: Sensitivity | None = None
    ) -> Plan:
        return {
            name: Assignment(observer_at(site, observer), granularity_at(site, grouping))
            for name, site in sites_of(config).items()
        }


@POLICIES.register("uniform")
@dataclass(frozen=True)
class Uniform(Policy):
    """The case's observer at every site."""

    def plan(
        self, config: ModelConfig, observer: ObserverSpec, grouping: str, sensitivity: Sensitivity | None = None
    ) -> Plan:
        return {name: Assignment(observer, granularity_at(site, grouping)) for name, site in sites_of(config).items()}
