"""Timing of two calls in turn, and of their ratio with its interval.

On a shared machine a time says little: the same call takes half as long again while a neighbour works.
Two calls that take turns share what disturbs them, so the ratio of each pair is steady where the times
are not; the median of the pairs' ratios does not feel the few rounds that only one of the two met.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

Call = Callable[[], object]
Make = Callable[[], tuple[Call, Call]]
"""() -> a call and its counterpart, with inputs of their own."""

ROUNDS, FEWEST_ROUNDS = 41, 11
ROW_SECONDS = 4.0  # what a comparison may take before rounds are left out
SAMPLE_SECONDS = 5e-4  # a timed sample lasts at least this: the clock's and the loop's own share stays below 1 %
CONFIDENCE = 0.95


@dataclass(frozen=True, slots=True)
class Ratio:
    """The time of a call over that of its counterpart.

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
    most, fewest = (rounds, rounds) if rounds else (ROUNDS, FEWEST_ROUNDS)
    taken = samples([(call, counterpart)], most, fewest, ROW_SECONDS)[:, 0]
    logs = (taken[:, 0] / taken[:, 1]).log()
    from scipy.stats import quantile_test  # here: importing it takes a second and a half

    interval = quantile_test(logs.numpy(), p=0.5).confidence_interval(CONFIDENCE)
    seconds = taken.median(dim=0).values
    return Ratio(
        math.exp(logs.quantile(0.5)), math.exp(interval.low), math.exp(interval.high), float(seconds[0]),
        float(seconds[1]), len(taken),
    )  # fmt: skip


def samples(pairs: Sequence[tuple[Call, Call]], most: int, fewest: int, budget: float) -> Tensor:
    """Return seconds of one call, float64 (rounds, pairs, 2): every call of every pair in each round, taking turns.

    most, fewest  limits of the number of rounds, which otherwise is what `budget` seconds hold
    """
    once = [[_once(call) for call in pair] for pair in pairs]
    repeats = [[max(1, math.ceil(SAMPLE_SECONDS / seconds)) for seconds in pair] for pair in once]
    of_a_round = sum(n * s for ns, ss in zip(repeats, once, strict=True) for n, s in zip(ns, ss, strict=True))
    rounds = min(most, max(fewest, int(budget / of_a_round)))
    taken = torch.empty(rounds, len(pairs), 2, dtype=torch.float64)
    for i in range(rounds):
        for j, pair in enumerate(pairs):
            for side in (0, 1) if i % 2 else (1, 0):
                taken[i, j, side] = _seconds(pair[side], repeats[j][side])
    return taken


def _once(call: Call) -> float:
    """Return the seconds of a call, the best of three. The first, which may build or allocate, is not counted."""
    call()
    return min(_seconds(call, 1) for _ in range(3))


def _seconds(call: Call, repeats: int) -> float:
    """Return the seconds of a call, on average over `repeats`; a GPU is waited for."""
    _wait()
    began = time.perf_counter()
    for _ in range(repeats):
        call()
    _wait()
    return (time.perf_counter() - began) / repeats


def _wait() -> None:
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
