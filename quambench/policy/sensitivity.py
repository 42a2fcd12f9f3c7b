"""A policy that measures first: the sites that cost most get the remedy that helps them most."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, cast

from quambench.core.errors import BadParameter
from quambench.grids.granularity import GRANULARITIES, UNQUANTIZED
from quambench.models.config import ModelConfig
from quambench.models.sites import sites_of
from quambench.observers import ObserverSpec
from quambench.observers.base import whole_number
from quambench.policy.base import PER_TENSOR, POLICIES, Assignment, Plan, Policy, Sensitivity, granularity_at
from quambench.policy.quamba import Quamba

MULTIPLIER = 0.8  # the user guide's, for sensitive layers
FINEST = list(GRANULARITIES)[-1]
REMEDIES = ("usual", "multiplier", "finer")
"""Quamba's assignment; its scale times MULTIPLIER; the finest granularity that the site allows."""


def remedied(config: ModelConfig, observer: ObserverSpec) -> dict[str, Plan]:
    """Return remedy -> the plan in which every site takes it that can."""
    usual = Quamba().plan(config, observer, PER_TENSOR)
    return {name: {site: apply(config, site, a, name) for site, a in usual.items()} for name in REMEDIES}


def apply(config: ModelConfig, site: str, usual: Assignment, remedy: str) -> Assignment:
    """Return a site's assignment under a remedy; the usual one where the remedy changes nothing."""
    if remedy == "multiplier":
        ratio = cast(float, usual.observer.values["clip_ratio"]) * MULTIPLIER
        return replace(usual, observer=usual.observer.given(clip_ratio=ratio))
    if remedy == "finer":
        return replace(usual, granularity=granularity_at(sites_of(config)[site], FINEST))
    if remedy == UNQUANTIZED:
        return replace(usual, granularity=UNQUANTIZED)
    return usual


@POLICIES.register("sensitivity")
@dataclass(frozen=True)
class BySensitivity(Policy):
    """Quamba's plan, except at the `budget` sites that cost most by themselves: those get what helps most.

    A remedy is taken only where it was measured to help: a site keeps its usual scale where none lowers its cost. The
    first `floats` of them stay float instead, which always helps and is not INT8 any more.
    """

    measures: ClassVar[bool] = True

    budget: float = 6.0  # sites that may be treated
    floats: float = 0.0  # sites among them that stay float

    def __post_init__(self) -> None:
        for name in ("budget", "floats"):
            whole_number(name, getattr(self, name), 0)
        if self.floats > self.budget:
            raise BadParameter(f"floats must be at most the budget, {self.budget:g} (got {self.floats:g})")

    @property
    def candidates(self) -> int:
        return int(self.budget)

    def plan(
        self, config: ModelConfig, observer: ObserverSpec, grouping: str, sensitivity: Sensitivity | None = None
    ) -> Plan:
        if sensitivity is None:
            raise BadParameter("the policy sensitivity needs a measured sensitivity")
        if grouping != PER_TENSOR:
            raise BadParameter(f"the policy sensitivity chooses granularities itself: leave {grouping} out")
        usual = Quamba().plan(config, observer, grouping)
        worst = sorted(sensitivity, key=lambda site: -sensitivity[site]["usual"])[: int(self.budget)]
        chosen = {
            site: UNQUANTIZED if rank < self.floats else best_remedy(sensitivity[site])
            for rank, site in enumerate(worst)
        }
        return {site: apply(config, site, a, chosen.get(site, "usual")) for site, a in usual.items()}


def best_remedy(costs: Mapping[str, float]) -> str:
    """Return the cheapest remedy; the usual one where nothing is cheaper."""
    return min(costs, key=lambda name: (costs[name], name != "usual"))
