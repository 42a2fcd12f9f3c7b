"""What becomes of tests when the worker that runs them dies: real runs under xdist, without any case."""

from __future__ import annotations

from pathlib import Path

import pytest

DIES = "import os; os._exit(3)"


@pytest.fixture
def run(pytester: pytest.Pytester, tmp_path: Path):
    """run(bodies, workers): a test of each body; the names that started, in order, and the result."""

    def go(bodies: list[str], workers: int) -> tuple[list[str], pytest.RunResult]:
        pytester.makeini("[pytest]")
        note = f"open({str(tmp_path / 'started')!r}, 'a').write('{{}}\\n')"
        tests = [f"def test_{i}():\n    {note.format(i)}\n    {body}\n" for i, body in enumerate(bodies)]
        pytester.makepyfile(test_dying="\n".join(tests))
        result = pytester.runpytest_subprocess("-n", str(workers), "-p", "no:cacheprovider", timeout=120)
        return (tmp_path / "started").read_text().split(), result

    return go


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("dying", [0, 1, 2])
def test_one_that_kills_its_worker_fails_once_and_the_others_run(run, workers, dying):
    """Also where a single test is left for the worker that replaces it: xdist's own scheduler would wait for ever."""
    bodies = ["pass"] * 3
    bodies[dying] = DIES
    started, result = run(bodies, workers)
    result.assert_outcomes(passed=2, failed=1)
    assert sorted(started) == ["0", "1", "2"]


def test_where_all_kill_their_workers_all_fail(run):
    started, result = run([DIES] * 3, 1)
    result.assert_outcomes(failed=3)
    assert sorted(started) == ["0", "1", "2"]
