"""The gate of latencies: when one is a regression, and where its baselines are.

A ratio is measured on SETS of inputs, each in memory of its own, since where tensors lie changes a kernel by several
per cent. In each set the fastest of many samples counts on either side, since others on the machine only ever add.
Everything runs with one thread, since a neighbour that takes one of two cores doubles a call with two threads and
leaves one with one alone. What remains (caches and memory that neighbours share) differs from row to row, so it is
measured when a baseline is recorded: the margin is three times that spread, and never under LEAST_MARGIN.
"""

from __future__ import annotations

import json
import math
import platform
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from quambench_kernels.hadamard_quantize import cpu
from quambench_kernels.native import why_not

from quambench.bench.interleave import Make, Ratio, samples
from quambench.core.errors import BadArtefact
from quambench.core.files import locked, write
from quambench.core.memory import keep_freed_memory
from quambench.core.pointers import check_fetched
from quambench.core.provenance import machine_class
from quambench.core.reading import Unreadable, mappings, number, read_json, shown

SCHEMA = 1
SETS = 10
ROUNDS, FEWEST_ROUNDS = 200, 5  # samples of each set
MEASURED_SECONDS = 3.0  # what a measurement may take before rounds are left out
RECORDED = 5  # measurements that a baseline is made of
LEAST_MARGIN = math.log(1.10)
SPREADS = 3.0  # of the margin


@dataclass(frozen=True, slots=True)
class Recorded:
    """A baseline.

    ratio   the median of its measurements
    spread  the standard deviation of their logarithms
    """

    ratio: float
    spread: float

    def __post_init__(self) -> None:
        """Refuse numbers that no measurement can come to, since every verdict after them would say nothing.

        raises BadArtefact
        """
        if not (number(self.ratio) and 0 < self.ratio < math.inf):
            raise BadArtefact(f"a ratio must be a number above 0 (got {shown(self.ratio)})")
        if not (number(self.spread) and 0 <= self.spread < math.inf):
            raise BadArtefact(f"a spread must be a number of 0 or more (got {shown(self.spread)})")

    @property
    def margin(self) -> float:
        """The margin of the ratio's logarithm: how far a clean repetition may differ."""
        return max(LEAST_MARGIN, SPREADS * self.spread)


@dataclass(frozen=True, slots=True)
class LatencyVerdict:
    """A verdict on a latency.

    status  "NEW", "SAME", "REGRESSED" or "IMPROVED"
    latest  the last measurement made
    """

    status: str
    latest: Ratio
    stored: Recorded | None

    @property
    def fails(self) -> bool:
        return self.status == "REGRESSED"

    def __str__(self) -> str:
        if self.stored is None:
            return f"{self.status}: ratio {self.latest}; no baseline of this machine's class"
        margin = math.expm1(self.stored.margin)
        return f"{self.status}: ratio {self.stored.ratio:.3f} -> {self.latest} (margin {margin:.0%})"


@contextmanager
def one_thread() -> Iterator[None]:
    """Give PyTorch, and so the kernels, a single thread during the block."""
    before = torch.get_num_threads()
    keep_freed_memory()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def measured(make: Make) -> Ratio:
    """Make one measurement; its interval is Student's t over the sets' ratios."""
    with one_thread():
        taken = samples([make() for _ in range(SETS)], ROUNDS, FEWEST_ROUNDS, MEASURED_SECONDS)
    fastest = taken.min(dim=0).values  # (SETS, 2)
    logs = (fastest[:, 0] / fastest[:, 1]).log()
    from scipy import stats  # here: importing it takes a second and a half

    reach = float(stats.t.isf(0.025, SETS - 1)) * logs.std().item() / SETS**0.5
    mean, seconds = logs.mean().item(), fastest.median(dim=0).values
    value, low, high = (math.exp(x) for x in (mean, mean - reach, mean + reach))
    return Ratio(value, low, high, float(seconds[0]), float(seconds[1]), len(taken))


def record(make: Make) -> Recorded:
    """Make RECORDED measurements, and a baseline of them."""
    logs = torch.tensor([measured(make).value for _ in range(RECORDED)], dtype=torch.float64).log()
    return Recorded(math.exp(logs.median()), logs.std().item())


