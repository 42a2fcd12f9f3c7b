"""The contract of a policy: it decides which site gets which observer at which granularity, or stays float."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from quambench.core.errors import BadParameter, UnknownName
from quambench.core.registry import Registry
from quambench.core.spec import Spec
from quambench.grids.granularity import GRANULARITIES, GROUPS, UNQUANTIZED
from quambench.grouping import GROUPINGS, GroupingSpec
from quambench.grouping.outside import is_outside
from quambench.models.config import ModelConfig
from quambench.models.sites import Site, sites_of
from quambench.observers import ObserverSpec

PER_TENSOR = "1x1"  # the granularity's name in a case


@dataclass(frozen=True, slots=True)
class Assignment:
    """The observer of a site and the granularity of its scale."""

    observer: ObserverSpec
    granularity: str


Plan = Mapping[str, Assignment]
"""Site name -> Assignment, for every site of a model, in forward order."""

Sensitivity = Mapping[str, Mapping[str, float]]
"""Site -> remedy -> KL to float in nats/token with this site alone quantized; see quambench/calibration/sensitivity.py.

Every site under its usual assignment, the costliest also under the remedies.
"""


class Policy(ABC):
    """Base of all policies. A subclass is a frozen dataclass; its fields are what a spec may set."""

    measures: ClassVar[bool] = False  # does `plan` want a Sensitivity?
    groups: ClassVar[bool] = False  # does the case's grouping name a grouping of heads and channels?

    @property
    def candidates(self) -> int:
        """The number of the costliest sites for which the policy wants remedies weighed."""
        return 0

    @abstractmethod
    def plan(
        self, config: ModelConfig, observer: ObserverSpec, grouping: str, sensitivity: Sensitivity | None = None
    ) -> Plan:
        """Return an Assignment for every site, from the case's observer and grouping.

        sensitivity  measured, where `measures` is true
        raises BadParameter where observer and policy do not fit
        """


POLICIES: Registry[type[Policy]] = Registry("policy", "quambench/policy/")


@dataclass(frozen=True, slots=True)
class PolicySpec(Spec):
    """A policy by name and the parameters given, e.g. scale_multiplier[factor=0.8]."""

    kind: ClassVar[str] = "a policy"

    def found(self) -> type[Policy]:
        return POLICIES[self.name]


def groupings() -> tuple[str, ...]:
    """Return the names that a case's grouping may have."""
    return (PER_TENSOR, *(name for name in GRANULARITIES if name != "tensor"))


def clusterings() -> tuple[str, ...]:
    """Return the names of registered groupings that are no granularity; "clustered" goes by its numbers."""
    return tuple(name for name in GROUPINGS if name not in (*groupings(), "clustered"))


def check_grouping(name: str) -> None:
    """Check that a case may name this grouping. raises UnknownName, BadParameter"""
    if name in groupings():
        return
    bare = name.partition("[")[0]
    if bare in groupings():
        raise BadParameter(f"the grouping {bare} takes no parameters: write {bare} (got {name!r})")
    if not is_clustering(bare) and not GroupingSpec.miswritten(name):
        raise UnknownName("grouping", name, (*groupings(), "2x2", "4x4", "8x8", "16x16", *clusterings()))
    GroupingSpec.parse(name)


def is_clustering(name: str) -> bool:
    """Whether a grouping is one of heads and channels: "4x4", "adaptive" and its like, one from outside."""
    bare = name.partition("[")[0]
    return bool(GroupingSpec(bare).numbers and name != PER_TENSOR) or bare in clusterings() or is_outside(bare)


def observer_at(site: Site, observer: ObserverSpec) -> ObserverSpec:
    """Return the case's observer where Quamba has its percentile, elsewhere the site's own."""
    return observer if site.observer == "case" else ObserverSpec(site.observer)


def granularity_at(site: Site, grouping: str) -> str:
    """Return the finest granularity that the site's consumer can work with and that is no finer than asked.

    With a clustering it is per group where a site has groups, per SSD group where it can, else the coarsest.
    raises UnknownName, BadParameter
    """
    check_grouping(grouping)
    if is_clustering(grouping):
        return granularity_in_groups(site)
    order = list(GRANULARITIES)
    asked = 0 if grouping == PER_TENSOR else order.index(grouping)
    return max((g for g in site.allowed if order.index(g) <= asked), key=order.index)


def granularity_in_groups(site: Site) -> str:
    """Return the granularity that Quamba2 gives a site: per group, per SSD group, or the coarsest."""
    if site.grouped:
        return GROUPS
    return "ssd_group" if "ssd_group" in site.allowed else site.allowed[0]


def check_plan(config: ModelConfig, plan: Plan) -> None:
    """Check that every site has a granularity that its consumer allows.

    raises BadParameter with the reason
    """
    for name, site in sites_of(config).items():
        asked = plan[name].granularity if name in plan else UNQUANTIZED
        if asked not in (*site.allowed, UNQUANTIZED, *([GROUPS] if site.grouped else [])):
            allowed = " or ".join(site.allowed)
            raise BadParameter(f"{name} cannot be quantized per {asked}, only per {allowed}: it feeds {site.consumer}")
