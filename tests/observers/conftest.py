"""Fixtures of the observers' tests."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from quambench.observers.histogram import MANTISSA, OCTAVES, Histogram, digits


@pytest.fixture(scope="session")
def best_of() -> Callable[[Callable[[], Any]], float]:
    """best_of(action): the shortest of seven runs, in seconds; other load only ever makes them longer."""

    def measure(action: Callable[[], Any]) -> float:
        times = []
        for _ in range(7):
            start = time.perf_counter()
            action()
            times.append(time.perf_counter() - start)
        return min(times)

    return measure


@pytest.fixture(scope="session")
def at_centres() -> Callable[[Tensor], Tensor]:
    """at_centres(x): float32 of x's shape, (n_obs, *scale_shape, group), each value in the middle of its
    histogram bin (or 0), so that the histogram is exact; the middle of a bin is a float32."""

    def move(x: Tensor) -> Tensor:
        k = digits(x.shape[1:-1].numel())
        shift = MANTISSA - k
        middle = ((x.float().view(torch.int32) >> shift) << shift) | (1 << (shift - 1))
        moved = middle.view(torch.float32)
        foot = Histogram.of(moved).unit.view(x.shape[1:-1]) * 2.0 ** (1 - OCTAVES)
        return torch.where(moved.abs() < foot[..., None], 0.0, moved)

    return move
