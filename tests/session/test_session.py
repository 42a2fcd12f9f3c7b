"""A session: what is judged when a measurement fails."""

from __future__ import annotations

import re
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from quambench.case import LARGER, Case, Protocol
from quambench.core.errors import BadArtefact, BrokenJudge, NewerSchema, NotWritten
from quambench.gate.probes import records
from quambench.gate.verdicts import Status, Verdict
from quambench.observers import ObserverSpec
from quambench.selftest.faults import FAULTS
from quambench.session import session as module
from quambench.session.session import Session

SMALL = Protocol(
    calib_windows=4, calib_length=16, quality_windows=4, quality_length=16, decode_windows=4, decode_prefix=4,
    decode_steps=4, error_windows=2, error_length=16, max_items=4,
)  # fmt: skip


@pytest.fixture
def judged(world, tmp_path):
    """Judges one small case."""

    def run():
        session = Session(tmp_path / "baselines", world / "corpus")
        name = session.load(str(world / "tiny-model")).name
        case = Case(model=name, observer=ObserverSpec("running_max"), protocol=SMALL)
        session.plan([case])
        return session.judge("alpha", case)

    return run


def test_a_crash_is_an_error_that_names_where(judged, monkeypatch):
    monkeypatch.setattr(module, "record_of", lambda *_: 1 / 0)
    verdict = judged()
    assert verdict.status is Status.ERROR
    assert verdict.reason.startswith("ZeroDivisionError")
    assert verdict.place.startswith("test_session.py:")
    assert verdict.unit == ""


def test_a_crash_names_the_unit_whose_probe_broke(judged, monkeypatch):
    (planted,) = [f for f in FAULTS if f.name == "q_max 126"]
    monkeypatch.setattr(module, "record_of", lambda *_: 1 / 0)
    with planted.plant():
        verdict = judged()
    assert verdict.unit.startswith("grid")
    assert "answers its probe otherwise" in verdict.reason
    assert "ZeroDivisionError" in verdict.reason


def test_a_crash_of_the_probes_themselves_does_not_hide_the_first(judged, monkeypatch):
    monkeypatch.setattr(module, "record_of", lambda *_: 1 / 0)
    monkeypatch.setattr(module.probes, "in_turn", lambda **_: {}["gone"])
    assert judged().reason.startswith("ZeroDivisionError")


# --- a judge that is not as it was ----------------------------------------------------------------------


def planted(name):
    (found,) = [f for f in FAULTS if f.name == name]
    return found.plant()


@pytest.fixture
def of_the_judge(monkeypatch):
    """Asks the judge's probes alone: the others take their time, and nothing is planted in what they ask."""
    every = [p for p in module.probes.all_probes() if p.name.startswith("judge/")]
    monkeypatch.setattr(module.probes, "all_probes", lambda: tuple(every))


@pytest.mark.parametrize(
    ("fault", "unit"),
    [
        ("a scale may be 500,000 steps off", "judge/findings"),
        ("drift always passes", "judge/verdicts"),
        ("answers of probes are compared by nothing", "judge/probes"),
        ("a probe that crashes says nothing", "judge/probes"),
        ("a stored file is read once and for all", "judge/baselines"),
    ],
)
def test_a_fault_in_the_judge_makes_every_row_an_error_that_names_it(recorded, fault, unit):
    session, case = recorded(allow_drift=True)
    with planted(fault):
        verdict = session.judge("alpha", case)
    assert (verdict.status, verdict.unit) == (Status.ERROR, unit)
    assert "no verdict can be trusted" in verdict.reason
    assert not verdict.passes(allow_drift=True)


@pytest.mark.parametrize("update", [False, True])
def test_a_judge_that_finds_everything_the_same_is_not_asked_of_itself(recorded, monkeypatch, update):
    session, case = recorded(update=update)
    monkeypatch.setattr(module, "judge", lambda new, *_, **__: Verdict(new.case_id, Status.SAME))
    with planted("everything is the same"):
        verdict = session.judge("alpha", case)
    assert (verdict.status, verdict.unit) == (Status.ERROR, "judge/verdicts")
    assert session.to_write == {}


