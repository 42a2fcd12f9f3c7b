"""Is the gate any good? Plant every fault of gate/faults/, run the gate, and see what it says.

Everything goes the way of a real run: a Session records baselines from clean code, then judges the
same cases again, with a fault in place or under other numerics. Only the amount is smaller (PROTOCOL),
so that a fault takes about a second or two.

All of it is done by workers, each a process with one thread (`python -m quambench.selftest.selftest`), so many
at once as asked. They share the baselines, which are files. What a worker keeps from one planting to
the next stands in `Ground`.
"""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from joblib import cpu_count

from quambench.case import Case, Protocol
from quambench.core.errors import BadParameter, QuambenchError
from quambench.core.plugins import one_line
from quambench.core.provenance import machine_class
from quambench.core.scratch import scratch
from quambench.core.workers import Answer, Crew, Job, serve
from quambench.evaluation import reference
from quambench.gate.baselines import BaselineStore, read_baseline
from quambench.gate.verdicts import Status, Verdict
from quambench.run.runner import ModelRun
from quambench.selftest.faults import FAULTS, SCAN_INPUT, Fault
from quambench.session.session import Session

MODELS = ("mamba-tiny", "mamba2-tiny")
OBSERVER = "percentile[alpha=0.999,sigma=0.05]"  # no parameter is its own complement, none a default
PROTOCOL = Protocol(
    calib_windows=20, calib_length=64, quality_windows=8, quality_length=64, decode_windows=8, decode_prefix=8,
    decode_steps=16, error_windows=4, error_length=64, max_items=16,
)  # fmt: skip
SUITE = "selftest"
# Cases recorded by one worker in one go, whatever the number of workers: a calibration pass and another process
# serve them all.
TOGETHER = 6
WORKER = (sys.executable, "-m", "quambench.selftest.selftest")
# Threads that wait in turns would take the cores from the other workers.
ONE_THREAD = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}

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
    jobs: int = 0,
) -> Report:
    """Plant all faults (or those named in `chosen`) in each model, and run clean code under other numerics.

    jobs  workers at once; 0: as many as there are CPUs. The report is the same, but for seconds
    raises QuambenchError for a model or corpus that cannot be read, or clean code that cannot be recorded;
           BadParameter for an unknown fault
    """
    if jobs < 0:
        raise BadParameter(f"jobs must be 0 or more (got {jobs})")
    started = time.perf_counter()
    faults = [f for f in FAULTS if not chosen or f.name in chosen]
    with scratch() as folder:
        session = Session(folder, corpus)
        _ = session.corpus  # one that cannot be read is told before anything is started
        given = {"corpus": str(corpus or ""), "protocol": asdict(PROTOCOL)}
        path = os.pathsep.join(p for p in sys.path if p)
        with Crew((*WORKER, json.dumps(given)), jobs or cpu_count(), ONE_THREAD | {"PYTHONPATH": path}) as crew:
            baselines = _recorded(crew, session, models, faults, progress)
            plantings = list(_plantings(session, models, faults))
            settings = clean_settings() if clean_runs else {}
            clean_jobs = [_clean_job(setting, models, baselines) for setting in settings]
            # Clean runs first: they are the longest, so that no worker ends long before the others.
            wanted = clean_jobs + [
                Job({"plant": p.fault.name, "model": p.model, "baselines": str(baselines)}, "outcome")
                for p in plantings
            ]
            answers: dict[int, Answer | str] = {}
            for index, answer in crew.work(wanted):
                answers[index] = answer
                n_clean = sum(i < len(clean_jobs) for i in answers)
                if index < len(clean_jobs):
                    progress("clean runs under other numerics", n_clean, len(clean_jobs))
                else:
                    progress("planting faults", len(answers) - n_clean, len(plantings))
        clean = [run for i, setting in enumerate(settings) for run in _clean_runs(setting, answers[i])]
        outcomes = [_outcome(p, answers[i]) for i, p in enumerate(plantings, start=len(clean_jobs))]
    return Report(tuple(outcomes), tuple(clean), time.perf_counter() - started)


