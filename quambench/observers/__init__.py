"""Observers: batches of one site's values in, one scale per group out. One family a module."""

from __future__ import annotations

from quambench.observers import (  # noqa: F401  (importing registers them)
    aciq,
    dynamic,
    entropy,
    kl,
    mse,
    percentile,
    running_max,
)
from quambench.observers.base import OBSERVERS, Observer
from quambench.observers.batch import Batch
from quambench.observers.spec import ObserverSpec

__all__ = ["OBSERVERS", "Batch", "Observer", "ObserverSpec"]
