"""What is stored and was not judged: gone, or unknown. The measurements are the stored ones; pytest is the real one."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from quambench.case import Case, Protocol
from quambench.session import Session

SMALL = Protocol(
    calib_windows=4, calib_length=16, quality_windows=4, quality_length=16, decode_windows=4, decode_prefix=4,
    decode_steps=4, error_windows=2, error_length=16, max_items=4,
)  # fmt: skip
CONFTEST = """
import dataclasses
import pytest
from pathlib import Path
from quambench.gate import probes
from quambench.gate.baselines import read_baseline
from quambench.gate.verdicts import Status, Verdict
from quambench.models import checkpoint
from quambench.session import Session

pytest_plugins = ["quambench.pytest_plugin"]
{more}

def judged(self, suite, case):
    record = next(iter(read_baseline(Path({record!r})).values()))
    stored = self._stored(suite, case)
    known = stored is not None and case.id in stored.cases
    status = Status.REGRESSED if str(case.observer) in {red!r} else Status.SAME if known else Status.NEW
    verdict = Verdict(case.id, status, "", metrics=record.metrics, stored=record.metrics)
    if status is Status.REGRESSED or not (self.update or (self.new_only and not known)):
        return verdict
    record = dataclasses.replace(record, case_id=case.id)
    self.to_write.setdefault((suite, case.model), []).append((case, record))
    return dataclasses.replace(verdict, written=True)


def answers(*, only=None):
    names = only or [probe.name for probe in probes.all_probes()] + ["unit/gone"]
    return [probes.ProbeResult(n, "gone" if n == "unit/gone" else "same", "") for n in names]


def pytest_configure(config):
    patch = pytest.MonkeyPatch()
    patch.setattr(checkpoint, "_zoo", lambda: Path({zoo!r}))
    patch.setattr(Session, "_judge", judged)
    patch.setattr(Session, "_measured_elsewhere", lambda self: {{}})
    patch.setattr(probes, "check", answers)
    config.add_cleanup(patch.undo)
"""
ALPHA = """
import pytest

@pytest.mark.cases("running_max", "percentile[alpha=0.9]")
def test_alpha(case, judge):
    judge(case)
"""
BETA = ALPHA.replace("alpha(", "beta(")
FEWER = ALPHA.replace('"running_max", ', "")  # a real orphan: running_max, stored before
RUNNING_MAX, PERCENTILE = "tiny-model/running_max/1x1", "tiny-model/percentile[alpha=0.9]/1x1"


@pytest.fixture(scope="session")
def record(world, tmp_path_factory) -> Path:
    """A baseline file with one real record."""
    session = Session(tmp_path_factory.mktemp("record"), world / "corpus", new_only=True)
    case = Case.parse(session.load(str(world / "tiny-model")).name, "running_max", SMALL)
    session.plan([case])
    session.judge("alpha", case)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Session, "_measured_elsewhere", lambda self: {})
        (path,) = session.write()
    return path


@pytest.fixture
def run(pytester, world, record):
    """run(*options): pytest over suites/, in this process; the bundled model is the tiny one."""
    pytester.makeini("[pytest]")
    suites = pytester.mkdir("suites")
    (suites / "test_alpha.py").write_text(ALPHA)
    (suites / "test_beta.py").write_text(BETA)

    def go(*options, more="", red=(), args=("suites",), apart=False):
        conftest = CONFTEST.format(more=more, red=tuple(red), record=str(record), zoo=str(world))
        (pytester.path / "conftest.py").write_text(conftest)
        fixed = ["-p", "no:cacheprovider", "--import-mode=importlib", "-rs"]
        runs = pytester.runpytest_subprocess if apart else pytester.runpytest_inprocess
        return runs(*args, *fixed, *options)

    return go


def text(result) -> str:
    return "\n".join(result.outlines + result.errlines)


def test_try(run, pytester):
    r = run("--qb-new-only"); print(text(r)); 
    r = run(); print(text(r)); 
    (pytester.path/"suites"/"test_alpha.py").write_text(FEWER)
    r = run(); print(text(r)); 
    r = run("--qb-update"); print(text(r)); 
    (pytester.path/"suites"/"test_alpha.py").write_text("import pytest\n@pytest.mark.case('x')\ndef test_alpha(case, judge): judge(case)\n")
    r = run(); print(text(r)); 
    assert 0
