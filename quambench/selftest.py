"""Is the gate any good? Plant every fault of gate/faults/, run the gate, and see what it says.

Everything goes the way of a real run: a Session records baselines from clean code, then judges the
same cases again, with a fault in place or, in other processes, under other numerics. Only the
amount is smaller (PROTOCOL), so that a fault takes about a second.
"""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from quambench import evaluate
from quambench.case import Case, Protocol
from quambench.errors import QuambenchError
from quambench.gate.faults import FAULTS, SCAN_INPUT, Fault
from quambench.gate.verdicts import Status, Verdict
from quambench.session import Session

MODELS = ("mamba-tiny", "mamba2-tiny")
OBSERVER = "percentile[alpha=0.999,sigma=0.05]"  # no parameter is its own complement, none a default
PROTOCOL = Protocol(
    calib_windows=20, calib_length=64, quality_windows=8, quality_length=64, decode_windows=8, decode_prefix=8,
    decode_steps=16, error_windows=4, error_length=64, max_items=16,
)  # fmt: skip
SUITE = "selftest"

# Settings that did not make the floors (those are one thread with avx2, and a disturbance): each in
# a process of its own, in which every batch of CLEAN_BATCHES is one clean run.
CLEAN_SETTINGS: dict[str, dict[str, str]] = {
    "2 threads": {"OMP_NUM_THREADS": "2"},
    "2 threads, default": {"OMP_NUM_THREADS": "2", "ATEN_CPU_CAPABILITY": "default"},
    "2 threads, avx512": {"OMP_NUM_THREADS": "2", "ATEN_CPU_CAPABILITY": "avx512"},
    "oneDNN AVX2": {"ONEDNN_MAX_CPU_ISA": "AVX2"},
    "no C++ compiler": {"CXX": "none"},
    "PYTHONHASHSEED 7": {"PYTHONHASHSEED": "7"},
    "class file removed": {"PYTHONHASHSEED": "11"},
}
NEEDS = {"2 threads, avx512": "AVX512"}  # setting -> torch's CPU capability, without which it would crash
CLEAN_BATCHES = (2, 3, 5, 7, 16)  # each composes the windows and items otherwise

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What the gate said to one fault in one model."""

    fault: str
    model: str
    verdict: str
    unit: str
    place: str
    wanted_unit: str
    wanted_place: str
    caught: bool
    named: bool | None  # None where nothing is to be named
    reason: str
    no_op: str
    seconds: float


@dataclass(frozen=True, slots=True)
class Clean:
    """What the gate said to unchanged code."""

    setting: str
    batch: int
    model: str
    verdict: str
    portable: bool
    reason: str

    @property
    def alarm(self) -> bool:
        return self.verdict != Status.SAME


@dataclass(frozen=True, slots=True)
class Report:
    """The whole self-test."""

    outcomes: tuple[Outcome, ...]
    clean: tuple[Clean, ...]
    seconds: float

    @property
    def missed(self) -> list[Outcome]:
        return [o for o in self.outcomes if not o.caught and not o.no_op]

    @property
    def alarms(self) -> list[Clean | Outcome]:
        return [c for c in self.clean if c.alarm] + [o for o in self.outcomes if o.no_op and o.caught]

    @property
    def named(self) -> tuple[int, int]:
        """(named rightly, of those that have something to be named)"""
        asked = [o.named for o in self.outcomes if o.named is not None]
        return sum(asked), len(asked)

    @property
    def passes(self) -> bool:
        right, asked = self.named
        return not self.missed and not self.alarms and right >= 0.9 * asked


def selftest(
    models: Sequence[str] = MODELS,
    chosen: Sequence[str] = (),
    corpus: Path | None = None,
    clean_runs: bool = True,
    progress: Progress = lambda what, done, total: None,
) -> Report:
    """Plant all faults (or those named in `chosen`) in each model, then run clean code elsewhere.

    raises QuambenchError for a model or corpus that cannot be read; BadParameter for an unknown fault
    """
    started = time.perf_counter()
    faults = [f for f in FAULTS if not chosen or f.name in chosen]
    with tempfile.TemporaryDirectory(prefix="quambench-selftest-") as folder:
        baselines = Path(folder) / "baselines"
        recorded = _session(baselines, corpus, update=True)
        wanted = {(m, text): _case(recorded, m, text) for m in models for text in _texts(recorded, m, faults)}
        cases = list(wanted.values())
        recorded.plan(cases)
        for i, case in enumerate(cases):
            progress("recording baselines from clean code", i, len(cases))
            recorded.judge(SUITE, case)
        recorded.write()
        outcomes = []
        for i, planted in enumerate(faults):
            progress("planting faults", i, len(faults))
            outcomes += [
                _plant(planted, m, wanted[m, planted.case], recorded) for m in models if (m, planted.case) in wanted
            ]
        clean = _clean_runs(models, corpus, baselines, progress) if clean_runs else ()
    found = tuple(o for o in outcomes if o is not None)
    return Report(found, tuple(clean), time.perf_counter() - started)


def _session(baselines: Path, corpus: Path | None, update: bool = False) -> Session:
    return Session(baselines, corpus, update=update)


def _case(session: Session, model: str, text: str = "") -> Case:
    return Case.parse(session.load(model).name, text or OBSERVER, PROTOCOL)


def _texts(session: Session, model: str, faults: Sequence[Fault]) -> list[str]:
    """The cases that a model's faults are planted in; the usual one always, since clean runs judge it."""
    kind = session.load(model).config.architecture
    return list(dict.fromkeys(["", *(f.case for f in faults if kind in f.architectures)]))


