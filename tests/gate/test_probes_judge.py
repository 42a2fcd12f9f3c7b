"""The judge's own probes: each fault in it is told and named, whatever it makes of its own answers."""

from __future__ import annotations

import re

import pytest
import torch

from quambench.gate import probes
from quambench.gate.probes import ITSELF, ProbeResult, blind, check, distrusted, records
from quambench.gate.probes.base import Probe
from quambench.gate.recount import miscounted
from quambench.gate.verdicts import Status, judge
from quambench.metrics import METRICS
from quambench.selftest.faults import FAULTS

NAMES = [probe.name for probe in probes.all_probes() if probe.name.startswith("judge/")]
PLANTED = [f for f in FAULTS if f.unit.startswith("judge/")]


@pytest.mark.parametrize("fault", PLANTED, ids=lambda f: f.name)
def test_a_fault_in_the_judge_is_named(fault):
    """By the units that may be at fault; that none before them answers otherwise, the self-test sees."""
    at_fault = [name for name in NAMES if re.match(fault.unit, name)]
    with fault.plant():
        found = distrusted(check(only={ITSELF, *at_fault}))
    assert found, "no probe sees it"
    assert re.match(fault.unit, found.name), found
    assert "\n" not in found.reason


def test_there_are_faults_of_every_part():
    assert len(PLANTED) >= 30
    for name in NAMES:
        assert any(re.match(fault.unit, name) for fault in PLANTED), name


def test_clean_code_is_trusted():
    results = check(only=NAMES)
    assert {r.status for r in results} == {"same"}
    assert distrusted(results) is None
    assert blind() == ""


def test_whatever_passes_is_seen():
    (fault,) = [f for f in FAULTS if f.name == "whatever is said passes"]
    with fault.plant():
        assert distrusted(check(only=NAMES)).name == "judge/verdicts"


def test_metrics_that_the_judge_is_built_on_are_at_fault_before_it():
    def results(*broken):
        return [ProbeResult(name, "changed" if name in broken else "same") for name in ("grid", "metrics/kl", *NAMES)]

    assert distrusted(results("judge/stats", "judge/verdicts")).name == "judge/stats"
    assert distrusted(results("grid", "judge/verdicts")).name == "judge/verdicts"
    assert distrusted(results("metrics/kl", "judge/stats")) is None
    assert distrusted(results("grid")) is None


def test_what_compares_answers_stands_first_and_the_rest_of_the_judge_last():
    names = [probe.name for probe in probes.all_probes()]
    assert names[0] == ITSELF
    assert all(name.startswith("judge/") for name in names[1 - len(NAMES) :])


@pytest.mark.parametrize("spoilt", ["_difference", "_unequal", "_ask"])
def test_a_comparison_that_finds_everything_the_same_is_told_all_the_same(monkeypatch, spoilt):
    same = {"_difference": "", "_unequal": [], "_ask": ProbeResult("any", "same")}[spoilt]
    monkeypatch.setattr(probes, spoilt, lambda *_: same)
    (found,) = check(only={ITSELF})
    assert (found.name, found.status) == (ITSELF, "error")
    assert "must be 'changed'" in found.reason


def test_a_comparison_to_the_last_bit_is_told(monkeypatch):
    monkeypatch.setattr(probes, "MAX_SCALE_ULP", 0)
    assert "'changed' and must be 'same'" in blind()


def test_a_probe_that_crashes_is_broken(monkeypatch):
    crashing = Probe("judge/stats", lambda _: 1 / 0)
    monkeypatch.setattr(probes, "all_probes", lambda: (crashing,))
    (found,) = check(only={"judge/stats"})
    assert found.broken
    assert distrusted([found]) is found


# --- the made records -----------------------------------------------------------------------------------


def test_made_records_are_whole_and_their_own():
    made = records.record()
    assert judge(made, records.record(), 1).status is Status.SAME
    assert miscounted(made.metrics, made.evidence) is None
    assert set(made.metrics) == set(METRICS)
    unmeasured = [name for name, m in made.metrics.items() if m.value != m.value]
    assert unmeasured == []
    made.evidence["prefill.kl"].zero_()
    assert records.record().evidence["prefill.kl"].min() > 0


def test_a_step_is_the_next_number():
    assert records.steps_on(torch.tensor([1.0, 2.0]), 1, at=1).tolist() == [1.0, 2.0 + 2**-22]
    assert records.steps_on(torch.tensor([1.0]), -1).tolist() == [1.0 - 2**-24]
