"""examples/fork as its owner meets it: stored once, green while nothing changes, red with the place when it does."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from quambench.data.tokenizer import Tokenizer
from quambench.models import ModelConfig, build
from quambench.models.checkpoint import save_checkpoint

FORK = Path(__file__).parents[2] / "examples" / "fork"
# Everything at the size of the model: the protocol's own counts are for real ones.
SMALL = """
import dataclasses
from quambench import case
small = case.Protocol(calib_windows=6, calib_length=16, quality_windows=8, quality_length=32, decode_windows=6,
                      decode_prefix=8, decode_steps=6, error_windows=4, error_length=16, max_items=12)
case.Protocol.__init__.__kwdefaults__.update(dataclasses.asdict(small))
"""
FAULTS = {  # file -> what stands there, what is put in its place, whose case is red, where first
    "an average that forgets nothing": (
        "calib/observer.py", "self.sigma * (seen - self.average)", "self.sigma * seen",
        "calib.observer:SlowPercentile/1x1", "layers.0.x_conv_out",
    ),
    "channels in falling order": (
        "calib/reorder.py", "order = channels.argsort(dim=-1, stable=True)",
        "order = channels.argsort(dim=-1, stable=True, descending=True)",
        "running_max/calib.reorder:by_loudness/quamba2", "layers.0.x_conv_out",
    ),
    "one layer's scales for all": (
        "calib/scales.py", "largest[layer][key] =", "largest[min(layer, 0)][key] =",
        "calibration=calib.scales:calibrate/1x1", "layer 1",
    ),
    "room below instead of above": (
        "calib/scales.py", "HEADROOM = 1.02", "HEADROOM = 0.98",
        "calibration=calib.scales:calibrate/1x1", "layers.0.in_proj:input",
    ),
    "it fails": (
        "calib/scales.py", "for tokens in data:", "for tokens in data[7]:",
        "calibration=calib.scales:calibrate/1x1", "scales.py:16",
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A model with four heads, and a corpus for it."""
    root = tmp_path_factory.mktemp("world")
    (root / "corpus").mkdir()
    line = "The union of the people shall stand for all of the people, and the people shall stand for the union. "
    for i in range(6):
        (root / "corpus" / f"{i}.txt").write_text(f"Part {i}. " + line * 12)
    config = ModelConfig(architecture="mamba2", d_model=16, n_layers=2, vocab_size=300, d_state=4, head_dim=8)
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        model = build(config)
        for block in model.blocks:  # unlike a fresh model's, channels differ
            block.mixer.conv1d.weight.mul_(torch.linspace(0.5, 4, block.mixer.conv1d.weight.shape[0])[:, None, None])
    save_checkpoint(root / "tiny-model", model, torch.float32)
    Tokenizer.train([line, "Part 0123456789."], 300).save(root / "tiny-model" / "tokenizer.json")
    return root


@pytest.fixture
def fork(pytester, world, recorded):
    """judge(*options): the suites of a copy of the example, whose baselines are stored."""
    shutil.copytree(recorded, pytester.path, dirs_exist_ok=True)
    return judging(pytester, world)


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """Where the first test leaves the example with its baselines."""
    return tmp_path_factory.mktemp("recorded")


def judging(pytester, world):
    def judge(*options):
        return pytester.runpytest_subprocess(
            "suites", "--qb-corpus", str(world / "corpus"), "--qb-model", str(world / "tiny-model"),
            "-p", "no:cacheprovider", *options,
        )  # fmt: skip

    return judge


@pytest.fixture(scope="module", autouse=True)
def _stored(recorded, world, request):
    """The example, at the model's size, judged for the first time."""
    shutil.copytree(FORK, recorded, dirs_exist_ok=True)
    suite = recorded / "suites" / "test_fork.py"
    suite.write_text(suite.read_text().replace("quick=True, ", ""))
    conftest = recorded / "conftest.py"
    conftest.write_text(SMALL + conftest.read_text())
    (recorded / "pytest.ini").write_text("[pytest]\n")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "suites", "--qb-corpus", str(world / "corpus"), "--qb-model",
         str(world / "tiny-model"), "-p", "no:cacheprovider", "--qb-new-only"],
        cwd=recorded, capture_output=True, text=True,
    )  # fmt: skip
    assert "6 failed" in done.stdout or "6 passed" in done.stdout, done.stdout + done.stderr
    assert (recorded / "baselines" / "fork").is_dir()


def test_green_while_nothing_changes(fork):
    result = fork()
    result.assert_outcomes(passed=6)
    for name in ("calib.observer:SlowPercentile/1x1", "by_loudness/quamba2", "calibration=calib.scales:calibrate/1x1"):
        assert re.search(rf"{re.escape(name)} +SAME", result.stdout.str()), name


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_red_in_its_own_case_and_named(fork, pytester, fault):
    file, there, instead, case, place = FAULTS[fault]
    path = pytester.path / file
    assert path.read_text().count(there) == 1
    path.write_text(path.read_text().replace(there, instead))
    result = fork()
    result.assert_outcomes(passed=5, failed=1)
    red = [line for line in result.stdout.lines if line.startswith("FAILED")]
    assert case in red[0]
    assert place in result.stdout.str()


def test_one_name_on_the_command_line_takes_the_suites_observers_place(fork):
    result = fork("--qb-calibration", "calib.scales:calibrate", "-k", "test_observer")
    assert "calibration=calib.scales:calibrate/1x1" in result.stdout.str()
    assert "SlowPercentile" not in result.stdout.str()
