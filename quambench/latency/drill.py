"""The latency gate under test: slowdowns planted in a kernel, and clean repeats, judged as a run judges them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from quambench.latency.gate import judge, slower
from quambench.latency.interleave import Call, Ratio, interleaved
from quambench.latency.kernels import rows

SLOWER = 0.20
PLANTED, CLEAN = 20, 40  # tries of each row
SHAPE = "mamba2-130m"
ROWS = ("int8_linear", "int8_causal_conv1d", "int8_ssd", "hadamard_quantize", "rms_norm_quantize")  # of prefill


@dataclass(frozen=True, slots=True)
class Drill:
    """One row: how many of the planted slowdowns were caught and how many clean repeats raised an alarm.

    ..._at_once  where the first measurement alone would decide
    """

    row: str
    planted: int
    caught: int
    caught_at_once: int
    clean: int
    alarms: int
    alarms_at_once: int


def drill(
    progress: Callable[[str, int, int], None], planted: int = PLANTED, clean: int = CLEAN, of: tuple[str, ...] = ROWS
) -> Iterator[Drill]:
    """Each row is stored once, as --qb-update would, then judged again and again."""
    todo = [row for row in rows([SHAPE]) if "prefill" in row.name and row.name.split(",")[0] in of]
    for i, row in enumerate(todo):
        call, counterpart = row.make()
        stored = interleaved(call, counterpart)
        slow = slowed(call, SLOWER * stored.seconds)
        progress(f"{i + 1} of {len(todo)} kernels", 0, 2)
        red, red_at_once = _judged(slow, counterpart, stored, planted)
        progress(f"{i + 1} of {len(todo)} kernels", 1, 2)
        alarms, alarms_at_once = _judged(call, counterpart, stored, clean)
        yield Drill(row.name, planted, red, red_at_once, clean, alarms, alarms_at_once)


def _judged(call: Call, counterpart: Call, stored: Ratio, tries: int) -> tuple[int, int]:
    """How often it is a regression, and how often the first measurement alone says so."""
    red = at_once = 0
    for _ in range(tries):
        first = interleaved(call, counterpart)
        measured = iter([first])
        red += judge(lambda: next(measured, None) or interleaved(call, counterpart), stored).fails  # noqa: B023
        at_once += slower(first, stored)
    return red, at_once


def slowed(call: Call, seconds: float) -> Call:
    """The call, and then `seconds` of work."""

    def run() -> object:
        result = call()
        until = time.perf_counter() + seconds
        while time.perf_counter() < until:
            pass
        return result

    return run