def _plant(planted: Fault, model: str, case: Case, clean: Session) -> Outcome | None:
    """One fault in one model; None where the architecture has no such part."""
    checkpoint = clean.checkpoints[case.model]
    kind = checkpoint.config.architecture
    if kind not in planted.architectures:
        return None
    started = time.perf_counter()
    # The float checkpoint, its answers and the corpus are what no calibration code can spoil.
    session = _session(clean.baselines, clean.corpus_path)
    session.adopt(clean)
    session.plan([case])
    with planted.plant():
        try:
            verdict = session.judge(SUITE, case)
        except QuambenchError as refused:
            verdict = Verdict(case.id, Status.ERROR, str(refused))
    unit, place = planted.unit, planted.place.replace("{scan}", SCAN_INPUT[kind])
    failed = verdict.status is Status.ERROR
    return Outcome(
        fault=planted.name,
        model=model,
        verdict=verdict.status.value,
        unit=verdict.unit,
        place=verdict.place,
        wanted_unit=unit,
        wanted_place=place,
        caught=not verdict.passes() and (failed == planted.error),
        named=_named(verdict, unit, place) if unit or place else None,
        reason=verdict.reason,
        no_op=planted.no_op,
        seconds=round(time.perf_counter() - started, 2),
    )


def _named(verdict: Verdict, unit: str, place: str) -> bool:
    """The unit's probe where a unit is at fault, and the first site where one differs."""
    right_unit = not unit or re.match(unit, verdict.unit) is not None
    right_place = not place or re.match(place, verdict.place) is not None
    return right_unit and right_place


def clean_settings() -> dict[str, dict[str, str]]:
    """Those of CLEAN_SETTINGS that this machine can run."""
    capability = torch.backends.cpu.get_cpu_capability()
    return {s: e for s, e in CLEAN_SETTINGS.items() if NEEDS.get(s, capability) == capability}


def _clean_runs(models: Sequence[str], corpus: Path | None, baselines: Path, progress: Progress) -> list[Clean]:
    found: list[Clean] = []
    settings = clean_settings()
    for i, (setting, environment) in enumerate(settings.items()):
        progress("clean runs under other numerics", i, len(settings))
        at = baselines
        if setting == "class file removed":
            at = baselines.with_name("elsewhere")
            for folder in (baselines / SUITE).iterdir():
                (at / SUITE).mkdir(parents=True, exist_ok=True)
                os.rename(folder, at / SUITE / f"cpu-{platform.machine().lower()}-elsewhere")
        job = {"setting": setting, "models": list(models), "corpus": str(corpus or ""), "baselines": str(at)}
        path = os.pathsep.join(p for p in sys.path if p)
        done = subprocess.run(
            [sys.executable, "-m", "quambench.selftest", json.dumps(job)],
            env=os.environ | environment | {"PYTHONPATH": path},
            capture_output=True,
            text=True,
        )
        if done.returncode != 0:
            last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
            found.append(Clean(setting, 0, "-", Status.ERROR.value, False, f"the clean run failed: {last}"))
        else:
            found += [Clean(**entry) for entry in json.loads(done.stdout.splitlines()[-1])]
    return found


def _clean(job: dict[str, str], models: Sequence[str]) -> list[Clean]:
    """In another process: judge clean code once per batch composition."""
    found = []
    answers = _session(Path(job["baselines"]), Path(job["corpus"]) if job["corpus"] else None)
    cases = [_case(answers, model) for model in models]
    for batch in CLEAN_BATCHES:
        session = _session(answers.baselines, answers.corpus_path)
        session.adopt(answers)
        session.plan(cases)
        session.window_batch = evaluate.ITEM_BATCH = batch
        for case in cases:
            v = session.judge(SUITE, case)
            found.append(Clean(job["setting"], batch, case.model, v.status.value, v.portable, v.reason))
    return found


if __name__ == "__main__":
    _job = json.loads(sys.argv[1])
    print(json.dumps([asdict(c) for c in _clean(_job, _job["models"])]))
