"""Two calls timed in turn, and what their ratio is known to be.

On a shared machine a time says little: the same call takes half as long again while a neighbour works.
Two calls that take turns share what disturbs them, so the ratio of each pair is steady where the times
are not; the median of the pairs' ratios does not feel the few rounds that only one of the two met.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from scipy.stats import quantile_test

Call = Callable[[], object]

ROUNDS, FEWEST_ROUNDS = 41, 11
ROW_SECONDS = 4.0  # what a comparison may take before rounds are left out
SAMPLE_SECONDS = 2e-3  # a timed sample lasts at least this: the clock's and the loop's own share stays below 1 %
CONFIDENCE = 0.95


@dataclass(frozen=True, slots=True)
class Ratio:
    """Time of a call over that of its counterpart.

    value, low, high  median of the rounds' ratios, and its distribution-free 95 % interval
    seconds, counterpart_seconds  medians over rounds, of one call
    """

    value: float
    low: float
    high: float
    seconds: float
    counterpart_seconds: float
    rounds: int

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


def interleaved(call: Call, counterpart: Call, rounds: int | None = None) -> Ratio:
    """Time both in every round, the order changing from round to round.

    rounds  by default ROUNDS, of slow calls as many as ROW_SECONDS hold, never under FEWEST_ROUNDS
    raises ValueError for fewer than 6 rounds, whose median has no 95 % interval
    """
    if rounds is not None and rounds < 6:
        raise ValueError(f"a median's 95 % interval needs at least 6 rounds (got {rounds})")
    pair = (call, counterpart)
    once = [_once(c) for c in pair]
    repeats = [max(1, math.ceil(SAMPLE_SECONDS / seconds)) for seconds in once]
    if rounds is None:
        of_a_round = sum(n * seconds for n, seconds in zip(repeats, once, strict=True))
        rounds = min(ROUNDS, max(FEWEST_ROUNDS, int(ROW_SECONDS / of_a_round)))
    samples = torch.empty(rounds, 2, dtype=torch.float64)
    for i in range(rounds):
        for side in (0, 1) if i % 2 else (1, 0):
            samples[i, side] = _seconds(pair[side], repeats[side])
    logs = (samples[:, 0] / samples[:, 1]).log()
    interval = quantile_test(logs.numpy(), p=0.5).confidence_interval(CONFIDENCE)
    seconds = samples.median(dim=0).values
    return Ratio(
        math.exp(logs.quantile(0.5)), math.exp(interval.low), math.exp(interval.high), float(seconds[0]),
        float(seconds[1]), rounds,
    )  # fmt: skip


def _once(call: Call) -> float:
    """Seconds of a call, the best of three. The first, which may build or allocate, is not counted."""
    call()
    return min(_seconds(call, 1) for _ in range(3))


def _seconds(call: Call, repeats: int) -> float:
    """Of one call, on average over `repeats`; a GPU is waited for."""
    _wait()
    began = time.perf_counter()
    for _ in range(repeats):
        call()
    _wait()
    return (time.perf_counter() - began) / repeats


def _wait() -> None:
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
