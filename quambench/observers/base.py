"""The contract of an observer.

To add an observer: a module beside this one with a class under `@OBSERVERS.register(name)`, its
parameters as dataclass fields; import it in __init__.py. tests/contract judges it.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from quambench.errors import BadParameter, NonFinite, SiteUnseen
from quambench.quant.grid import symmetric_scale
from quambench.registry import Registry


@dataclass
class Observer(ABC):
    """Watches one site; all it remembers is `amax`, float64, (*scale_shape), and `n_batches`.

    A subclass gives `observe`. Batches arrive laid out by quant/granularity.py.
    """

    order_matters: ClassVar[bool]  # does the scale depend on the order of batches?

    bits: int = 8

    def __post_init__(self) -> None:
        self.amax: Tensor | None = None
        self.n_batches = 0

    @abstractmethod
    def observe(self, x: Tensor) -> Tensor:
        """|x| of one batch, (n_obs, *scale_shape, group) float32, non-empty and finite -> the new amax."""

    def update(self, x: Tensor) -> None:
        """Take in one batch, (n_obs, *scale_shape, group) float32; an empty one changes nothing.

        raises NonFinite on NaN or infinity, and leaves the state as it was
        """
        if x.numel() == 0:
            return
        x = x.detach()
        if not torch.isfinite(x).all():
            raise NonFinite(f"{int((~torch.isfinite(x)).sum())} of {x.numel()} values are NaN or infinite")
        self.take(x)
        self.n_batches += 1

    def take(self, x: Tensor) -> None:
        """`update`, with x non-empty and finite."""
        self.amax = self.observe(x.abs())

    def scale(self) -> Tensor:
        """(*scale_shape) float32, tensor units per integer step.

        raises SiteUnseen when no value was seen
        """
        if self.amax is None:
            raise SiteUnseen("the observer saw no data")
        return symmetric_scale(self.amax, self.bits)

    def state_dict(self) -> dict[str, Tensor]:
        """All that decides `scale()` and later updates, parameters apart."""
        seen = {} if self.amax is None else {"amax": self.amax.clone()}
        return seen | {"n_batches": torch.tensor(self.n_batches)}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.amax = state["amax"].clone() if "amax" in state else None
        self.n_batches = int(state["n_batches"])


OBSERVERS: Registry[type[Observer]] = Registry("observer", "quambench/observers/")


def check_range(name: str, value: float, low: float, high: float) -> None:
    """value in (low, high], else BadParameter."""
    if not (math.isfinite(value) and low < value <= high):
        raise BadParameter(f"{name} must be in ({low:g}, {high:g}] (got {value!r})")
