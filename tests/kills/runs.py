"""Real runs of `pytest --qb-update`, killed with all that they started: at any moment, half of them near the end."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from quambench.errors import BadArtefact
from quambench.gate.baselines import read_baseline

CONFTEST = 'pytest_plugins = ["quambench.pytest_plugin"]\n'
SUITE = """
import pytest

@pytest.mark.cases("running_max/quick", "percentile[alpha={alpha}]/quick", quick=True)
def test_{name}(case, judge):
    judge(case)
"""
SUITES = ("one", "two")
WORKERS = 10  # every tenth run has two


def kill_runs(n_kills: int, seed: int, model: str = "mamba-tiny") -> list[object]:
    """name, kills, kills after which something had changed, unreadable, lost, left over."""
    counted, chance = Counter[str](), random.Random(f"{seed} runs")
    with tempfile.TemporaryDirectory(prefix="kills-") as place:
        project = Path(place) / "project"
        (project / "suites").mkdir(parents=True)
        (project / "pytest.ini").write_text("[pytest]\n")
        (project / "conftest.py").write_text(CONFTEST)
        took = {}
        for n in range(n_kills + 2):
            alpha = 0.99 + (n + 1) / (n_kills + 3) * 0.009
            for name in SUITES:  # another case each time: one that is new, and one that is gone
                (project / "suites" / f"test_{name}.py").write_text(SUITE.format(alpha=f"{alpha:.6f}", name=name))
            workers = 2 if n % WORKERS == 1 else 0
            command = _command(model, workers)
            before = _stored(project)
            begun = time.monotonic()
            run = subprocess.Popen(command, cwd=project, stdout=subprocess.DEVNULL, start_new_session=True)
            if workers not in took:  # the first of its kind ends, and says how long that takes
                assert run.wait() in (0, 1), "the run fails without any kill"
                took[workers] = time.monotonic() - begun
                continue
            least = 0.7 if chance.random() < 0.5 else 0.0
            try:
                run.wait(chance.uniform(least, 1.02) * took[workers])
            except subprocess.TimeoutExpired:
                os.killpg(run.pid, signal.SIGKILL)
                run.wait()
            try:
                after = _stored(project)
            except BadArtefact as error:
                counted["unreadable"] += 1
                print(f"run {n}: {error}", file=sys.stderr, flush=True)
                continue
            counted["changed"] += after != before
            counted["lost"] += sum(not before.get(name, set()) <= found for name, found in _kept(after, before))
        assert subprocess.run(_command(model, 0), cwd=project, stdout=subprocess.DEVNULL).returncode in (0, 1)
        counted["left over"] += len(_left_over(project))
    return ["pytest --qb-update", n_kills, *[counted[key] for key in ("changed", "unreadable", "lost", "left over")]]


def _command(model: str, workers: int) -> Sequence[str]:
    options = ["-n", str(workers)] if workers else []
    return [sys.executable, "-m", "pytest", "suites", "-q", "--qb-update", "--qb-model", model, *options]


def _stored(project: Path) -> dict[str, set[str]]:
    """Suite -> ids. raises BadArtefact where a file is not whole"""
    return {path.parents[1].name: set(read_baseline(path)) for path in (project / "baselines").rglob("*.json")}


def _kept(after: dict[str, set[str]], before: dict[str, set[str]]) -> list[tuple[str, set[str]]]:
    """With --qb-model nothing is removed, so that what was stored stays, whatever came beside it."""
    return [(name, after.get(name, set())) for name in before]


def _left_over(project: Path) -> list[Path]:
    """Files under baselines/ that are neither a baseline nor the evidence that one names."""
    baselines = list((project / "baselines").rglob("*.json"))
    named = {path.with_name(json.loads(path.read_text())["evidence"]["file"]) for path in baselines}
    return [p for p in (project / "baselines").rglob("*") if not p.is_dir() and p not in named | set(baselines)]