def test_a_broken_unit_is_never_the_same(recorded, monkeypatch):
    session, case = recorded()
    broken = module.ProbeResult("metrics/kl", "changed", "0.5 -> 1.0")
    session._answers |= {p.name: replace(broken, name=p.name, status="same") for p in module.probes.all_probes()}
    session._answers["judge/stats"] = broken
    assert session.judge("alpha", case).status is Status.DRIFTED  # an honest judge says so itself
    monkeypatch.setattr(module, "judge", lambda new, *_, **__: Verdict(new.case_id, Status.SAME))
    verdict = session.judge("alpha", case)
    assert (verdict.status, verdict.unit) == (Status.ERROR, "metrics/kl")


def test_an_error_that_passes_ends_the_row_otherwise(recorded):
    session, case = recorded()
    with planted("whatever is said passes"), pytest.raises(BrokenJudge, match=re.escape(case.id)):
        session.judge("alpha", case)
    assert [(v.status, v.unit) for v in session.verdicts] == [(Status.ERROR, "judge/verdicts")]


def test_probes_that_cannot_be_asked_make_the_row_an_error(recorded, monkeypatch):
    session, case = recorded()
    monkeypatch.setattr(module.probes, "in_turn", lambda **_: {}["gone"])
    assert session.judge("alpha", case).status is Status.ERROR


def test_probes_that_answer_nothing_make_the_row_an_error(recorded, monkeypatch):
    session, case = recorded()
    monkeypatch.setattr(module.probes, "in_turn", lambda **_: iter(()))
    assert session.judge("alpha", case).status is Status.ERROR


def test_made_records_have_all_that_a_case_stores(recorded):
    session, case = recorded()
    stored, made = stored_case(session, case), records.record()
    assert set(stored.evidence) <= set(made.evidence)
    for name, array in stored.evidence.items():
        assert (array.ndim, array.is_floating_point()) == (
            made.evidence[name].ndim,
            made.evidence[name].is_floating_point(),
        )
    assert set(stored.rest) <= set(records.text())


# --- the noise floor and the second look ----------------------------------------------------------------

LARGE = replace(SMALL, quality_windows=9, decode_windows=7, max_items=9)


@pytest.fixture
def recorded(world, tmp_path, monkeypatch, of_the_judge):
    """session(update=...): sessions over one small case whose baseline is in `tmp_path`, with a second look.

    That look is no case's outside these tests, which the probe of second looks would tell.
    """
    monkeypatch.setitem(LARGER, SMALL, LARGE)

    def session(**options):
        made = Session(tmp_path / "baselines", world / "corpus", **options)
        name = made.load(str(world / "tiny-model")).name
        case = Case(model=name, observer=ObserverSpec("running_max"), protocol=SMALL)
        made.plan([case])
        return made, case

    def again(job):
        """The other process' part, in this one."""
        run, case = session()[0], job.cases[0]
        run.plan(job.cases)
        return [run._run(case).measure_again(case)]

    monkeypatch.setattr(module, "rerun", again)
    first, case = session(update=True)
    first.judge("alpha", case)
    first.write()
    return session


def stored_case(session, case):
    return session.store.find("alpha", case.model).cases[case.id]


def test_a_baseline_holds_what_a_second_look_is_compared_with(recorded):
    session, case = recorded()
    old = stored_case(session, case)
    assert len(old.rest["prefill.nll"]) == LARGE.quality_windows - SMALL.quality_windows
    assert len(old.rest["decode.nll"]) == LARGE.decode_windows - SMALL.decode_windows
    assert old.rest_digest == session._run(case).rest_digest != ""


@pytest.fixture
def suspected(monkeypatch):
    """Makes every first verdict suspicious; returns what later ones were given as the rest."""
    given, original = [], module.judge

    def suspicious(*args, rest=None):
        given.append(rest)
        return replace(original(*args, rest=rest), suspicious=rest is None)

    monkeypatch.setattr(module, "judge", suspicious)
    return given


def test_a_suspicious_row_is_measured_on_the_rest(recorded, suspected):
    session, case = recorded()
    verdict = session.judge("alpha", case)
    assert verdict.status is Status.SAME
    assert suspected[0] is None
    for name, array in stored_case(session, case).rest.items():
        assert torch.equal(suspected[1][name], array), name
    assert session.notes == [f"{case.id}: suspicious at first, and a second look on other data found nothing"]


