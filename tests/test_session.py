"""A session: what is judged when a measurement fails."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
import torch

from quambench import session as module
from quambench.case import LARGER, Case, Protocol
from quambench.errors import BrokenJudge
from quambench.gate.faults import FAULTS
from quambench.gate.probes import records
from quambench.gate.verdicts import Status, Verdict
from quambench.observers import ObserverSpec
from quambench.session import Session

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
