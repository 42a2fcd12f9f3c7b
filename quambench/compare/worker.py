"""One side of `quambench compare`: measures cases on request, with the code it was started with.

`python -m quambench.compare.worker` reads one JSON line {"model", "corpus", "observers", "full", "out"},
then requests, each a JSON line that is answered by one, which may always be {"error"}:

    3                       measure that case    {"file": a baseline, "rests_on": names of its probes}
    {"streams", "into"}     answer all probes    {"answered": their names}
    {"streams", "against"}  check all probes     {"otherwise": [[name, reason], ...]}; "" is what is stored

The files are baselines and probes' answers, so two revisions understand each other as far as those
do; a revision without probes ends at such a request. What measured code prints goes to stderr.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TextIO

from quambench.case import FULL, Case, Protocol
from quambench.core.errors import QuambenchError
from quambench.core.provenance import provenance
from quambench.data.corpus import load_corpus
from quambench.gate import probes
from quambench.gate.baselines import write_baseline
from quambench.gate.comparisons import gated
from quambench.gate.noise import disturbance, spread
from quambench.gate.record import record_of
from quambench.models.checkpoint import load_checkpoint
from quambench.run.runner import ModelRun


@dataclass(frozen=True, slots=True)
class Task:
    """What both sides are asked to measure."""

    model: str  # a bundled name or a folder, as given
    observers: tuple[str, ...]
    corpus: str = ""  # "" for the default
    full: bool = False

    def to_json(self, out: Path) -> str:
        fields = {"model": self.model, "observers": list(self.observers), "corpus": self.corpus, "full": self.full}
        return json.dumps(fields | {"out": str(out)})


def serve(lines: Iterable[str], answers: TextIO) -> None:
    """Answer until the lines end."""
    requests = iter(lines)
    job = json.loads(next(requests))
    work: ModelRun | None = None
    for line in requests:
        try:
            request = json.loads(line)
            if isinstance(request, dict):
                answer = _answer_probes(request) if "into" in request else _check_probes(request)
            else:
                work = work or _start(job)
                answer = _measure(work, request, Path(job["out"]))
        except Exception as error:  # the other side must hear of it, whatever it is
            kind = "" if isinstance(error, QuambenchError) else f"{type(error).__name__}: "
            answer = {"error": kind + " ".join(str(error).split())}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


def _start(job: dict[str, Any]) -> ModelRun:
    checkpoint = load_checkpoint(job["model"])
    protocol = FULL if job["full"] else Protocol()
    cases = [Case.parse(checkpoint.name, text, protocol) for text in job["observers"]]
    return ModelRun(checkpoint, load_corpus(job["corpus"] or None), cases)


def _measure(work: ModelRun, number: int, out: Path) -> dict[str, Any]:
    case = work.cases[number]
    record = record_of(work.result(case), provenance())
    disturbed = work.measure_again(case, disturb=disturbance(seed=0))
    path = out / str(number) / f"{case.model}.json"
    write_baseline(path, {case.id: replace(record, noise=spread(record.evidence, disturbed, gated(record.evidence)))})
    return {"file": str(path), "rests_on": probes.rested_on(work.checkpoint.config.architecture, case)}


def _answer_probes(request: dict[str, str]) -> dict[str, Any]:
    """Write this code's answers; a question that only the other side understands has none here."""
    into = Path(request["into"])
    into.write_text(json.dumps({"schema": probes.SCHEMA, "probes": {}}))
    answered, errors = [], []
    for probe in probes.all_probes():
        try:
            probes.record({probe.name}, into, Path(request["streams"]))
            answered.append(probe.name)
        except Exception as error:  # whatever a broken unit trips over
            errors.append(error)
    if not answered and errors:
        raise errors[0]
    return {"answered": answered}


def _check_probes(request: dict[str, str]) -> dict[str, Any]:
    expected = Path(request["against"]) if request["against"] else probes.EXPECTED
    results = probes.check(expected, Path(request["streams"]))
    return {"otherwise": [[r.name, r.reason] for r in results if r.status in ("changed", "error")]}


if __name__ == "__main__":
    own = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # also for what is printed by other than Python code
    sys.stdout = sys.stderr
    serve(sys.stdin, own)