def test_a_row_that_is_not_suspicious_measures_nothing_more(recorded, monkeypatch):
    session, case = recorded()
    monkeypatch.setattr(module.ModelRun, "rest", lambda *_: pytest.fail("measured on the rest"))
    assert session.judge("alpha", case).status is Status.SAME


def test_another_rest_is_another_measurement(recorded, suspected, monkeypatch):
    monkeypatch.setitem(LARGER, SMALL, replace(LARGE, quality_windows=8))
    session, case = recorded()
    verdict = session.judge("alpha", case)
    assert verdict.status is Status.STALE
    assert "data of the second look" in verdict.reason


def test_a_disturbance_that_is_no_rounding_poisons_no_floor(recorded, monkeypatch):
    session, case = recorded(update=True)
    monkeypatch.setattr(module, "disturbance", lambda seed: lambda x: x * 1.5)
    verdict = session.judge("alpha", case)
    assert verdict.status is Status.ERROR
    assert not verdict.written
    assert "two repetitions of the same case disagree" in verdict.reason
    assert session.to_write == {}


@pytest.mark.parametrize("spoil", [lambda kl: kl * 5, lambda kl: kl * torch.nan])
def test_another_process_that_computes_something_else_poisons_no_floor(recorded, monkeypatch, spoil):
    session, case = recorded(update=True)
    before = (session.store.path("alpha", case.model)).read_bytes()
    session.judge("alpha", case)
    honest = module.rerun

    def poisoned(job):
        (evidence,) = honest(job)
        return [evidence | {"prefill.kl": spoil(evidence["prefill.kl"])}]

    monkeypatch.setattr(module, "rerun", poisoned)
    assert session.write() == []
    (verdict,) = session.verdicts
    assert (verdict.status, verdict.written, session.refused) == (Status.ERROR, False, True)
    assert "prefill.kl" in verdict.reason or "another process (one thread" in verdict.reason
    assert session.store.path("alpha", case.model).read_bytes() == before


# --- what is stored and what is gone, on stores that are made up ----------------------------------------


class Store:
    """Baselines of some (suite, model): ids, or what reading them raises; it notes what is written and removed."""

    def __init__(self, **files) -> None:
        self.files = {tuple(name.split("__")): found for name, found in files.items()}
        self.written, self.removed = [], []

    def models(self, suite):
        return [model for of, model in self.files if of == suite]

    def find(self, suite, model):
        found = self.files[suite, model]
        if isinstance(found, Exception):
            raise found
        return SimpleNamespace(cases=dict.fromkeys(found)) if found is not None else None

    def named(self, suite, model):
        return {"m/mse/1x1", "m/aciq/1x1/full", "m/entropy/1x1/tasks=one"} if (suite, model) == ("a", "m") else set()

    def write(self, suite, model, records, afresh=False, new_only=False):
        found = self.files.get((suite, model))
        if isinstance(found, Exception) and not afresh:
            raise found
        self.written.append((suite, model, records, afresh))
        return f"{suite}/{model}.json", []

    def remove(self, suite, model, gone):
        if isinstance(self.files[suite, model], Exception):
            raise self.files[suite, model]
        self.removed.append((suite, model, gone))
        return [f"{suite}/{model}.json"]


IDS = ("m/mse/1x1", "m/aciq/1x1", "m/aciq/1x1/full", "m/mse/1x1/tasks=one")
CUT = BadArtefact("m.json is cut short")


def session_of(tmp_path, store=None, **options) -> Session:
    made = Session(tmp_path / "baselines", **options)
    made.store = store or Store()
    return made


def test_what_a_run_did_not_produce_is_gone_of_its_own_size_and_models_alone(tmp_path):
    reason = "stored, but no case produces it any more; a full run with --qb-update removes it"
    for update in (False, True):
        session = session_of(tmp_path, Store(a__m=IDS, a__n=("n/mse/1x1",), a__empty=None, b__m=IDS), update=update)
        gone = Verdict("m/aciq/1x1", Status.ORPHAN, reason, written=update)
        assert session.orphans("a", {"m/mse/1x1"}, models=("m", "empty")) == [gone]
        assert session.verdicts == [gone]
        assert session.to_remove == ({("a", "m"): ["m/aciq/1x1"]} if update else {})
    full = session.orphans("a", {"m/mse/1x1"}, full_size=True)
    assert [v.case_id for v in full] == ["m/aciq/1x1/full"]
    assert [v.case_id for v in session.orphans("a", set())] == ["m/aciq/1x1", "m/mse/1x1", "n/mse/1x1"]


