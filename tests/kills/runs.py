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

import torch

from quambench.core.errors import BadArtefact
from quambench.core.files import is_begun
from quambench.data.tokenizer import Tokenizer
from quambench.gate.baselines import read_baseline
from quambench.models import ModelConfig, build
from quambench.models.checkpoint import save_checkpoint

CONFTEST = """
import dataclasses

from quambench import case
from quambench.gate import probes

# What is killed is the writing: so little is measured, and no unit is asked, that a run takes seconds.
small = case.Protocol(calib_windows=4, calib_length=16, quality_windows=4, quality_length=16, decode_windows=4,
                      decode_prefix=4, decode_steps=4, error_windows=2, error_length=16, max_items=4)
case.Protocol.__init__.__kwdefaults__.update(dataclasses.asdict(small))
probes.in_turn = lambda only: (probes.ProbeResult(name, "same") for name in only)
pytest_plugins = ["quambench.pytest_plugin"]
"""
SUITE = """
import pytest

@pytest.mark.cases("running_max", "percentile[alpha={alpha}]")
def test_{name}(case, judge):
    judge(case)
"""
SUITES = ("one", "two")
WORKERS = 10  # every tenth run has two


def kill_runs(n_kills: int, seed: int) -> list[object]:
    """name, kills, kills after which something had changed, unreadable, lost, left over."""
    counted, chance = Counter[str](), random.Random(f"{seed} runs")
    with tempfile.TemporaryDirectory(prefix="kills-") as place:
        project = make_project(Path(place))
        took: dict[int, float] = {}
        n = 0
        while n < n_kills:
            workers = 2 if (n + len(took)) % WORKERS == 1 else 0
            _write_suites(project, f"{0.99 + chance.random() * 0.009:.6f}")
            before = _stored(project)
            begun = time.monotonic()
            run = subprocess.Popen(
                _command(workers), cwd=project, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                start_new_session=True,
            )  # fmt: skip
            if workers not in took:  # the first of its kind ends, and says how long that takes
                assert run.wait() == 0, "the run fails without any kill"
                took[workers] = time.monotonic() - begun
                continue
            least = 0.7 if chance.random() < 0.5 else 0.0
            try:
                run.wait(chance.uniform(least, 1.02) * took[workers])
            except subprocess.TimeoutExpired:
                os.killpg(run.pid, signal.SIGKILL)
                run.wait()
            n += 1
            _judge(project, before, counted, n)
        _write_suites(project, "0.5")
        assert subprocess.run(_command(0), cwd=project, stdout=subprocess.DEVNULL).returncode == 0
        counted["left over"] += len(_left_over(project))
    return ["pytest --qb-update", n_kills, *[counted[key] for key in ("changed", "unreadable", "lost", "left over")]]


def _judge(project: Path, before: dict[str, set[str]], counted: Counter[str], n: int) -> None:
    try:
        after = _stored(project)
    except BadArtefact as error:
        counted["unreadable"] += 1
        print(f"run {n}: {error}", file=sys.stderr, flush=True)
        return
    counted["changed"] += after != before
    # With --qb-model nothing is removed: what was stored stays, whatever came beside it.
    counted["lost"] += sum(not found <= after.get(name, set()) for name, found in before.items())
    if n % 10 == 0:
        print(f"run {n}: {dict(counted)}", file=sys.stderr, flush=True)


def make_project(place: Path) -> Path:
    """A repository with a model of a thousand weights and a corpus of nine texts, for which a run takes seconds."""
    chooser, project = random.Random(0), place / "project"
    for folder in ("suites", "corpus"):
        (project / folder).mkdir(parents=True)
    (project / "pytest.ini").write_text("[pytest]\n")
    (project / "conftest.py").write_text(CONFTEST)
    words = ["the", "nation", "of", "people", "in", "union", "and", "commerce", "with", "labor", "for", "peace"]
    texts = [" ".join(chooser.choice(words) for _ in range(500)) for _ in range(9)]
    for i, text in enumerate(texts):
        (project / "corpus" / f"{i}.txt").write_text(text)
    torch.manual_seed(0)
    config = ModelConfig(architecture="mamba", d_model=16, n_layers=1, vocab_size=300, d_state=4, dt_rank=2)
    save_checkpoint(project / "tiny", build(config).requires_grad_(False), torch.float32)
    Tokenizer.train(texts, 300).save(project / "tiny" / "tokenizer.json")
    return project


def _write_suites(project: Path, alpha: str) -> None:
    """Another case each time: one that is new, beside those that are there."""
    for name in SUITES:
        (project / "suites" / f"test_{name}.py").write_text(SUITE.format(alpha=alpha, name=name))


def _command(workers: int) -> Sequence[str]:
    options = ["-n", str(workers)] if workers else []
    corpus = ["--qb-corpus", "corpus", "--qb-model", "tiny", "--qb-accept", "killed anyway"]
    return [sys.executable, "-m", "pytest", "suites", "-q", "--qb-update", *corpus, *options]


def _stored(project: Path) -> dict[str, set[str]]:
    """Suite -> ids. raises BadArtefact where a file is not whole"""
    files = [path for path in (project / "baselines").rglob("*.json") if not is_begun(path.relative_to(project))]
    return {path.parents[1].name: set(read_baseline(path)) for path in files}


def _left_over(project: Path) -> list[Path]:
    """Files under baselines/ that are neither a baseline nor the evidence that one names."""
    baselines = list((project / "baselines").rglob("*.json"))
    named = {path.with_name(json.loads(path.read_text())["evidence"]["file"]) for path in baselines}
    return [p for p in (project / "baselines").rglob("*") if not p.is_dir() and p not in named | set(baselines)]