def judge(measure: Callable[[], Ratio], stored: Recorded | None) -> LatencyVerdict:
    """Judge a latency: REGRESSED (or IMPROVED) when the interval clears the stored ratio by its margin, twice in a
    row.
    """
    latest = measure()
    if stored is None:
        return LatencyVerdict("NEW", latest, None)
    for status, clears in (("REGRESSED", slower), ("IMPROVED", faster)):
        if clears(latest, stored):
            latest = measure()
            return LatencyVerdict(status if clears(latest, stored) else "SAME", latest, stored)
    return LatencyVerdict("SAME", latest, stored)


def slower(now: Ratio, stored: Recorded) -> bool:
    """Whether one measurement's interval lies above the stored ratio and its margin."""
    return math.log(now.low / stored.ratio) > stored.margin


def faster(now: Ratio, stored: Recorded) -> bool:
    """Whether one measurement's interval lies below the stored ratio less its margin."""
    return math.log(now.high / stored.ratio) < -stored.margin


def latency_class() -> str:
    """Return the class of comparable latencies: processor, PyTorch, compiler, "cpu-x86_64-avx2-amd-epyc-25-17-2.13".

    It is finer than numbers' classes, since another PyTorch has other products, and without a compiler other kernels
    run.
    """
    words = [machine_class(), *_processor().lower().split(), ".".join(torch.__version__.split(".")[:2])]
    words += ["without-compiler"] if why_not(cpu.SOURCE)() else []
    return "-".join(_plain(word) for word in words if _plain(word))


def _plain(word: str) -> str:
    return "".join(c for c in word if c.isalnum() or c in "-_.")


def _processor() -> str:
    """Return name, family and model of the processor, as far as the system says; without the words that name none."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        fields = {name.strip(): value for name, _, value in (line.partition(":") for line in reversed(lines))}
        name = " ".join([fields["model name"], fields["cpu family"], fields["model"]])
    except (OSError, KeyError):
        name = platform.processor()
    dropped = ("processor", "cpu", "@", "(r)", "(tm)")
    return " ".join(w for w in name.split() if w.lower() not in dropped and not w.endswith("GHz"))


class LatencyStore:
    """The stored ratios of this class: <root>/latency/<class>.json."""

    def __init__(self, root: Path) -> None:
        self.path = root / "latency" / f"{latency_class()}.json"

    def read(self) -> dict[str, Recorded]:
        """Return row -> what is stored; empty where this class has nothing. raises BadArtefact"""
        if not self.path.exists():
            return {}
        check_fetched(self.path, BadArtefact)
        try:
            document = read_json(self.path)
        except Unreadable as error:
            raise self._refused(error.why) from None
        if not mappings(document, "rows"):
            raise self._refused("it must be an object with rows")
        if document.get("schema") != SCHEMA:
            raise BadArtefact(f"{self.path} has schema {shown(document.get('schema'))}, known is {SCHEMA}")
        found = {}
        for name, row in document["rows"].items():
            if not isinstance(row, dict) or row.keys() != {"ratio", "spread"}:
                raise self._refused(f"{shown(name)} must have a ratio and a spread, and nothing else")
            try:
                found[name] = Recorded(**row)
            except BadArtefact as error:
                raise self._refused(f"{shown(name)}: {error}") from None
        return found

    def _refused(self, why: str) -> BadArtefact:
        return BadArtefact(
            f"{self.path} is not a readable latency baseline ({why}); remove it and record it anew: --qb-update"
        )

    def write(self, rows: Mapping[str, Recorded], source: Mapping[str, Any]) -> Path:
        """Put these rows beside those stored by now, in one atomic step. raises BadArtefact, NotWritten"""
        with locked(self.path.parent):
            kept = self.read() | dict(rows)
            document = {
                "schema": SCHEMA,
                "source": dict(source),
                "rows": {name: asdict(kept[name]) for name in sorted(kept)},
            }
            write(self.path, json.dumps(document, indent=1) + "\n")
        return self.path
