"""One run of the gate over many cases: what pytest and the command line share.

Holds the loaded models and what their cases have in common, the baselines, and the verdicts.
"""

from __future__ import annotations

import math
import traceback
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from quambench.case import Case
from quambench.data.corpus import Corpus, load_corpus
from quambench.errors import BadArtefact, BadCheckpoint, BadCorpus, BadParameter, MissingExtra, UnknownName
from quambench.evaluate import WINDOW_BATCH
from quambench.gate.baselines import BaselineStore, Stored
from quambench.gate.record import Record, record_of
from quambench.gate.verdicts import GATED, Status, Verdict, judge
from quambench.metrics import METRICS
from quambench.models.checkpoint import Checkpoint, load_checkpoint
from quambench.provenance import machine_class, provenance
from quambench.runner import ModelRun, Progress

# The caller's input, not a measurement: a run cannot go on. Everything else is an ERROR verdict.
INPUT_ERRORS = (BadCheckpoint, BadCorpus, BadParameter, MissingExtra, UnknownName)


def no_progress(what: str, done: int, total: int) -> None:
    """Says nothing."""


@dataclass
class Session:
    """Verdicts so far, and how to make more."""

    baselines: Path
    corpus_path: Path | None = None
    update: bool = False
    new_only: bool = False
    allow_drift: bool = False
    progress: Progress = no_progress
    checkpoints: dict[str, Checkpoint] = field(default_factory=dict)
    verdicts: list[Verdict] = field(default_factory=list)
    # (suite, model name) -> what --qb-update or --qb-new-only will write
    to_write: dict[tuple[str, str], list[Record]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.store = BaselineStore(self.baselines, machine_class())
        self._cases: dict[str, list[Case]] = {}
        self._runs: dict[str, ModelRun] = {}
        self._corpus: Corpus | None = None

    @property
    def corpus(self) -> Corpus:
        if self._corpus is None:
            self._corpus = load_corpus(self.corpus_path)
        return self._corpus

    def load(self, name_or_path: str) -> Checkpoint:
        """A model by name or folder; loaded once, known by its name from then on."""
        checkpoint = load_checkpoint(name_or_path)
        known = self.checkpoints.setdefault(checkpoint.name, checkpoint)
        if known.digest != checkpoint.digest:
            raise BadParameter(f"two different models are both named {checkpoint.name!r}; rename a folder")
        return known

    def plan(self, cases: Iterable[Case]) -> None:
        """Announce the cases to come: one calibration pass per model then serves all of them."""
        for case in cases:
            self._cases.setdefault(case.model, []).append(case)

    def _run(self, model: str) -> ModelRun:
        if model not in self._runs:
            self._runs.clear()  # one model's reference and calibrations in memory at a time
            if model not in self.checkpoints:
                self.load(model)
            self._runs[model] = ModelRun(self.checkpoints[model], self.corpus, self._cases[model], self.progress)
        return self._runs[model]

    def judge(self, suite: str, case: Case) -> Verdict:
        """Run one case and judge it against its baseline; the verdict is also kept.

        raises INPUT_ERRORS; any other failure becomes an ERROR verdict
        """
        try:
            verdict = self._judge(suite, case)
        except INPUT_ERRORS:
            raise
        except Exception as error:
            verdict = Verdict(case.id, Status.ERROR, _one_line(error), place=_where(error))
        self.verdicts.append(verdict)
        return verdict

    def _judge(self, suite: str, case: Case) -> Verdict:
        run = self._run(case.model)
        record = record_of(run.result(case), provenance())
        stored = self._stored(suite, case.model)
        old = stored.cases.get(case.id) if stored else None
        verdict = judge(record, old, len(stored.cases) if stored else 1, bool(stored and stored.portable))
        own = self.store.path(suite, case.model).exists()
        if self.update or (self.new_only and (old is None or not own)):
            noisy = replace(record, noise=self._noise(run, case, record))
            self.to_write.setdefault((suite, case.model), []).append(noisy)
            verdict = replace(verdict, written=True)
        return verdict

    def _stored(self, suite: str, model: str) -> Stored | None:
        """The baseline; one that cannot be read is no obstacle to replacing it."""
        try:
            return self.store.find(suite, model)
        except BadArtefact:
            if self.update:
                return None
            raise

    def _noise(self, run: ModelRun, case: Case, record: Record) -> dict[str, float]:
        """How far each gated metric moves with one thread and another batch composition."""
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            other = run.evidence(case, window_batch=WINDOW_BATCH - 5)
        finally:
            torch.set_num_threads(threads)
        pairs = ((n, METRICS[n].measure(other).value, record.metrics[n].value) for n in GATED)
        return {name: abs(a - b) for name, a, b in pairs if math.isfinite(a - b)}  # no items, no accuracy

    def orphans(self, suite: str, produced: Sequence[str]) -> list[Verdict]:
        """Stored cases of a suite that a full run did not produce; also kept as verdicts."""
        found = []
        models = {path.stem for path in (self.baselines / suite).glob("*/*.json")}
        for model in sorted(models):
            try:
                stored = self.store.find(suite, model)
            except BadArtefact as error:
                found.append(Verdict(f"{suite}/{model}", Status.ERROR, str(error)))
                continue
            for case_id in sorted(set(stored.cases) - set(produced)) if stored else ():
                reason = "stored, but no case produces it any more; a full run with --qb-update removes it"
                found.append(Verdict(case_id, Status.ORPHAN, reason, written=self.update))
        self.verdicts += found
        return found

    def write(self, produced: Mapping[str, Sequence[str]] | None = None) -> list[Path]:
        """Write what --qb-update or --qb-new-only collected.

        produced  suite -> ids of all its cases, on full runs: others are removed under update
        """
        paths = []
        for (suite, model), records in sorted(self.to_write.items()):
            keep = produced.get(suite) if produced is not None and self.update else None
            self._start_from_readable(suite, model)
            paths.append(self.store.write(suite, model, records, keep))
        return paths

    def _start_from_readable(self, suite: str, model: str) -> None:
        path = self.store.path(suite, model)
        try:
            self.store.find(suite, model)
        except BadArtefact:
            path.unlink()  # only under --qb-update, which asked to replace it


def _one_line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())


def _where(error: Exception) -> str:
    """file:line of the innermost frame: the place of a crash."""
    frames = traceback.extract_tb(error.__traceback__)
    if not frames:
        return ""
    last = frames[-1]
    return f"{Path(last.filename).name}:{last.lineno}"
