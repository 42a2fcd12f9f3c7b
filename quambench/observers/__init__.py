"""Observers: batches of one site's values in, one scale per group out. One family a module."""

from __future__ import annotations

from quambench.observers import percentile, running_max  # noqa: F401  (importing registers them)
from quambench.observers.base import OBSERVERS, Observer
from quambench.observers.spec import ObserverSpec

__all__ = ["OBSERVERS", "Observer", "ObserverSpec"]
