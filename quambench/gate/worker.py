"""One side of `quambench compare`: measures cases on request, with the code it was started with.

`python -m quambench.gate.worker` reads one JSON line {"model", "corpus", "observers", "full", "out"},
then case numbers, one a line; each is answered by a JSON line {"case", "file"} or {"case", "error"}.
The files are baselines, so two revisions understand each other as far as their schemas migrate.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TextIO

from quambench.case import FULL, Case, Protocol
from quambench.data.corpus import load_corpus
from quambench.errors import QuambenchError
from quambench.gate.baselines import write_baseline
from quambench.gate.noise import disturbance, spread
from quambench.gate.record import record_of
from quambench.gate.verdicts import GATED
from quambench.models.checkpoint import load_checkpoint
from quambench.observers import ObserverSpec
from quambench.provenance import provenance
from quambench.runner import ModelRun


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
        number = int(line)
        try:
            work = work or _start(job)
            answer: dict[str, Any] = {"case": number, "file": str(_measure(work, number, Path(job["out"])))}
        except Exception as error:  # the other side must hear of it, whatever it is
            kind = "" if isinstance(error, QuambenchError) else f"{type(error).__name__}: "
            answer = {"case": number, "error": kind + " ".join(str(error).split())}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


def _start(job: dict[str, Any]) -> ModelRun:
    checkpoint = load_checkpoint(job["model"])
    protocol = FULL if job["full"] else Protocol()
    specs = [ObserverSpec.parse(text) for text in job["observers"]]
    cases = [Case(model=checkpoint.name, observer=spec, protocol=protocol) for spec in specs]
    return ModelRun(checkpoint, load_corpus(job["corpus"] or None), cases)


def _measure(work: ModelRun, number: int, out: Path) -> Path:
    case = work.cases[number]
    record = record_of(work.result(case), provenance())
    disturbed = work.measure_again(case, disturb=disturbance(seed=0))
    path = out / str(number) / f"{case.model}.json"
    write_baseline(path, {case.id: replace(record, noise=spread(record.evidence, disturbed, GATED))})
    return path


if __name__ == "__main__":
    serve(sys.stdin, sys.stdout)
