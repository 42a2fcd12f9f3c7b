"""The contract of an observer.

To add an observer: a module beside this one with a class under `@OBSERVERS.register(name)`, its
parameters as dataclass fields; import it in __init__.py. tests/contract judges it.
"""

from __future__ import annotations

import math
from abc import ABC
from dataclasses import dataclass, field
from typing import ClassVar, Self

import torch
from torch import Tensor

from quambench.core.errors import BadParameter, NonFinite, SiteUnseen
from quambench.core.registry import Registry
from quambench.grids.grid import symmetric_scale
from quambench.observers.batch import Batch


@dataclass
class Observer(ABC):
    """Base of all observers: each watches one site. Batches arrive laid out by grids/granularity.py.

    The simplest kind carries one number per scale, `amax`, and gives `observe`. Another kind names in
    `memory` what it remembers, and gives `take` and `threshold`.
    """

    order_matters: ClassVar[bool]  # does the scale depend on the order of batches?
    mergeable: ClassVar[bool] = False  # can two halves of the data be observed apart? then: `absorb`
    follows_grid: ClassVar[bool] = False  # does the threshold depend on the grid's bits?
    knows_sides: ClassVar[bool] = False  # is the threshold of max(x, 0) alone that of x's positive side?
    joins_by_max: ClassVar[bool] = False  # is a group's scale the largest of its channels'? not inherited
    exceeds_data: ClassVar[bool] = False  # may the grid end beyond the largest value seen?
    memory: ClassVar[tuple[str, ...]] = ("amax",)  # attributes that are None, or a Tensor once data were seen

    bits: int = 8
    # Part of the threshold that is kept, in (0, 1]. Written in a spec only where it is not 1: cases that
    # were stored before there was one keep their names.
    clip_ratio: float = field(default=1.0, metadata={"neutral": True})

    def __post_init__(self) -> None:
        check_range("clip_ratio", self.clip_ratio, 0, 1)
        self.n_batches = 0
        self.amax: Tensor | None = None  # (*scale_shape) float64
        for name in self.memory:
            setattr(self, name, None)

    def observe(self, batch: Batch) -> Tensor:
        """Return the new amax, (*scale_shape) float64, after one batch, which is finite and not empty."""
        raise NotImplementedError(f"{type(self).__name__} must give observe, or take and threshold")

    def update(self, x: Tensor | Batch) -> None:
        """Take in one batch, (n_obs, *scale_shape, group) float; an empty one changes nothing.

        raises NonFinite on NaN or infinity, and leaves the state as it was
        """
        batch = x if isinstance(x, Batch) else Batch(x)
        if batch.x.numel() == 0:
            return
        if batch.n_not_finite:
            raise NonFinite(f"{batch.n_not_finite} of {batch.x.numel()} values are NaN or infinite")
        self.take(batch)
        self.n_batches += 1

    def tail_length(self, n: int) -> int:
        """Return how many of n values' largest `take` will ask for; the observer that asks for most is served first."""
        return 0

    def take(self, batch: Batch) -> None:
        """Take in a batch that is finite and not empty; `update` has checked it."""
        self.amax = self.observe(batch)

    def threshold(self) -> Tensor:
        """Return (*scale_shape) float64: |x| beyond it is clipped, before clip_ratio. Called after data were seen."""
        assert self.amax is not None
        return self.amax

    def grid_end(self) -> Tensor:
        """Return (*scale_shape) float64: the magnitude that the grid's largest integer stands for.

        raises SiteUnseen when no value was seen
        """
        if self.n_batches == 0:
            raise SiteUnseen("the observer saw no data")
        return self.threshold() * self.clip_ratio

    def scale(self) -> Tensor:
        """Return (*scale_shape) float32, tensor units per integer step. raises SiteUnseen"""
        return symmetric_scale(self.grid_end(), self.bits)

    def absorb(self, other: Self) -> None:
        """Go on as if the other's batches had come after these; for `mergeable` observers."""
        if other.n_batches == 0:
            return
        if self.n_batches == 0:
            self.load_state_dict(other.state_dict())
            return
        self.join(other)
        self.n_batches += other.n_batches

    def join(self, other: Self) -> None:
        """Do the work of `absorb` when both have seen data."""
        raise BadParameter(f"{type(self).__name__} depends on the order of batches: halves cannot be merged")

    def state_dict(self) -> dict[str, Tensor]:
        """Return all that decides `scale()` and later updates, parameters apart."""
        seen = {name: value.clone() for name in self.memory if (value := getattr(self, name)) is not None}
        return seen | {"n_batches": torch.tensor(self.n_batches)}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        for name in self.memory:
            setattr(self, name, state[name].clone() if name in state else None)
        self.n_batches = int(state["n_batches"])


OBSERVERS: Registry[type[Observer]] = Registry("observer", "quambench/observers/")


def check_range(name: str, value: float, low: float, high: float) -> None:
    """Check that a value lies in (low, high]. raises BadParameter"""
    if not (math.isfinite(value) and low < value <= high):
        raise BadParameter(f"{name} must be in ({low:g}, {high:g}] (got {value!r})")


def whole_number(name: str, value: float, least: int) -> int:
    """Return a value as an int, if it is a whole number from `least` on. raises BadParameter"""
    if not math.isfinite(value) or not float(value).is_integer() or value < least:
        raise BadParameter(f"{name} must be a whole number, {least} or more (got {value!r})")
    return int(value)
