"""The sources of numbers: stored baselines of each model, and fresh measurements."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from quambench.claims.base import CannotMeasure
from quambench.claims.fresh import Fresh
from quambench.claims.stored import Shelf


@dataclass(frozen=True)
class Sources:
    """Sources by model name. Recall models answer for the state alone: the guide speaks of prose."""

    shelves: Mapping[str, Shelf]
    fresh: Mapping[str, Fresh] = field(default_factory=dict)
    recall: frozenset[str] = frozenset()

    @property
    def prose(self) -> Iterable[tuple[str, Shelf]]:
        return [(name, shelf) for name, shelf in self.shelves.items() if name not in self.recall]

    @property
    def recalling(self) -> Iterable[tuple[str, Shelf]]:
        return [(name, shelf) for name, shelf in self.shelves.items() if name in self.recall]

    def measured(self, model: str) -> Fresh:
        """Return the fresh measurements of a model. raises CannotMeasure"""
        if model not in self.fresh:
            raise CannotMeasure("baselines alone were asked for (--stored)")
        return self.fresh[model]
