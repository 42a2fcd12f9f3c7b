"""Loading takes at most 1.2 times the memory of the weights that stay, measured on a process of its own.

Peak resident memory (VmHWM) counts touched pages of mapped files too, as the kernel does when it looks for somebody to
end. What a process has resident before it loads is subtracted.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from quambench.models import ModelConfig, build

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="reads Linux's /proc"),
]

ALLOWED = 1.2
# 245 MiB in float32, four tenths of them one tensor: that one must not be there twice either. What loading needs beside
# the weights are pieces and 8 MiB of a mapping, so one try tells: 1.2 leaves 49 MiB to whatever else a process does.
CONFIG = ModelConfig(architecture="mamba2", d_model=512, n_layers=24, vocab_size=50280, d_state=16, head_dim=64)

MEASURED = """
import sys, torch
from pathlib import Path
from quambench.models.checkpoint import load_checkpoint
{before}

def resident(field):
    return next(int(l.split()[1]) for l in Path("/proc/self/status").read_text().splitlines() if l.startswith(field))

load_checkpoint({warm!r})  # what is imported and set up once is no part of loading
Path("/proc/self/clear_refs").write_text("5")  # VmHWM starts anew
start = resident("VmRSS")
model = load_checkpoint({folder!r}, dtype=torch.{dtype}).model
kept = sum(p.nbytes for p in model.parameters())
print((resident("VmHWM") - start) * 1024 / kept, kept >> 20)
"""

# The twin: a reader that holds a whole file, however its tensors are asked for.
ALL_AT_ONCE = """
from quambench.models import checkpoint
opened = checkpoint.open_weights

class Whole:
    def __init__(self, source):
        weights = opened(source)
        self.stored = weights.stored
        self.held = {name: torch.cat([p.clone() for p in weights.pieces(name)]) for name in weights.stored}

    def pieces(self, name):
        return iter(self.held[name].split(1 << 20))

checkpoint.open_weights = Whole
"""


@dataclass(frozen=True)
class Sizes:
    """Peak above the start, in multiples of the model's own weights, and these in MiB."""

    peak: float
    kept: int


def measure(folder: Path, warm: Path, dtype: str = "float32", before: str = "") -> Sizes:
    code = MEASURED.format(folder=str(folder), warm=str(warm), dtype=dtype, before=before)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    peak, kept = done.stdout.split()
    return Sizes(float(peak), int(kept))


def as_safetensors(folder: Path, weights: dict[str, Tensor]) -> None:
    save_file(weights, folder / "model.safetensors")


def as_shards(folder: Path, weights: dict[str, Tensor]) -> None:
    """By turns, so that reading in any order goes to and fro between them."""
    names = {}
    for i in range(3):
        part = sorted(weights)[i::3]
        save_file({name: weights[name] for name in part}, folder / f"model-{i}.safetensors")
        names |= dict.fromkeys(part, f"model-{i}.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))


def as_torch_file(folder: Path, weights: dict[str, Tensor]) -> None:
    torch.save(weights, folder / "pytorch_model.bin")


def as_torch_shards(folder: Path, weights: dict[str, Tensor]) -> None:
    names = {}
    for i in range(3):
        part = sorted(weights)[i::3]
        torch.save({name: weights[name] for name in part}, folder / f"pytorch_model-{i}.bin")
        names |= dict.fromkeys(part, f"pytorch_model-{i}.bin")
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": names}))


LAYOUTS = {f.__name__: f for f in (as_safetensors, as_shards, as_torch_file, as_torch_shards)}


@pytest.fixture(scope="module")
def weights() -> dict[str, Tensor]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        found = build(CONFIG).state_dict()
    del found["lm_head.weight"]
    return found


@pytest.fixture(scope="module")
def write(weights: dict[str, Tensor], tmp_path_factory: pytest.TempPathFactory, tokenizer_file: Path):
    """(layout, precision on disk) -> a folder; one at a time is on the disk."""
    last: list[Path] = []

    def make(layout: str, dtype: torch.dtype) -> Path:
        for old in last:
            shutil.rmtree(old)
        folder = tmp_path_factory.mktemp("large")
        last[:] = [folder]
        LAYOUTS[layout](folder, {name: t.to(dtype) for name, t in weights.items()})
        (folder / "config.json").write_text(json.dumps(CONFIG.to_json()))
        shutil.copy(tokenizer_file, folder / "tokenizer.json")
        return folder

    yield make
    for old in last:
        shutil.rmtree(old)


@pytest.fixture(scope="module")
def warm(tmp_path_factory: pytest.TempPathFactory, tokenizer_file: Path) -> Path:
    """A model of a few bytes in both kinds of file."""
    from quambench.models.checkpoint import save_checkpoint

    folder = tmp_path_factory.mktemp("small")
    config = ModelConfig(architecture="mamba2", d_model=8, n_layers=1, vocab_size=264, d_state=3, head_dim=4)
    with torch.random.fork_rng():
        save_checkpoint(folder, build(config))
    shutil.copy(tokenizer_file, folder / "tokenizer.json")
    return folder


def assert_little(folder: Path, warm: Path, dtype: str = "float32") -> None:
    found = measure(folder, warm, dtype)
    assert 100 <= found.kept <= 400
    assert found.peak <= ALLOWED, f"{found.peak:.2f} times the weights"


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_peak_is_little_more_than_the_weights(write: Callable[..., Path], warm: Path, layout: str) -> None:
    assert_little(write(layout, torch.float16), warm)


def test_narrowing_what_is_wide_on_the_disk(write: Callable[..., Path], warm: Path) -> None:
    assert_little(write("as_torch_file", torch.float32), warm, dtype="bfloat16")


@pytest.mark.parametrize("layout", ["as_safetensors", "as_torch_file"])
def test_the_measurement_sees_a_file_held_whole(write: Callable[..., Path], warm: Path, layout: str) -> None:
    assert measure(write(layout, torch.float16), warm, before=ALL_AT_ONCE).peak > ALLOWED


def test_the_measurement_sees_a_mapping_that_is_kept(write: Callable[..., Path], warm: Path) -> None:
    keep = "from quambench.models import weights; weights._KEPT = 1 << 60"
    assert measure(write("as_torch_file", torch.float16), warm, before=keep).peak > ALLOWED
