"""The largest magnitude seen so far."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from quambench.observers.base import OBSERVERS, Observer
from quambench.observers.batch import Batch

MIN_AMAX = 1e-5  # Quamba's floor of a running maximum


@OBSERVERS.register("running_max")
@dataclass
class RunningMax(Observer):
    """The largest |x| of all batches. It never falls, and clips nothing that calibration saw."""

    order_matters: ClassVar[bool] = False
    mergeable: ClassVar[bool] = True
    knows_sides: ClassVar[bool] = True
    joins_by_max: ClassVar[bool] = True

    def observe(self, batch: Batch) -> Tensor:
        newest = batch.amax.double().clamp(min=MIN_AMAX)
        return newest if self.amax is None else torch.maximum(self.amax, newest)

    def join(self, other: RunningMax) -> None:
        assert self.amax is not None
        assert other.amax is not None
        self.amax = torch.maximum(self.amax, other.amax)