@dataclass(frozen=True, slots=True)
class Planting:
    """One fault in one model, and what the gate should name."""

    fault: Fault
    model: str  # as given
    unit: str
    place: str

    @classmethod
    def of(cls, fault: Fault, model: str, architecture: str) -> Planting:
        return cls(fault, model, fault.unit, fault.place.replace("{scan}", SCAN_INPUT[architecture]))


def _plantings(session: Session, models: Sequence[str], faults: Sequence[Fault]) -> Iterator[Planting]:
    """Each fault in each model that has such a part."""
    for fault in faults:
        for model in models:
            kind = session.load(model).config.architecture
            if kind in fault.architectures:
                yield Planting.of(fault, model, kind)


def _recorded(crew: Crew, session: Session, models: Sequence[str], faults: Sequence[Fault], progress: Progress) -> Path:
    """The folder of baselines that clean code made of every case that is wanted.

    Some cases at a time, each time into a folder of their own, put together here: how strict the gate is hangs on
    how many cases a file has.
    """
    groups = []
    for model in models:
        texts = _texts(session, model, faults)
        groups += [(model, texts[i : i + TOGETHER]) for i in range(0, len(texts), TOGETHER)]
    wanted = [
        Job({"record": texts, "model": model, "into": str(session.baselines / f"recorded-{i}")}, "written")
        for i, (model, texts) in enumerate(groups)
    ]
    what = "recording baselines from clean code"
    progress(what, 0, len(wanted))
    baselines = session.baselines / "baselines"
    store = BaselineStore(baselines, machine_class())
    for done, (index, answer) in enumerate(crew.work(wanted), start=1):
        model, texts = groups[index]
        if isinstance(answer, str):
            raise QuambenchError(f"{model}: recording {', '.join(t or OBSERVER for t in texts)} failed: {answer}")
        for path in map(Path, answer["written"]):
            store.write(SUITE, path.stem, read_baseline(path).values())
        progress(what, done, len(wanted))
    return baselines


def _clean_job(setting: str, models: Sequence[str], baselines: Path) -> Job:
    at = baselines
    if setting == "class file removed":
        at = baselines.with_name("elsewhere")
        for folder in (baselines / SUITE).iterdir():
            shutil.copytree(folder, at / SUITE / f"cpu-{platform.machine().lower()}-elsewhere")
    return Job({"clean": setting, "models": list(models), "baselines": str(at)}, "runs", CLEAN_SETTINGS[setting])


def _clean_runs(setting: str, answer: Answer | str) -> list[Clean]:
    if isinstance(answer, str):
        return [Clean(setting, 0, "-", Status.ERROR.value, False, f"the clean run failed: {answer}")]
    return [Clean(**run) for run in answer["runs"]]


def _outcome(planting: Planting, answer: Answer | str) -> Outcome:
    """A worker that died is not what the gate said: a fault is missed, and a change of nothing raised an alarm."""
    if isinstance(answer, str):
        verdict = Verdict(planting.model, Status.ERROR, f"planting {planting.fault.name!r} failed: {answer}")
        return replace(_said(planting, verdict, 0.0), caught=bool(planting.fault.no_op))
    return Outcome(**answer["outcome"])


