"""Policies that treat layers by their position."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import cast

from quambench.core.errors import BadParameter
from quambench.models.config import ModelConfig
from quambench.models.sites import layer_of, sites_of
from quambench.observers import ObserverSpec
from quambench.observers.base import check_range, whole_number
from quambench.policy.base import POLICIES, Assignment, Plan, Policy, Sensitivity
from quambench.policy.quamba import Quamba


def _at_case_sites(
    config: ModelConfig, observer: ObserverSpec, grouping: str, change: Callable[[int, Assignment], Assignment]
) -> Plan:
    """Return Quamba's plan, with `change(layer, assignment)` at every site that takes the case's observer."""
    sites = sites_of(config)
    return {
        name: change(layer, given)
        if (layer := layer_of(name)) is not None and sites[name].observer == "case"
        else given
        for name, given in Quamba().plan(config, observer, grouping).items()
    }


@POLICIES.register("first_middle_last")
@dataclass(frozen=True)
class FirstMiddleLast(Policy):
    """Another α in the first and in the last layers than between them; the user guide's defaults."""

    first: float = 1.0  # α of the first `width` layers
    middle: float = 0.9995
    last: float = 0.9999  # α of the last `width` layers
    width: float = 1.0  # layers that count as first, and as last

    def __post_init__(self) -> None:
        for name in ("first", "middle", "last"):
            check_range(name, getattr(self, name), 0, 1)
        whole_number("width", self.width, 1)

    def plan(
        self, config: ModelConfig, observer: ObserverSpec, grouping: str, sensitivity: Sensitivity | None = None
    ) -> Plan:
        if "alpha" not in observer.settable():
            raise BadParameter(f"first_middle_last sets alpha, which {observer.name} does not have; take percentile")
        return _at_case_sites(
            config,
            observer,
            grouping,
            lambda layer, given: replace(given, observer=observer.given(alpha=self._alpha(layer, config.n_layers))),
        )

    def _alpha(self, layer: int, n_layers: int) -> float:
        if layer < self.width:
            return self.first
        return self.last if layer >= n_layers - self.width else self.middle


LAYERS = ("all", "first", "last", "ends")


@POLICIES.register("scale_multiplier")
@dataclass(frozen=True)
class ScaleMultiplier(Policy):
    """The case's observer, its scale times a factor in chosen layers: all, first, last or both ends."""

    factor: float = 0.8  # the user guide's
    layers: str = "all"

    def __post_init__(self) -> None:
        check_range("factor", self.factor, 0, 1)
        if self.layers not in LAYERS:
            raise BadParameter(f"layers must be one of {', '.join(LAYERS)} (got {self.layers!r})")

    def plan(
        self, config: ModelConfig, observer: ObserverSpec, grouping: str, sensitivity: Sensitivity | None = None
    ) -> Plan:
        last = config.n_layers - 1
        chosen = {"all": range(last + 1), "first": (0,), "last": (last,), "ends": (0, last)}[self.layers]
        times = cast(float, observer.values["clip_ratio"]) * self.factor
        return _at_case_sites(
            config,
            observer,
            grouping,
            lambda layer, given: (
                replace(given, observer=observer.given(clip_ratio=times)) if layer in chosen else given
            ),
        )
