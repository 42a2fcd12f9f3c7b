"""How often the gate is wrong, by simulation: false alarms of whole runs, and what a second look lets it see.

Rows are made by chance: documents that differ, windows in documents, some of them heavier than a normal
distribution has them, and the rest of a second look in the same documents as the first. Each is judged as a stored
row is (gate/verdicts.py), on the counts of the suites' protocols.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from unittest.mock import patch

import torch
from torch import Tensor

from quambench.case import LARGER, QUICK
from quambench.gate import comparisons, verdicts
from quambench.gate.noise import Noise
from quambench.gate.record import Artefacts, Record
from quambench.gate.verdicts import Status, judge
from quambench.metrics.base import UNMEASURED

DOCUMENTS = 20  # of the corpus' test part
TOKENS = 256.0
ITEMS = 650  # last-word items of the corpus' test part, about
RIGHT = 0.2  # share that a model answers
FLIPS = 0.05  # share of items that a change which is none turns over, as many one way as the other
CASES = (1, 12, 40)  # cases in a baseline file
LEVELS = (0.1, 0.01)  # beside the gate's own, at which alarms are frequent enough to be counted
LOSSES = (0.05, 0.10, 0.15, 0.20)  # of accuracy

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True)
class Rate:
    """Alarms among runs of clean files, each of `cases` rows."""

    level: float  # nominal: at most this share of runs has an alarm
    cases: int
    runs: int
    alarms: int
    second_looks: int

    @property
    def measured(self) -> float:
        return self.alarms / self.runs

    @property
    def holds(self) -> bool:
        """Whether no more alarms were met than three standard deviations above the nominal share."""
        expected = self.level * self.runs
        deviation: float = (expected * (1 - self.level)) ** 0.5
        return self.alarms <= expected + 3 * deviation + 1


@dataclass(frozen=True, slots=True)
class Power:
    """How often a loss of accuracy turns a row red, in a file of the most CASES."""

    loss: float  # share of items, true
    rows: int
    one_look: int  # rows that are red by the first look at the whole level
    two_looks: int  # by half of it, and a second look where that is suspicious


def error_rates(rows: int, progress: Progress = lambda what, done, total: None, seed: int = 0) -> list[Rate]:
    """False alarms over `rows` rows, in runs of each number of cases, at each of LEVELS."""
    found = []
    for level in LEVELS:
        for cases in CASES:
            alarms = second = 0
            runs = max(rows // cases, 1)
            with _at(level):
                for run in range(runs):
                    progress(f"clean runs of {cases} cases at level {level:g}", run, runs)
                    generator = torch.Generator().manual_seed(hash((seed, cases, run)) & 0xFFFFFFFF)
                    outcomes = [_judged(_clean(generator), cases) for _ in range(cases)]
                    alarms += any(red for red, _ in outcomes)
                    second += sum(looked for _, looked in outcomes)
            found.append(Rate(level, cases, runs, alarms, second))
    return found


def powers(rows: int, progress: Progress = lambda what, done, total: None, seed: int = 1) -> list[Power]:
    """Rows that a loss of accuracy turns red, at the gate's own level, with one look and with two."""
    found = []
    for loss in LOSSES:
        one = two = 0
        for row in range(rows):
            progress(f"rows that lose {loss:.0%} of accuracy", row, rows)
            pair = _clean(torch.Generator().manual_seed(hash((seed, loss, row)) & 0xFFFFFFFF), loss)
            two += _judged(pair, CASES[-1])[0]
            old, new, _ = pair
            one += _judged((replace(old, rest={}), new, {}), CASES[-1])[0]
        found.append(Power(loss, rows, one, two))
    return found


@contextmanager
def _at(level: float) -> Iterator[None]:
    with patch.object(comparisons, "FAMILY_LEVEL", level), patch.object(verdicts, "FAMILY_LEVEL", level):
        yield


Pair = tuple[Record, Record, dict[str, Tensor]]


def _judged(pair: Pair, cases: int) -> tuple[bool, bool]:
    """(whether the row is called better or worse, whether it took a second look)"""
    old, new, rest = pair
    verdict = judge(new, old, cases)
    looked = verdict.suspicious
    if looked:
        verdict = judge(new, old, cases, rest=rest)
    return verdict.status in (Status.REGRESSED, Status.IMPROVED), looked


def _clean(generator: torch.Generator, loss: float = 0.0) -> Pair:
    """A stored row, another that differs from it by chance and by a loss of accuracy, and that one's rest."""
    larger = LARGER[QUICK]
    effects = {name: _heavy(generator, DOCUMENTS) for name in ("nll", "kl", "agree", "kl_prefill")}
    looks = [
        _look(generator, effects, QUICK.quality_windows, QUICK.decode_windows, QUICK.max_items, loss),
        _look(
            generator, effects, larger.quality_windows - QUICK.quality_windows,
            larger.decode_windows - QUICK.decode_windows, ITEMS - QUICK.max_items, loss,
        ),
    ]  # fmt: skip
    (was, now), (rest_was, rest_now) = looks
    noise = Noise(means=dict.fromkeys(comparisons.gated({}), 0.0))
    old = Record(
        "row", {"act_bits": 8}, dict.fromkeys(METRICS, UNMEASURED), was, Artefacts({}, {}), {}, noise,
        rest=rest_was, rest_digest="rest",
    )  # fmt: skip
    return old, Record("row", old.settings, {}, now, old.artefacts, {}), rest_now


METRICS = ("loss_rise", "kl", "agreement", "decode_ppl_ratio", "decode_kl", "decode_gap", "accuracy")


def _look(
    generator: torch.Generator, effects: dict[str, Tensor], n_quality: int, n_decode: int, n_items: int, loss: float
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Evidence of two results on the same windows and items, whose documents the two looks share."""
    was: dict[str, Tensor] = {}
    now: dict[str, Tensor] = {}
    for phase, n in (("prefill", n_quality), ("decode", n_decode)):
        documents = torch.arange(n) % DOCUMENTS
        both = {
            f"{phase}.tokens": torch.full((n,), TOKENS, dtype=torch.float64),
            f"{phase}.document": documents.int(),
            f"{phase}.nll_float": torch.full((n,), 3 * TOKENS, dtype=torch.float64),
        }
        was, now = was | both, now | both
        for name, effect in effects.items():
            base = 3 * TOKENS + _heavy(generator, n)
            was[f"{phase}.{name}"] = base
            now[f"{phase}.{name}"] = base + effect[documents] + _heavy(generator, n)
    right = (torch.rand(n_items, generator=generator) < RIGHT).to(torch.uint8)
    turned = torch.rand(n_items, generator=generator) < FLIPS / 2 / torch.where(right.bool(), RIGHT, 1 - RIGHT)
    after = torch.where(turned, 1 - right, right)
    gone = (torch.rand(n_items, generator=generator) < loss / RIGHT) & after.bool()
    items = {"items.correct_float": right, "items.document": (torch.arange(n_items) % DOCUMENTS).int()}
    was |= items | {"items.correct": right}
    now |= items | {"items.correct": torch.where(gone, torch.zeros_like(after), after)}
    return was, now


def _heavy(generator: torch.Generator, n: int) -> Tensor:
    """(n,) float64 of Student's t with five degrees of freedom: heavier tails than a normal distribution's."""
    normal = torch.randn(6, n, generator=generator, dtype=torch.float64)
    return normal[0] / (normal[1:].square().mean(0)).sqrt()
