"""The shared part of observers that choose a threshold from a histogram."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import ClassVar, Self

from quambench.observers.base import Observer, check_range
from quambench.observers.batch import Batch
from quambench.observers.histogram import Histogram


@dataclass
class Binned(Observer):
    """Base of observers that remember a Histogram of all values seen, and nothing else."""

    order_matters: ClassVar[bool] = False
    mergeable: ClassVar[bool] = True
    follows_grid: ClassVar[bool] = True
    memory: ClassVar[tuple[str, ...]] = tuple(f.name for f in fields(Histogram))

    @property
    def histogram(self) -> Histogram:
        """The histogram of all values seen. Its tensors are the observer's own; data were seen."""
        return Histogram(**{f.name: getattr(self, f.name) for f in fields(Histogram)})

    def take(self, batch: Batch) -> None:
        self.count(batch)

    def join(self, other: Self) -> None:
        if self.mergeable:
            self.count(other.histogram)
        else:
            super().join(other)

    def count(self, values: Batch | Histogram) -> None:
        """Take in values. A batch with fewer values than there are bins makes no histogram of its own."""
        if self.amax is None:
            first = values if isinstance(values, Histogram) else values.histogram
            for f in fields(Histogram):
                setattr(self, f.name, getattr(first, f.name).clone())
        elif isinstance(values, Histogram):
            self.histogram.absorb(values)
        elif values.x.numel() < self.histogram.counts.numel():
            self.histogram.add(values.x)
        else:
            self.histogram.absorb(values.histogram)


@dataclass
class Searching(Binned):
    """Base of observers that look for the threshold among parts of amax from `low` to `high`."""

    low: float = 0.02
    high: float = 1.0

    def __post_init__(self) -> None:
        check_range("high", self.high, 0, 1)
        check_range("low", self.low, 0, self.high)
        super().__post_init__()
