"""Drills of the latency gate: slowdowns planted in a kernel, and clean repeats, judged as a run judges them."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

from quambench.bench.gate import Recorded, judge, measured, record, slower
from quambench.bench.interleave import Call, Make, Ratio
from quambench.bench.kernels import rows

SLOWER = 0.20
PLANTED, CLEAN = 20, 40  # tries of each row
SHAPES = ("mamba-130m", "mamba2-130m")
ROWS = (
    "int8_linear, in_proj, mamba2-130m, prefill 512",
    "int8_linear, in_proj, mamba2-130m, decode 1",
    "int8_causal_conv1d, mamba2-130m, prefill 512",
    "int8_selective_scan, mamba-130m, prefill 512",
    "int8_ssd, mamba2-130m, prefill 512",
    "int8_ssd, mamba2-130m, decode 1",
    "hadamard_quantize, mamba2-130m, prefill 512",
    "rms_norm_quantize, mamba2-130m, prefill 512",
)


@dataclass(frozen=True, slots=True)
class Drill:
    """The result for one row: how many planted slowdowns were caught and how many clean repeats raised an alarm.

    margin      of the ratio, from the spread when it was recorded
    ..._at_once  where the first measurement alone would decide
    """

    row: str
    margin: float
    planted: int
    caught: int
    caught_at_once: int
    clean: int
    alarms: int
    alarms_at_once: int


def drill(
    progress: Callable[[str, int, int], None], planted: int = PLANTED, clean: int = CLEAN, of: tuple[str, ...] = ROWS
) -> Iterator[Drill]:
    """Record each row, as --qb-update would, then judge it again and again."""
    todo = [row for row in rows(SHAPES) if row.name in of]
    for i, row in enumerate(todo):
        stored = record(row.make)
        seconds = SLOWER * measured(row.make).seconds
        what = f"{i + 1} of {len(todo)} kernels"
        red, red_at_once = _judged(partial(_slow, row.make, seconds), stored, planted, partial(progress, what))
        alarms, alarms_at_once = _judged(row.make, stored, clean, partial(progress, what))
        yield Drill(row.name, math.expm1(stored.margin), planted, red, red_at_once, clean, alarms, alarms_at_once)


def _judged(make: Make, stored: Recorded, tries: int, progress: Callable[[int, int], None]) -> tuple[int, int]:
    """Return how often it is a regression, and how often the first measurement alone says so."""
    red = at_once = 0
    for n in range(tries):
        progress(n, tries)
        seen: list[Ratio] = []
        red += judge(partial(_seen, make, seen), stored).fails
        at_once += slower(seen[0], stored)
    return red, at_once


def _seen(make: Make, seen: list[Ratio]) -> Ratio:
    seen.append(measured(make))
    return seen[-1]


def _slow(make: Make, seconds: float) -> tuple[Call, Call]:
    call, counterpart = make()
    return slowed(call, seconds), counterpart


def slowed(call: Call, seconds: float) -> Call:
    """Return a call that makes this call, and then works for `seconds`."""

    def run() -> object:
        result = call()
        until = time.perf_counter() + seconds
        while time.perf_counter() < until:
            pass
        return result

    return run
