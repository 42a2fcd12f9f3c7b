"""A session: what is judged when a measurement fails."""

from __future__ import annotations

import pytest

from quambench import session as module
from quambench.case import Case, Protocol
from quambench.gate.faults import FAULTS
from quambench.gate.verdicts import Status
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
    monkeypatch.setattr(module.probes, "check", lambda **_: {}["gone"])
    assert judged().reason.startswith("ZeroDivisionError")
