"""Quamba's ungrouped recipe, for Mamba and Mamba2.

The observer of the case stands where Quamba has its percentile: the scan's input x and the SSM
state. Every other site keeps a running maximum, one scale per tensor.
"""

from __future__ import annotations

from quambench.models.config import ModelConfig
from quambench.models.sites import sites_of
from quambench.observers import ObserverSpec
from quambench.policy.base import POLICIES, Assignment, Plan


@POLICIES.register("quamba")
def quamba(config: ModelConfig, observer: ObserverSpec) -> Plan:
    """`observer` at the percentile sites, running_max elsewhere, all per tensor."""
    return {
        name: Assignment(observer if site.observer == "case" else ObserverSpec(site.observer), "tensor")
        for name, site in sites_of(config).items()
    }
