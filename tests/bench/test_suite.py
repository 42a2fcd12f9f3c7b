"""suites/speed over latencies: NEW, stored, SAME, red and repeated; with a measurement that the test decides."""

import json
import shutil
from pathlib import Path

import pytest

SPEED = Path(__file__).parents[2] / "suites" / "speed"
WORLD = """
import sys
from quambench.bench import gate, kernels
from quambench.bench.interleave import Ratio

SMALL = {"mamba2-130m": kernels.Shape("mamba2-130m", 32, 64, 8, groups=2, heads=8)}
kernels.SHAPES.clear()
kernels.SHAPES.update(SMALL)
kernels.PREFILL = 9
kernels.COPIED = 1 << 16
made = []

def measured(make):
    made.append(make)
    for call in make():
        call()
    value = %s
    return Ratio(value, value - 0.01, value + 0.01, 1e-3, 1e-3, 5)

gate.measured = measured
kernels.Rates.measure = classmethod(lambda cls: cls(copied=1e9, multiplied=1e9))
pytest_plugins = ["quambench.pytest_plugin"]
"""


@pytest.fixture
def run(pytester):
    pytester.makeini("[pytest]")
    folder = pytester.mkdir("suites") / "speed"
    folder.mkdir()
    shutil.copy(SPEED / "test_kernel_latency.py", folder)
    text = (
        (SPEED / "conftest.py").read_text().replace('USUAL = ("mamba-130m", "mamba2-130m")', 'USUAL = ("mamba2-130m",)')
    )
    (folder / "conftest.py").write_text(text)

    def go(value, *options):
        (pytester.path / "conftest.py").write_text(WORLD % value)
        return pytester.runpytest_subprocess("suites", "-q", "-k", "rms_norm or hadamard", *options)

    return go


def stored(pytester):
    (file,) = (pytester.path / "baselines" / "latency").glob("*.json")
    return json.loads(file.read_text())["rows"]


def test_from_new_to_red(run, pytester):
    new = run("1.0")
    new.assert_outcomes(passed=4)
    new.stdout.fnmatch_lines(["*latencies on cpu-*", "*NEW*rms_norm_quantize, mamba2-130m, decode 1*"])
    assert not (pytester.path / "baselines").exists()

    run("1.0", "--qb-new-only").assert_outcomes(passed=4)
    assert {row["ratio"] for row in stored(pytester).values()} == {1.0}
    same = run("1.03")
    same.assert_outcomes(passed=4)
    same.stdout.fnmatch_lines(["*SAME*hadamard_quantize*1.030*1.000*10%*"])

    red = run("1.2 if len(made) < 3 else 1.0")  # the first row alone is slower, twice
    red.assert_outcomes(passed=3, failed=1)
    red.stdout.fnmatch_lines(["*REGRESSED: ratio 1.000 -> 1.200*"])
    run("1.2 if len(made) < 2 else 1.0").assert_outcomes(passed=4)  # once is noise


def test_slower_is_stored_only_with_a_reason(run, pytester):
    run("1.0", "--qb-update").assert_outcomes(passed=4)
    run("1.2", "--qb-update").assert_outcomes(failed=4)
    assert {row["ratio"] for row in stored(pytester).values()} == {1.0}
    run("1.2", "--qb-update", "--qb-accept", "an exact kernel").assert_outcomes(failed=4)
    assert {row["ratio"] for row in stored(pytester).values()} == {1.2}
    run("1.2").assert_outcomes(passed=4)


def test_nothing_is_timed_beside_other_work(run, pytester):
    done = run("1.0", "-n", "2", "--qb-update")
    done.assert_outcomes(skipped=4)
    assert not (pytester.path / "baselines" / "latency").exists()


def test_a_damaged_baseline_is_one_line(run, pytester):
    run("1.0", "--qb-update")
    (file,) = (pytester.path / "baselines" / "latency").glob("*.json")
    file.write_text("{")
    done = run("1.0")
    done.assert_outcomes(errors=4)
    done.stdout.fnmatch_lines(["*BadArtefact*is not a readable latency baseline*remove it and record it anew*"])