def _said(planting: Planting, verdict: Verdict, seconds: float) -> Outcome:
    fault, unit, place = planting.fault, planting.unit, planting.place
    failed = verdict.status is Status.ERROR
    return Outcome(
        fault=fault.name,
        model=planting.model,
        verdict=verdict.status.value,
        unit=verdict.unit,
        place=verdict.place,
        wanted_unit=unit,
        wanted_place=place,
        # A crash catches a fault only where one is due, or where a probe says whose it is.
        caught=not verdict.passes() and (failed == fault.error or (failed and bool(verdict.unit))),
        named=_named(verdict, unit, place) if unit or place else None,
        reason=verdict.reason,
        no_op=fault.no_op,
        seconds=round(seconds, 2),
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


def _case(session: Session, model: str, text: str, protocol: Protocol) -> Case:
    return Case.parse(session.load(model).name, text or OBSERVER, protocol)


def _texts(session: Session, model: str, faults: Sequence[Fault]) -> list[str]:
    """The cases that a model's faults are planted in; the usual one always, since clean runs judge it."""
    kind = session.load(model).config.architecture
    return list(dict.fromkeys(["", *(f.case for f in faults if kind in f.architectures)]))


class Ground:
    """What a worker plants in, and keeps from one planting to the next.

    That is the corpus, the checkpoints, the windows made of them and the float checkpoint's answers: what no
    calibration code can spoil. All else is made anew, each time in a session of its own.
    """

    def __init__(self, corpus: Path | None, protocol: Protocol) -> None:
        self._kept = Session(Path(), corpus)
        self._protocol = protocol

    def answer(self, request: Mapping[str, Any]) -> Answer:
        """One request of `selftest`, in a worker."""
        try:
            if "record" in request:
                return {"written": [str(p) for p in self.record(request["model"], request["record"], request["into"])]}
            if "clean" in request:
                runs = self.clean(request["clean"], request["models"], request["baselines"])
                return {"runs": [asdict(run) for run in runs]}
            (fault,) = (f for f in FAULTS if f.name == request["plant"])
            return {"outcome": asdict(self.plant(fault, request["model"], request["baselines"]))}
        except Exception as error:  # the other side must hear of it, whatever it is
            return {"error": one_line(error)}

    def _session(self, baselines: Path | str, update: bool = False) -> Session:
        session = Session(Path(baselines), self._kept.corpus_path, update=update)
        session.adopt(self._kept)
        return session

    def record(self, model: str, texts: Sequence[str], into: Path | str) -> list[Path]:
        """Baselines of some cases, from code as it is; returns what was written."""
        session = self._session(into, update=True)
        cases = [_case(self._kept, model, text, self._protocol) for text in texts]
        session.plan(cases)
        for case in cases:
            session.judge(SUITE, case)
        written = session.write()
        if refused := [v for v in session.verdicts if not v.written]:
            raise QuambenchError(f"{refused[0].case_id} was not stored: {refused[0].status} {refused[0].reason}")
        return written

    def plant(self, fault: Fault, model: str, baselines: Path | str) -> Outcome:
        """What the gate says to one fault in one model."""
        case = _case(self._kept, model, fault.case, self._protocol)
        planting = Planting.of(fault, model, self._kept.checkpoints[case.model].config.architecture)
        self._know(case)
        started = time.perf_counter()
        session = self._session(baselines)
        session.plan([case])
        with fault.plant():
            try:
                verdict = session.judge(SUITE, case)
            except QuambenchError as refused:
                verdict = Verdict(case.id, Status.ERROR, str(refused))
        return _said(planting, verdict, time.perf_counter() - started)

    def _know(self, case: Case) -> None:
        """Have what is kept made by code as it is, before a fault is planted in what makes it."""
        kept = self._kept
        run = ModelRun(kept.checkpoints[case.model], kept.corpus, [case], known=kept.known)
        _ = run.answers, run.calibration_sequences

    def clean(self, setting: str, models: Sequence[str], baselines: Path | str) -> list[Clean]:
        """What the gate says to code as it is, once per batch composition."""
        found = []
        cases = [_case(self._kept, model, "", self._protocol) for model in models]
        for batch in CLEAN_BATCHES:
            session = self._session(baselines)
            session.plan(cases)
            session.window_batch = batch
            with patch.object(reference, "ITEM_BATCH", batch):
                verdicts = [session.judge(SUITE, case) for case in cases]
            found += [
                Clean(setting, batch, case.model, v.status.value, v.portable, v.reason)
                for case, v in zip(cases, verdicts, strict=True)
            ]
        return found


def main(given: str) -> None:
    """A worker."""
    kept = json.loads(given)
    ground = Ground(Path(kept["corpus"]) if kept["corpus"] else None, Protocol(**kept["protocol"]))
    serve(ground.answer)


if __name__ == "__main__":
    main(sys.argv[1])
