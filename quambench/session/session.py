"""One run of the gate over many cases: what pytest and the command line share.

Holds the loaded models and what their cases have in common, the baselines, and the verdicts.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path

from quambench.case import Case, Protocol, asks_tasks, is_full
from quambench.core.errors import (
    BadArtefact,
    BadCheckpoint,
    BadCorpus,
    BadParameter,
    BrokenJudge,
    MissingExtra,
    NewerSchema,
    NonFinite,
    NotWritten,
    OutsideFailed,
)
from quambench.core.plugins import one_line, place_of
from quambench.core.provenance import machine_class, provenance
from quambench.data.corpus import Corpus, load_corpus
from quambench.evaluation.reference import WINDOW_BATCH
from quambench.gate import probes
from quambench.gate.arrays import Evidence
from quambench.gate.baselines import BaselineStore, Stored
from quambench.gate.comparisons import gated
from quambench.gate.findings import Finding
from quambench.gate.noise import DISTURBANCES, DISTURBED, ELSEWHERE, disturbance, implausible, largest, spread
from quambench.gate.probes import ProbeResult
from quambench.gate.record import Record, record_of
from quambench.gate.verdicts import Status, Verdict, judge
from quambench.harness.asking import Tasks
from quambench.models.checkpoint import Checkpoint, load_checkpoint
from quambench.run.runner import Known, ModelRun, Progress
from quambench.session.rerun import Job, in_words, rerun

PROBE_STATUS = {
    "same": Status.SAME,
    "changed": Status.DRIFTED,
    "new": Status.NEW,
    "gone": Status.ORPHAN,
    "error": Status.ERROR,
}
# The caller's input, not a measurement: a run cannot go on. Everything else is an ERROR verdict, also
# a parameter that calibration code finds wrong: it may itself be what is wrong.
INPUT_ERRORS = (BadCheckpoint, BadCorpus, MissingExtra)


def no_progress(what: str, done: int, total: int) -> None:
    """Says nothing."""


@dataclass
class Session:
    """Verdicts so far, and how to make more."""

    baselines: Path
    corpus_path: Path | None = None
    root: Path | None = None  # of the project whose code is judged; none: the current folder
    update: bool = False
    new_only: bool = False
    accept: str = ""  # why worse results may be stored
    allow_drift: bool = False
    device: str = "cpu"  # of models; data and observers are on the host
    progress: Progress = no_progress
    window_batch: int = WINDOW_BATCH  # windows per forward of the INT8 model
    checkpoints: dict[str, Checkpoint] = field(default_factory=dict)
    known: Known = field(default_factory=Known)
    verdicts: list[Verdict] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)  # what a reader should know beside the verdicts
    refused: bool = False  # something was to be stored and was not
    interrupted: bool = False  # by whoever runs it, while results were being stored
    # (suite, model name) -> what --qb-update or --qb-new-only will write
    to_write: dict[tuple[str, str], list[tuple[Case, Record]]] = field(default_factory=dict)
    to_remove: dict[tuple[str, str], list[str]] = field(default_factory=dict)  # orphaned case ids

    def __post_init__(self) -> None:
        self.store = BaselineStore(self.baselines, machine_class(self.device))
        self._cases: dict[tuple[str, Protocol], list[Case]] = {}
        self._runs: dict[tuple[str, Protocol], ModelRun] = {}
        self._corpus: Corpus | None = None
        self._given: dict[str, str] = {}  # model name -> as it was asked for
        self._answers: dict[str, ProbeResult] = {}
        self.tasks = Tasks(self.corpus_path, self.device)

    @property
    def corpus(self) -> Corpus:
        if self._corpus is None:
            self._corpus = load_corpus(self.corpus_path)
            self.notes += [self._corpus.left_out] if self._corpus.left_out else []
        return self._corpus

    def load(self, name_or_path: str) -> Checkpoint:
        """A model by name or folder; loaded once, known by its name from then on."""
        checkpoint = load_checkpoint(name_or_path)
        known = self.checkpoints.setdefault(checkpoint.name, checkpoint)
        if known.digest != checkpoint.digest:
            raise BadParameter(f"two different models are both named {checkpoint.name!r}; rename a folder")
        self._given.setdefault(checkpoint.name, name_or_path)
        return known

    def adopt(self, other: Session) -> None:
        """Take over what another run loaded, and what it knows of that."""
        self._corpus = other.corpus
        self.checkpoints, self.known, self._given = other.checkpoints, other.known, other._given

    def plan(self, cases: Iterable[Case]) -> None:
        """Announce the cases to come: one calibration pass per model then serves all of them."""
        for case in cases:
            self._cases.setdefault((case.model, case.protocol), []).append(case)

    def _run(self, case: Case) -> ModelRun:
        key = case.model, case.protocol
        if key not in self._runs:
            self._runs.clear()  # one model's calibrations and results in memory at a time
            if case.model not in self.checkpoints:
                self.load(case.model)
            checkpoint, cases = self.checkpoints[case.model], self._cases[key]
            run = ModelRun(
                checkpoint, self.corpus, cases, self.progress, self.known, self.window_batch, self.device, self.tasks
            )
            self._runs[key] = run
        return self._runs[key]

    def judge(self, suite: str, case: Case) -> Verdict:
        """Run one case and judge it against its baseline; the verdict is also kept.

        raises INPUT_ERRORS, and BrokenJudge where an ERROR would pass; any other failure becomes an ERROR verdict
        """
        try:
            verdict = self._judge(suite, case)
        except INPUT_ERRORS:
            raise
        except Exception as error:
            verdict = self._failed(case, error)
        verdict = replace(verdict, suite=suite)
        self.keep([verdict])
        if verdict.status is Status.ERROR and verdict.passes(self.allow_drift):
            raise BrokenJudge(f"{case.id}: an ERROR passes, and must not ({verdict.reason})")
        return verdict

    def keep(self, verdicts: Iterable[Verdict]) -> None:
        """Verdicts of this process or of another; of a row that was made twice, the last stands."""
        self.verdicts = list({(v.suite, v.case_id): v for v in [*self.verdicts, *verdicts]}.values())

    def _failed(self, case: Case, error: Exception) -> Verdict:
        """A crash is the echo of what a probe may know better; the probes' own crash adds nothing."""
        probe = None
        with suppress(Exception):
            probe = self._broken_probe(case)
        reason = "; ".join(filter(None, [str(probe or ""), one_line(error)]))
        return Verdict(case.id, Status.ERROR, reason, unit=probe.place if probe else "", place=_where(error))

    def _judge(self, suite: str, case: Case) -> Verdict:
        run = self._run(case)
        record = record_of(run.result(case), provenance(self.device, self.root))
        self.notes += [f"{case.model}: {run.shortfall}"] if run.shortfall else []
        if case in run.refined:
            self.notes.append(f"{case.id}: {run.refined[case].summary}")
        stored = self._stored(suite, case)
        old = stored.cases[case.id] if stored else None
        n_cases = len(stored.cases) if stored else 1
        portable = bool(stored and stored.portable)
        probe = self._broken_probe(case)
        if probe and probes.distrusted(self._answers.values()):
            return self._untold(record, probe)
        verdict = judge(record, old, n_cases, portable, probe)
        if probe and verdict.status is Status.SAME:
            return self._untold(record, probe)
        if old is not None and verdict.suspicious:
            verdict = self._second_look(run, case, record, old, partial(judge, record, old, n_cases, portable, probe))
        if not (self.update or (self.new_only and (old is None or portable))):
            return verdict
        worse = verdict.status in (Status.REGRESSED, Status.INCONCLUSIVE)
        if verdict.status is Status.ERROR:
            return verdict
        if worse and not self.accept:
            return replace(verdict, reason=f'not stored, being worse (--qb-accept "why" stores it): {verdict.reason}')
        apart = [
            spread(record.evidence, run.measure_again(case, disturb=disturbance(seed)), gated(record.evidence))
            for seed in range(DISTURBANCES)
        ]
        record = replace(
            record,
            noise=largest(apart),
            accepted=self.accept if worse else "",
            rest=run.rest(case),
            rest_digest=run.rest_digest,
        )
        if why := implausible("a repetition with disturbed rounding", record.noise, record.evidence, DISTURBED):
            return replace(verdict, status=Status.ERROR, reason=why)
        self.to_write.setdefault((suite, case.model), []).append((case, record))
        return replace(verdict, written=True)

    def _second_look(
        self, run: ModelRun, case: Case, record: Record, old: Record, judged: Callable[..., Verdict]
    ) -> Verdict:
        """The verdict on a suspicious row, by windows and items that the first look left out."""
        if run.rest_digest != old.rest_digest:
            changed = f"data of the second look {old.rest_digest[:12]} -> {run.rest_digest[:12] or 'absent'}"
            reason = f"the stored result measured something else: {changed}"
            return Verdict(case.id, Status.STALE, reason, metrics=record.metrics, stored=old.metrics)
        verdict = judged(rest=run.rest(case))
        if verdict.status is Status.SAME:
            self.notes.append(f"{case.id}: suspicious at first, and a second look on other data found nothing")
        return verdict

    @cached_property
    def probes(self) -> dict[str, ProbeResult]:
        """Every unit's answers to its stored questions; asked once a run."""
        self._answers |= {result.name: result for result in probes.check()}
        return self._answers

    def _asked(self, names: Sequence[str]) -> Iterator[ProbeResult]:
        """The answers of some probes, each asked once a run, and when it is wanted; `names` in order of dependence."""
        open_ones = probes.in_turn(only=[name for name in names if name not in self._answers])
        for name in names:
            if name not in self._answers:
                self._answers[name] = next(open_ones)
            yield self._answers[name]

    def judge_probe(self, name: str) -> Verdict:
        """One probe as a row of its own; the verdict is also kept. raises BadArtefact"""
        result = self.probes[name]
        written = result.status == "new" and (self.update or self.new_only)
        written |= result.status in ("changed", "gone") and self.update
        status, reason = PROBE_STATUS[result.status], result.reason
        place = "" if status is Status.SAME else name
        verdict = Verdict(f"probe/{name}", status, reason, unit=place, written=written)
        self.keep([verdict])
        return verdict

    def _broken_probe(self, case: Case) -> Finding | None:
        """The first unit that this case rests on and that answers otherwise than stored."""
        results: Iterable[ProbeResult] = self._rested_on(case)
        if self.update or self.new_only:
            results = list(results)  # `write` tells of all that changed
        for result in results:
            if result.broken:
                return Finding(result.name, f"the unit answers its probe otherwise ({result.reason})")
        return None

    def _rested_on(self, case: Case) -> Iterator[ProbeResult]:
        architecture = self.checkpoints[case.model].config.architecture
        return self._asked(probes.rested_on(architecture, case))

    def _untold(self, record: Record, probe: Finding) -> Verdict:
        """Where what judges may find everything the same, the probe of itself too: it is not asked."""
        reason = f"{probe}; what judges is not as it was, so that no verdict can be trusted"
        return Verdict(record.case_id, Status.ERROR, reason, unit=probe.place, metrics=record.metrics)

    def _stored(self, suite: str, case: Case) -> Stored | None:
        """The baseline that has the case; one that cannot be read is no obstacle to replacing it."""
        try:
            return self.store.find(suite, case.model, case.id)
        except NewerSchema:
            raise
        except BadArtefact:
            if self.update:
                return None
            raise

    def orphans(
        self, suite: str, produced: Collection[str], full_size: bool = False, models: Collection[str] | None = None
    ) -> list[Verdict]:
        """Stored cases of a suite that a whole run did not produce; also kept as verdicts.

        full_size  the run was of --qb-full's cases: those and the others are judged apart; those with tasks never,
                   being made on request alone
        models     the models of the run, where not all: what is stored of others, it could not produce
        """
        found = []
        for model in self.store.models(suite):
            if models is not None and model not in models:
                continue
            try:
                ids = self._ids(suite, model, full_size)
            except BadArtefact as error:
                if (suite, model) not in self.to_write:  # else `write` replaces it, or says why not
                    found.append(Verdict(f"{suite}/{model}", Status.ERROR, str(error), suite=suite))
                continue
            for case_id in sorted(ids - set(produced)):
                reason = "stored, but no case produces it any more; a full run with --qb-update removes it"
                found.append(Verdict(case_id, Status.ORPHAN, reason, written=self.update, suite=suite))
                if self.update:
                    self.to_remove.setdefault((suite, model), []).append(case_id)
        self.keep(found)
        return found

    def stored(self, suite: str, full_size: bool, models: Collection[str]) -> set[str]:
        """Ids of what is stored of a suite for some models, as `orphans` would look at it; unreadable: nothing."""
        ids: set[str] = set()
        for model in self.store.models(suite):
            if model in models:
                with suppress(BadArtefact):
                    ids |= self._ids(suite, model, full_size)
        return ids

    def _ids(self, suite: str, model: str, full_size: bool) -> set[str]:
        """Ids of one file's cases of one size, those with tasks left out. raises BadArtefact"""
        stored = self.store.find(suite, model)
        return {i for i in stored.cases if not asks_tasks(i) and is_full(i) == full_size} if stored else set()

    def gone_probes(self) -> list[Verdict]:
        """Stored answers that no probe asks for any more, on full runs; also kept as verdicts."""
        return [self.judge_probe(name) for name, result in self.probes.items() if result.status == "gone"]

    def write(self, whole: Collection[tuple[str, str]] | None = None) -> list[Path]:
        """Write what --qb-update or --qb-new-only collected.

        whole  (suite, model) whose cases all ran, where not all: then a file that cannot be read is replaced, else
               it is refused
        """
        paths = self._remove_orphans()
        answers = self._store_answers()
        self._runs.clear()  # the other process needs the memory
        stored: list[Path] = []
        models = sorted({model for _, model in self.to_write})
        for i, model in enumerate(models):
            try:
                self.progress("noise floor, in another process", i, len(models))
                again = self._measured_elsewhere(model)
                for suite in sorted(suite for suite, of in self.to_write if of == model):
                    stored += self._store(suite, model, again, whole is None or (suite, model) in whole)
            except KeyboardInterrupt:
                self._interrupt(models[i:])
                break
        if stored and not answers:
            self._tell_of_changed_units()
        return [*paths, *answers, *stored]

    def _remove_orphans(self) -> list[Path]:
        paths: list[Path] = []
        for (suite, model), gone in sorted(self.to_remove.items()):
            try:
                paths += self.store.remove(suite, model, gone)
            except (BadArtefact, NotWritten) as error:  # another machine class's file, or a folder of somebody else
                self.verdicts.append(Verdict(f"{suite}/{model}", Status.ERROR, f"not removed everywhere: {error}"))
                self.refused = True
        return paths

    def _store_answers(self) -> list[Path]:
        """The probes' answers that this run is to store."""
        answered = {v.case_id.removeprefix("probe/") for v in self.verdicts if v.written and v.unit}
        answered &= set(self.probes) if answered else set()
        if not answered:
            return []
        try:
            return [probes.record(answered)]
        except NotWritten as error:
            self._refuse({f"probe/{name}" for name in answered}, "probes", str(error))
            return []

    def _store(self, suite: str, model: str, again: Mapping[Case, Evidence], whole: bool) -> list[Path]:
        """One file's cases. Returns what was written; where nothing could be, a verdict says why."""
        found = self.to_write[suite, model]
        floored = (self._with_floor(case, record, again.get(case)) for case, record in found)
        records = [record for record in floored if record]
        if not records:
            return []
        ids, of = {case.id for case, _ in found}, f"{suite}/{model}"
        try:
            try:
                return self._put(suite, model, records)
            except NewerSchema:
                raise
            except BadArtefact as error:
                if others := self._of_other_runs(suite, model):
                    advice = f"replacing it would lose {_listed(others, 'case')} that another kind of run measures"
                elif whole:
                    return self._put(suite, model, records, afresh=True)
                else:
                    advice = "replacing it takes a run of all the suite's own cases, none skipped or left out"
                self._refuse(ids, of, f"{error}; {advice}")
        except (NewerSchema, NotWritten) as error:
            self._refuse(ids, of, str(error))
        return []

    def _put(self, suite: str, model: str, records: Sequence[Record], afresh: bool = False) -> list[Path]:
        """raises BadArtefact, NotWritten"""
        path, kept = self.store.write(suite, model, records, afresh, new_only=self.new_only)
        if kept:  # of no file when this run began
            self.notes.append(f"{path}: another run stored {_listed(kept, 'case')} meanwhile; that is kept")
            self._unwritten(kept, suite)
        return [] if len(kept) == len(records) else [path]

    def _tell_of_changed_units(self) -> None:
        """Cases were stored, and what they rest on was not: the next run is red."""
        if changed := [r.name for r in self._answers.values() if r.status == "changed"]:
            answer = "answers" if len(changed) == 1 else "answer"
            self.notes.append(
                f"written, but {_listed(changed)} still {answer} otherwise than stored; "
                "if that is meant, `pytest suites/probes --qb-update` stores such answers too"
            )

    def _with_floor(self, case: Case, record: Record, again: Evidence | None) -> Record | None:
        """A record with the noise floor that the other process gives it; None where that cannot be noise."""
        if again is None:
            return record
        try:
            apart = spread(record.evidence, again, gated(record.evidence))
            why = implausible(in_words(), apart, record.evidence, ELSEWHERE, beside=record.noise)
        except NonFinite as error:
            why = str(error)
        if not why:
            return replace(record, noise=largest([record.noise, apart]))
        self.verdicts = [
            replace(v, written=False, status=Status.ERROR, reason=why) if v.case_id == case.id and v.written else v
            for v in self.verdicts
        ]
        self.refused = True
        return None

    def _of_other_runs(self, suite: str, model: str) -> list[str]:
        """Cases that a file names and that no run like this one measures: of the other size, or with tasks."""
        size = any(is_full(case.id) for case, _ in self.to_write[suite, model])
        written = {case.id for case, _ in self.to_write[suite, model]}
        named = self.store.named(suite, model) - written
        return sorted(i for i in named if asks_tasks(i) or is_full(i) != size)

    def _refuse(self, ids: Collection[str], of: str, reason: str) -> None:
        """Rows that were to be stored and are not, and the file that they belong to."""
        self._unwritten(ids, suite=of.partition("/")[0])
        self.verdicts.append(Verdict(of, Status.ERROR, f"not stored: {reason}"))
        self.refused = True

    def _unwritten(self, ids: Collection[str], suite: str = "") -> None:
        """suite: of these rows, where not all: another one may have stored the same case"""
        self.verdicts = [
            replace(v, written=False) if v.case_id in ids and (not (suite and v.suite) or v.suite == suite) else v
            for v in self.verdicts
        ]

    def _interrupt(self, models: Collection[str]) -> None:
        """What is stored by now is stored; the rest, of these models, is not."""
        left = {key: found for key, found in self.to_write.items() if key[1] in models}
        ids = {case.id for found in left.values() for case, _ in found}
        self._unwritten(ids)
        self.notes.append(f"interrupted: {_listed(sorted(ids), 'case')} not stored")
        self.interrupted = True

    def _measured_elsewhere(self, model: str) -> dict[Case, Evidence]:
        """Each case of a model to be written, once more, under other numerics (gate/rerun.py)."""
        cases: dict[Protocol, list[Case]] = {}
        for (_, of), found in sorted(self.to_write.items()):
            for case, _ in found if of == model else ():
                cases.setdefault(case.protocol, []).append(case)
        again: dict[Case, Evidence] = {}
        for wanted in cases.values():
            distinct = tuple(dict.fromkeys(wanted))
            job = Job(self._given.get(model, model), self.corpus_path, distinct, self.device)
            try:
                again |= dict(zip(distinct, rerun(job), strict=True))
            except RuntimeError as error:  # what was measured is not lost for it
                self.notes.append(f"{model}: {error}; its noise floor is the disturbed repetition's alone")
        return again


def _listed(names: Sequence[str], kind: str = "probe") -> str:
    return f"{len(names)} {kind}s (the first: {names[0]})" if len(names) > 1 else f"the {kind} {names[0]}"


def _where(error: Exception) -> str:
    """file:line: the place of a crash; of what somebody else's code raised, in that code."""
    if isinstance(error, OutsideFailed) and isinstance(error.__cause__, Exception):
        error = error.__cause__
    return place_of(error)
