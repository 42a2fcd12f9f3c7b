"""The self-test of the gate, on a model and a corpus that it was not made for."""

from __future__ import annotations

import dataclasses
import json
import sys
from contextlib import nullcontext

import pytest

from quambench.cli.main import main
from quambench.core.errors import QuambenchError
from quambench.models.checkpoint import load_checkpoint
from quambench.selftest import selftest as module
from quambench.selftest.faults import FAULTS, Fault
from quambench.selftest.selftest import CLEAN_SETTINGS, Clean, Ground, Outcome, Report, clean_settings, selftest

SMALL = dataclasses.replace(
    module.PROTOCOL, calib_windows=6, calib_length=16, quality_windows=8, quality_length=32, decode_windows=6,
    decode_prefix=8, decode_steps=6, error_length=16,
)  # fmt: skip


CHOSEN = ["q_max 126", "alpha complemented", "state read four times as large", "NaN in one batch",
          "calibration in batches of one", "half-up rounding"]  # fmt: skip


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(module, "PROTOCOL", SMALL)


@pytest.fixture(scope="module")
def report(world):
    """Of some faults, two at a time."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(module, "PROTOCOL", SMALL)
        return selftest([str(world / "tiny-model")], CHOSEN, world / "corpus", clean_runs=False, jobs=2)


def test_names_are_given_once_and_every_fault_says_what_to_name():
    names = [f.name for f in FAULTS]
    assert len(set(names)) == len(names)
    assert all(f.unit or f.place or f.error or f.no_op for f in FAULTS)


def test_faults_are_caught_and_named_and_no_ops_are_not(report):
    assert [o.fault for o in report.outcomes if not o.no_op and not o.caught] == []
    assert report.named[0] == report.named[1] > 0
    assert report.alarms == []
    assert report.passes


def test_the_report_is_the_same_however_many_are_planted_at_once(world, small, report):
    done = []
    alone = selftest(
        [str(world / "tiny-model")], CHOSEN[::-1], world / "corpus", False, lambda *step: done.append(step), jobs=1
    )
    assert [o.fault for o in alone.outcomes] == [f.name for f in FAULTS if f.name in CHOSEN]
    assert [dataclasses.replace(o, seconds=0) for o in alone.outcomes] == [
        dataclasses.replace(o, seconds=0) for o in report.outcomes
    ]
    planted = [step for step in done if step[0] == "planting faults"]
    assert planted == [("planting faults", i + 1, len(CHOSEN)) for i in range(len(CHOSEN))]


DEADLY = """
import os, signal, sys
from quambench.selftest import selftest
from quambench.selftest.faults import fault
@fault("deadly")
def _(): os.kill(os.getpid(), signal.SIGKILL)
selftest.main(sys.argv[1])
"""


def test_a_fault_that_takes_the_worker_with_it_is_missed_by_name_and_the_others_go_on(world, small, monkeypatch):
    monkeypatch.setattr(module, "WORKER", (sys.executable, "-c", DEADLY))
    deadly = Fault("deadly", lambda: nullcontext(), "grid", "")
    others = [f for f in FAULTS if f.name in ("q_max 126", "half-up rounding")]
    monkeypatch.setattr(module, "FAULTS", [others[0], deadly, others[1]])
    report = selftest([str(world / "tiny-model")], (), world / "corpus", clean_runs=False, jobs=2)
    assert [(o.fault, o.caught) for o in report.outcomes] == [
        (others[0].name, True), ("deadly", False), (others[1].name, True),
    ]  # fmt: skip
    assert report.outcomes[1].verdict == "ERROR"
    assert report.outcomes[1].reason.startswith("planting 'deadly' failed: the process that measures it ended")
    assert not report.passes


def test_what_cannot_be_recorded_is_one_line(world, small, monkeypatch):
    too_long = dataclasses.replace(SMALL, quality_length=100_000)
    monkeypatch.setattr(module, "PROTOCOL", too_long)
    with pytest.raises(QuambenchError, match=r"tiny-model: recording percentile.* failed: "):
        selftest([str(world / "tiny-model")], CHOSEN[:1], world / "corpus", clean_runs=False, jobs=1)


def test_a_planted_fault_goes_away_again(world, tmp_path):
    """One of each module; tests/gate/test_probes.py plants every one."""
    ground, model = Ground(world / "corpus", SMALL), str(world / "tiny-model")
    kind = load_checkpoint(model).config.architecture
    own = {f.plant.__module__: f for f in FAULTS if kind in f.architectures and not f.case}.values()
    ground.record(model, [""], tmp_path)
    for fault in own:
        ground.plant(fault, model, tmp_path)
    from quambench.gate.probes import check

    assert {r.status for r in check()} == {"same"}


def test_a_setting_that_this_cpu_cannot_run_is_left_out(monkeypatch):
    for capability, left_out in (
        ("AVX512", set()),
        ("AVX2", {"2 threads, avx512"}),
        ("DEFAULT", {"2 threads, avx512"}),
    ):
        monkeypatch.setattr(module.torch.backends.cpu, "get_cpu_capability", lambda c=capability: c)
        assert set(CLEAN_SETTINGS) - set(clean_settings()) == left_out


@pytest.mark.slow
def test_clean_code_in_other_processes_raises_no_alarm(world):
    report = selftest([str(world / "tiny-model")], ["q_max 126"], world / "corpus")
    assert {c.setting for c in report.clean} == set(clean_settings())
    assert [c for c in report.clean if c.alarm] == []
    assert all(c.portable for c in report.clean if c.setting == "class file removed")


def outcome(**changes):
    base = Outcome("f", "m", "DRIFTED", "grid", "site", "grid", "site", True, True, "", "", 0.1)
    return dataclasses.replace(base, **changes)


@pytest.mark.parametrize(
    ("outcomes", "clean", "passes"),
    [
        ((outcome(),), (), True),
        ((outcome(caught=False),), (), False),
        ((outcome(named=False), *[outcome()] * 8), (), False),  # 8 of 9 named: below 90 %
        ((outcome(named=False), *[outcome()] * 9), (), True),
        ((outcome(no_op="proof", caught=True, named=None),), (), False),
        ((outcome(),), (Clean("s", 3, "m", "DRIFTED", False, ""),), False),
        ((outcome(),), (Clean("s", 3, "m", "SAME", True, ""),), True),
    ],
)
def test_what_passes(outcomes, clean, passes):
    assert Report(tuple(outcomes), tuple(clean), 1.0).passes == passes


def test_the_command_prints_a_table_or_json_and_its_exit_code_says_it(monkeypatch, capsys):
    from quambench.cli import selftest as command

    missed = Report((outcome(caught=False, reason="why"),), (Clean("s", 3, "m", "SAME", False, ""),), 1.0)
    monkeypatch.setattr(command, "selftest", lambda *a: missed)
    assert main(["selftest"]) == 1
    assert "MISSED f in m: DRIFTED why" in capsys.readouterr().out
    assert main(["selftest", "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["missed"] == ["f (m)"]


def test_an_unknown_fault_is_one_line(capsys):
    assert main(["selftest", "--fault", "q_max 127"]) == 2
    assert "Did you mean 'q_max 12" in capsys.readouterr().err


def test_fewer_than_no_workers_is_one_line(capsys):
    assert main(["selftest", "--jobs", "-1"]) == 2
    assert capsys.readouterr().err == "quambench: jobs must be 0 or more (got -1)\n"