def test_a_file_that_cannot_be_read_is_an_error_unless_it_is_written_anyway(tmp_path):
    session = session_of(tmp_path, Store(a__m=CUT, a__n=("n/mse/1x1",)))
    found = session.orphans("a", set())
    assert [(v.case_id, v.status) for v in found] == [("a/m", Status.ERROR), ("n/mse/1x1", Status.ORPHAN)]
    assert found[0].reason == "m.json is cut short"
    session.to_write = {("a", "m"): []}
    assert [v.case_id for v in session.orphans("a", set())] == ["n/mse/1x1"]
    assert session.stored("a", False, ("m", "n")) == {"n/mse/1x1"}
    assert session.stored("a", False, ("m",)) == set()
    whole = session_of(tmp_path, Store(a__m=IDS))
    assert whole.stored("a", False, ("m",)) == {"m/mse/1x1", "m/aciq/1x1"}
    assert whole.stored("a", True, ("m",)) == {"m/aciq/1x1/full"}


PROBES = {"x/new": "new", "x/changed": "changed", "x/gone": "gone", "x/same": "same", "x/error": "error"}
WRITES = {"": set(), "new_only": {"x/new"}, "update": {"x/new", "x/changed", "x/gone"}}


@pytest.mark.parametrize("option", WRITES)
def test_each_probe_is_a_row_that_says_what_it_answers_and_whether_that_is_stored(tmp_path, monkeypatch, option):
    answers = [module.ProbeResult(name, status, f"it is {status}") for name, status in PROBES.items()]
    monkeypatch.setattr(module.probes, "check", lambda: answers)
    stored = []
    monkeypatch.setattr(module.probes, "record", lambda names: stored.append(names) or "probes.json")
    session = session_of(tmp_path, **({option: True} if option else {}))
    statuses = (Status.NEW, Status.DRIFTED, Status.ORPHAN, Status.SAME, Status.ERROR)
    for name, status in zip(PROBES, statuses, strict=True):
        place = "" if status is Status.SAME else name
        assert session.judge_probe(name) == Verdict(
            f"probe/{name}", status, f"it is {PROBES[name]}", unit=place, written=name in WRITES[option]
        )
    assert [v.case_id for v in session.verdicts] == [f"probe/{name}" for name in PROBES]
    assert session.write() == (["probes.json"] if option else [])
    assert stored == ([WRITES[option]] if option else [])
    assert [v.case_id for v in session.gone_probes()] == ["probe/x/gone"]


def writing(tmp_path, store: Store, *suites: str, **options) -> Session:
    """A session that is to store one case, m/mse/1x1, in each suite."""
    session = session_of(tmp_path, store, update=True, **options)
    session._measured_elsewhere = lambda model: {}
    session.to_write = {(suite, "m"): [(Case.parse("m", "mse"), f"record of {suite}")] for suite in suites}
    session.verdicts = [Verdict("m/mse/1x1", Status.NEW, written=True), Verdict("m/aciq/1x1", Status.SAME)]
    return session


def test_records_are_written_and_units_that_answer_otherwise_are_told(tmp_path):
    session = writing(tmp_path, Store(), "a", "b")
    session._answers = {"x/y": module.ProbeResult("x/y", "changed", ""), "x/z": module.ProbeResult("x/z", "same", "")}
    assert session.write() == ["a/m.json", "b/m.json"]
    assert session.store.written == [("a", "m", ["record of a"], False), ("b", "m", ["record of b"], False)]
    assert session.notes == [
        "written, but the probe x/y still answers otherwise than stored; "
        "if that is meant, `pytest suites/probes --qb-update` stores such answers too"
    ]
    assert not session.refused


