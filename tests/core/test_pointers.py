"""A file that is still a pointer of git-lfs: every reader says so, and what to type."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from quambench.bench.gate import LatencyStore
from quambench.calibration.scales import Calibration
from quambench.core.errors import BadArtefact, QuambenchError
from quambench.core.pointers import check_fetched
from quambench.data.corpus import load_corpus
from quambench.data.tokenizer import Tokenizer
from quambench.gate.baselines import read_baseline
from quambench.grids.precision import Precision
from quambench.interchange import quamba_file
from quambench.models.weights import open_weights, read_json

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a214614ab2935c943f9e0ff69d22e\nsize 12345\n"
BASELINES = Path(__file__).parents[2] / "baselines"


def calibration(folder: Path) -> tuple[Path, Callable[[], Any]]:
    (folder / "calibration.json").write_text('{"schema": 1}')
    return folder / "scales.safetensors", lambda: Calibration.load(folder)


def calibrations_text(folder: Path) -> tuple[Path, Callable[[], Any]]:
    (folder / "scales.safetensors").touch()
    return folder / "calibration.json", lambda: Calibration.load(folder)


def baseline(folder: Path) -> tuple[Path, Callable[[], Any]]:
    return folder / "m.json", lambda: read_baseline(folder / "m.json")


def evidence(folder: Path) -> tuple[Path, Callable[[], Any]]:
    found = next(iter(sorted(BASELINES.glob("*/*/mamba2-tiny.json"))))
    (folder / found.name).write_bytes(found.read_bytes())
    name = next(found.parent.glob("mamba2-tiny.*.safetensors")).name
    return folder / name, lambda: read_baseline(folder / found.name)


def latency(folder: Path) -> tuple[Path, Callable[[], Any]]:
    store = LatencyStore(folder)
    store.path.parent.mkdir()
    return store.path, store.read


def text(folder: Path) -> tuple[Path, Callable[[], Any]]:
    for name in "abc":
        (folder / f"{name}.txt").write_text(f"Some words of {name}.")
    return folder / "b.txt", lambda: load_corpus(folder)


READERS: dict[str, Callable[[Path], tuple[Path, Callable[[], Any]]]] = {
    "scales": calibration,
    "calibration.json": calibrations_text,
    "baseline": baseline,
    "evidence": evidence,
    "latency": latency,
    "text": text,
    "jsonl": lambda d: (d / "t.jsonl", lambda: load_corpus(d / "t.jsonl")),
    "mix": lambda d: (d / "mix.json", lambda: Precision.parse(str(d / "mix.json"))),
    "quamba": lambda d: (d / "q.pt", lambda: quamba_file.read(d / "q.pt", SimpleNamespace())),  # type: ignore[arg-type]
    "weights": lambda d: (d / "model.safetensors", lambda: open_weights(d / "model.safetensors")),
    "bin": lambda d: (d / "pytorch_model.bin", lambda: open_weights(d / "pytorch_model.bin")),
    "index": lambda d: (d / "model.safetensors.index.json", lambda: open_weights(d / "model.safetensors.index.json")),
    "json": lambda d: (d / "config.json", lambda: read_json(d / "config.json")),
    "tokenizer": lambda d: (d / "tokenizer.json", lambda: Tokenizer.load(d / "tokenizer.json")),
}


@pytest.mark.parametrize("reader", READERS)
def test_every_reader_says_what_it_is(reader: str, tmp_path: Path) -> None:
    file, read = READERS[reader](tmp_path)
    file.write_bytes(POINTER)
    with pytest.raises(QuambenchError) as error:
        read()
    assert str(error.value) == f"{file} is a git-lfs pointer, not the file that it stands for: git lfs pull fetches it"


@pytest.mark.parametrize("content", [b"", POINTER[1:], POINTER + b" " * 1024, b"version 2"])
def test_what_only_looks_like_one_is_left_to_its_reader(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(content)
    check_fetched(tmp_path / "file", BadArtefact)
    check_fetched(tmp_path, BadArtefact)
    check_fetched(tmp_path / "none", BadArtefact)
