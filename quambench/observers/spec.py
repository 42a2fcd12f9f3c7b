"""The spelling of an observer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from quambench.core.spec import Spec
from quambench.observers.base import OBSERVERS, Observer
from quambench.observers.outside import find_outside


@dataclass(frozen=True, slots=True)
class ObserverSpec(Spec):
    """An observer by name and the parameters given, e.g. percentile[alpha=0.9995,sigma=0.01].

    The name is one of OBSERVERS, `module:Class`, or an entry point that a package installed.
    """

    kind: ClassVar[str] = "an observer"
    fixed: ClassVar[frozenset[str]] = frozenset({"bits"})

    def found(self) -> type[Observer]:
        return OBSERVERS[self.name] if self.name in OBSERVERS else find_outside(self.name)

    def build(self, bits: int = 8) -> Observer:
        """Return a new observer for a grid of `bits`."""
        made: Observer = self.make(bits=bits)
        return made