def test_what_was_refused_is_not_told_as_written(tmp_path):
    session = writing(tmp_path, Store(), "a")
    session._answers = {"x/y": module.ProbeResult("x/y", "changed", "")}
    session._with_floor = lambda *_: None
    assert session.write() == []
    assert session.notes == []


REFUSED = {
    "another kind of run's cases": (
        "a", None,
        "m.json is cut short; replacing it would lose 2 cases (the first: m/aciq/1x1/full) that another kind of run "
        "measures",
    ),
    "a run of some": (
        "b", (),
        "m.json is cut short; replacing it takes a run of all the suite's own cases, none skipped or left out",
    ),
}  # fmt: skip


@pytest.mark.parametrize("which", REFUSED)
def test_a_file_that_may_not_be_replaced_is_left_and_its_cases_are_told(tmp_path, which):
    suite, whole, why = REFUSED[which]
    session = writing(tmp_path, Store(**{f"{suite}__m": CUT}), suite)
    assert session.write(whole) == []
    assert session.refused
    assert session.verdicts == [
        Verdict("m/mse/1x1", Status.NEW, written=False), Verdict("m/aciq/1x1", Status.SAME),
        Verdict(f"{suite}/m", Status.ERROR, f"not stored: {why}"),
    ]  # fmt: skip


@pytest.mark.parametrize("whole", [None, {("b", "m")}])
def test_a_file_that_cannot_be_read_is_replaced_by_a_run_of_all_its_cases(tmp_path, whole):
    session = writing(tmp_path, Store(b__m=CUT), "b")
    assert session.write(whole) == ["b/m.json"]
    assert session.store.written == [("b", "m", ["record of b"], True)]


def test_what_a_later_version_wrote_is_never_replaced_and_others_are_written(tmp_path):
    session = writing(tmp_path, Store(b__m=NewerSchema("of a later version")), "b", "c")
    assert session.write() == ["c/m.json"]
    assert session.verdicts[-1] == Verdict("b/m", Status.ERROR, "not stored: of a later version")


def test_an_interruption_keeps_what_is_stored_and_tells_of_the_rest(tmp_path):
    """Ctrl-C while the noise floor of the second of three models is measured, which takes minutes."""
    session = writing(tmp_path, Store(), "a")
    for model in ("n", "o"):
        session.to_write["a", model] = [(Case.parse(model, "mse"), f"record of {model}")]
        session.verdicts.append(Verdict(f"{model}/mse/1x1", Status.NEW, written=True))

    def measured(model):
        if model == "n":
            raise KeyboardInterrupt
        return {}

    session._measured_elsewhere = measured
    assert session.write() == ["a/m.json"]
    assert session.interrupted
    assert session.notes == ["interrupted: 2 cases (the first: n/mse/1x1) not stored"]
    assert {v.case_id: v.written for v in session.verdicts if v.status is Status.NEW} == {
        "m/mse/1x1": True, "n/mse/1x1": False, "o/mse/1x1": False,
    }  # fmt: skip


def test_a_full_disk_loses_one_file_and_not_the_others(tmp_path):
    session = writing(tmp_path, Store(b__m=NotWritten("cannot write m.json: the disk is full")), "b", "c")
    assert session.write() == ["c/m.json"]
    assert session.verdicts[-1] == Verdict("b/m", Status.ERROR, "not stored: cannot write m.json: the disk is full")
    assert session.refused
    session = session_of(tmp_path, Store(a__m=NotWritten("cannot write"), b__m=IDS))
    session.to_remove = {("a", "m"): ["x"], ("b", "m"): ["y"]}
    assert session.write() == ["b/m.json"]
    assert session.verdicts == [Verdict("a/m", Status.ERROR, "not removed everywhere: cannot write")]


def test_answers_of_probes_that_cannot_be_stored_are_told(tmp_path, monkeypatch):
    session = session_of(tmp_path, update=True)
    session._answers = {"x/y": module.ProbeResult("x/y", "changed", "")}
    monkeypatch.setattr(module.probes, "check", lambda: [])
    session.verdicts = [Verdict("probe/x/y", Status.DRIFTED, unit="x/y", written=True)]

    def full(names):
        raise NotWritten("cannot write: the disk is full")

    monkeypatch.setattr(module.probes, "record", full)
    assert session.write() == []
    assert session.verdicts == [
        Verdict("probe/x/y", Status.DRIFTED, unit="x/y"),
        Verdict("probes", Status.ERROR, "not stored: cannot write: the disk is full"),
    ]


