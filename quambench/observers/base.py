"""The contract of an observer, and how one is named.

To add an observer: a module beside this one with a class under `@OBSERVERS.register(name)`, its
parameters as dataclass fields; import it in __init__.py. tests/contract judges it.
"""

from __future__ import annotations

import math
import re
from abc import ABC, abstractmethod
from dataclasses import dataclass, fields
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
        magnitude = x.detach().abs()
        if not torch.isfinite(magnitude).all():
            raise NonFinite(f"{int((~torch.isfinite(magnitude)).sum())} of {x.numel()} values are NaN or infinite")
        self.amax = self.observe(magnitude)
        self.n_batches += 1

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


@dataclass(frozen=True, slots=True)
class ObserverSpec:
    """An observer by name and the parameters given, e.g. percentile[alpha=0.9995,sigma=0.01]."""

    name: str
    parameters: tuple[tuple[str, float], ...] = ()

    def __str__(self) -> str:
        if not self.parameters:
            return self.name
        return f"{self.name}[{','.join(f'{k}={v!r}' for k, v in self.parameters)}]"

    @classmethod
    def parse(cls, text: str) -> ObserverSpec:
        """Read `name` or `name[key=number,...]`; the observer and its parameters must exist.

        raises UnknownName, BadParameter
        """
        match = re.fullmatch(r"\s*([\w.:-]+)\s*(?:\[(.*)\])?\s*", text)
        if match is None:
            raise BadParameter(f"an observer is written name or name[key=number,...] (got {text!r})")
        parameters = []
        for item in filter(None, (match[2] or "").split(",")):
            key, _, value = item.partition("=")
            try:
                parameters.append((key.strip(), float(value)))
            except ValueError:
                raise BadParameter(f"{match[1]}: {key.strip()} must be a number (got {value!r})") from None
        spec = cls(match[1], tuple(sorted(parameters)))
        spec.build()
        return spec

    def build(self, bits: int = 8) -> Observer:
        """A fresh observer."""
        kind = OBSERVERS[self.name]
        known = [f.name for f in fields(kind) if f.name != "bits"]
        for key, _ in self.parameters:
            if key not in known:
                takes = f"; it takes {', '.join(known)}" if known else "; it takes none"
                raise BadParameter(f"{self.name} has no parameter {key!r}{takes}")
        return kind(bits=bits, **dict(self.parameters))

    @property
    def complete(self) -> ObserverSpec:
        """This observer with its defaults written out: equal for any two ways to name the same one."""
        built = self.build()
        named = ((f.name, getattr(built, f.name)) for f in fields(built) if f.name != "bits")
        return ObserverSpec(self.name, tuple(sorted(named)))


def check_range(name: str, value: float, low: float, high: float) -> None:
    """value in (low, high], else BadParameter."""
    if not (math.isfinite(value) and low < value <= high):
        raise BadParameter(f"{name} must be in ({low:g}, {high:g}] (got {value!r})")