def test_what_is_gone_is_removed_or_told(tmp_path):
    session = session_of(tmp_path, Store(a__m=CUT, b__m=IDS))
    session.to_remove = {("a", "m"): ["x"], ("b", "m"): ["y"]}
    assert session.write() == ["b/m.json"]
    assert session.store.removed == [("b", "m", ["y"])]
    assert session.verdicts == [Verdict("a/m", Status.ERROR, "not removed everywhere: m.json is cut short")]
    assert session.refused


def test_a_record_gets_the_larger_noise_of_both_repetitions_and_none_that_cannot_be_noise(tmp_path):
    session, case, record = session_of(tmp_path), Case.parse("m", "running_max"), records.record()
    again = record.evidence | {"prefill.nll": record.evidence["prefill.nll"] + 1}
    apart = module.spread(record.evidence, again, module.gated(record.evidence))
    noise = session._with_floor(case, record, again).noise
    assert repr(noise) == repr(module.largest([record.noise, apart]))
    assert noise.means["loss_rise"] > record.noise.means["loss_rise"]
    assert session._with_floor(case, record, None) is record


def test_of_two_suites_one_may_have_nothing_to_store_and_the_other_is_stored(tmp_path):
    session = writing(tmp_path, Store(), "a", "b")
    session._with_floor = lambda case, record, again: record if record == "record of b" else None
    assert session.write() == ["b/m.json"]


def test_another_process_measures_each_case_once_and_what_it_cannot_is_told(tmp_path, monkeypatch):
    steps, jobs = [], []
    session = session_of(tmp_path, corpus_path=tmp_path, progress=lambda *step: steps.append(step), device="cpu")
    one, other = Case.parse("m", "mse"), Case.parse("n", "mse")
    session.to_write = {("a", "m"): [(one, None)], ("b", "m"): [(one, None)], ("a", "n"): [(other, None)]}
    session._given = {"m": "models/m"}

    def rerun(job):
        jobs.append(job)
        if job.model == "n":
            raise RuntimeError("it failed")
        return [{"prefill.kl": "found"}]

    monkeypatch.setattr(module, "rerun", rerun)
    assert session._measured_elsewhere("m") == {one: {"prefill.kl": "found"}}
    assert session._measured_elsewhere("n") == {}
    assert jobs == [module.Job("models/m", tmp_path, (one,), "cpu"), module.Job("n", tmp_path, (other,), "cpu")]
    session._store = lambda *_: []
    session.write()
    assert steps == [("noise floor, in another process", i, 2) for i in range(2)]
    assert session.notes[:1] == ["n: it failed; its noise floor is the disturbed repetition's alone"]


def test_a_worse_result_is_stored_with_its_reason_alone(recorded, monkeypatch):
    original = module.judge
    monkeypatch.setattr(module, "judge", lambda *a, **k: replace(original(*a, **k), status=Status.REGRESSED))
    session, case = recorded(update=True)
    refused = session.judge("alpha", case)
    assert refused.reason.startswith('not stored, being worse (--qb-accept "why" stores it): ')
    assert not refused.written and session.to_write == {}
    session, case = recorded(update=True, accept="to see it")
    assert session.judge("alpha", case).written
    ((_, record),) = session.to_write["alpha", case.model]
    assert record.accepted == "to see it"
    assert record.provenance == module.provenance("cpu")
    monkeypatch.setattr(module, "judge", original)
    session, case = recorded(update=True, accept="to see it")
    session.judge("alpha", case)
    ((_, record),) = session.to_write["alpha", case.model]
    assert record.accepted == ""


def test_a_second_look_that_is_gone_is_told_whole(recorded, suspected, monkeypatch):
    session, case = recorded()
    old = stored_case(session, case).rest_digest[:12]
    monkeypatch.delitem(LARGER, SMALL)
    assert session.judge("alpha", case).reason == (
        f"the stored result measured something else: data of the second look {old} -> absent"
    )
