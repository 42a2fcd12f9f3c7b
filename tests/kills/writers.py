"""Everything that quambench writes, each as a change from one version to the next that may be killed on the way."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from quambench.bench.gate import LatencyStore, Recorded
from quambench.calibration.scales import Calibration
from quambench.calibration.stored_model import StoredModel
from quambench.cli.main import main
from quambench.core.files import locked, write
from quambench.gate import probes
from quambench.gate.baselines import BaselineStore, read_baseline
from quambench.gate.probes import records
from quambench.gate.verdicts import Status, Verdict
from quambench.grids.precision import Precision
from quambench.int8.fuse import prepare
from quambench.int8.model import QuantizedModel, quantize_model
from quambench.interchange import quamba_file
from quambench.models import ModelConfig, build
from quambench.models.checkpoint import save_checkpoint
from quambench.models.sites import sites_of
from quambench.models.zoo import train
from quambench.report import write_report

TINY = ModelConfig(architecture="mamba", d_model=16, n_layers=1, vocab_size=50, d_state=4, dt_rank=1)
BIG = 1 << 20  # bytes of a report, so that a kill has something to hit


@dataclass(frozen=True)
class Writer:
    """`write` brings a folder to version n; `read` says which version is there, and raises where none is whole."""

    write: Callable[[Path, int], Any]
    read: Callable[[Path], int]
    files: Callable[[Path], set[str]]  # names that a folder has after a write


def _named(*names: str) -> Callable[[Path], set[str]]:
    return lambda folder: set(names)


# --- baselines ------------------------------------------------------------------------------------------


def _versioned(n: int) -> Any:
    """The number is in the JSON and, as an array, in the evidence."""
    record = records.record()
    kl = record.evidence["prefill.kl"]
    return replace(record, accepted=f"v{n}", evidence=record.evidence | {"prefill.kl": kl * (1 + n % 97)})


def _store(folder: Path) -> BaselineStore:
    return BaselineStore(folder, "class")


def _write_baseline(folder: Path, n: int) -> None:
    record = _versioned(n)
    _store(folder).write("alpha", "m", [record, replace(record, case_id="m/other/1x1")])


def _read_baseline(folder: Path) -> int:
    found = {int(record.accepted[1:]) for record in read_baseline(_store(folder).path("alpha", "m")).values()}
    assert len(found) == 1, "two versions in one file"
    return found.pop()


def put_baseline(folder: Path, name: str) -> None:
    """One more case beside those that are there."""
    _store(folder).write("alpha", "m", [replace(records.record(), case_id=f"m/{name}/1x1")])


def baseline_ids(folder: Path) -> set[str]:
    return set(read_baseline(_store(folder).path("alpha", "m")))


def _baseline_files(folder: Path) -> set[str]:
    path = _store(folder).path("alpha", "m")
    evidence = json.loads(path.read_text())["evidence"]["file"]
    return {str(path.relative_to(folder)), str(path.with_name(evidence).relative_to(folder))}


def _remove_and_write(folder: Path, n: int) -> None:
    """An orphan goes, and what is new comes: as `pytest --qb-update` does."""
    store = _store(folder)
    if store.find("alpha", "m"):
        store.remove("alpha", "m", ["m/gone/1x1"])
    record = _versioned(n)
    cases = [record, replace(record, case_id="m/other/1x1"), replace(record, case_id="m/gone/1x1")]
    store.write("alpha", "m", cases)


# --- calibrations and checkpoints -----------------------------------------------------------------------


def _calibration(n: int) -> Calibration:
    names = list(sites_of(TINY))
    return Calibration(
        scales={site: torch.tensor(1.0 + n) for site in names},
        granularities=dict.fromkeys(names, "tensor"),
        observers=dict.fromkeys(names, "running_max"),
        act_bits=8,
        model_digest=_checkpoint_digest(),
        data_digest=hashlib.sha256(b"data").hexdigest(),
    )


def _checkpoint_digest() -> str:
    return hashlib.sha256(b"model").hexdigest()


def _read_calibration(folder: Path) -> int:
    scales = {float(scale) for scale in Calibration.load(folder).scales.values()}
    assert len(scales) == 1, "two versions in one calibration"
    return int(scales.pop() - 1)


@cache
def _quantized() -> QuantizedModel:
    torch.manual_seed(0)
    model = prepare(build(TINY).requires_grad_(False))
    return quantize_model(model, _calibration(0), Precision())


def _save_quantized(folder: Path, n: int) -> None:
    """The version is in the JSON and, as scales, among the arrays."""
    StoredModel(_quantized(), _calibration(n), f"v{n}").save(folder / "q")


def _read_quantized(folder: Path) -> int:
    found = StoredModel.load(folder / "q")
    scales = {float(scale) for scale in found.calibration.scales.values()}
    assert scales == {1.0 + int(found.case_id[1:])}, "two versions in one model"
    return int(found.case_id[1:])


def _quantized_files(folder: Path) -> set[str]:
    named = json.loads((folder / "q" / "quantized.json").read_text())["arrays"]["file"]
    return {"q/quantized.json", f"q/{named}"}


def _save_checkpoint(folder: Path, n: int) -> None:
    torch.manual_seed(0)
    model = build(TINY).requires_grad_(False)
    model.backbone.norm_f.weight.fill_(1 + n)
    save_checkpoint(folder / "m", model, torch.float32)  # half precision counts to 2,048


def _read_checkpoint(folder: Path) -> int:
    """Without a tokenizer it is none to load by its name; both files are whole."""
    ModelConfig.from_json(json.loads((folder / "m" / "config.json").read_text()))
    return int(load_file(folder / "m" / "model.safetensors")["backbone.norm_f.weight"][0] - 1)


def _save_state(folder: Path, n: int) -> None:
    torch.manual_seed(0)
    model = build(TINY)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    train._save(folder / "state.pt", model, optimizer, Recipe(), n, 0.0)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Recipe:
    """As much of a recipe as a state of training has."""

    name: str = "kills"


# --- everything -----------------------------------------------------------------------------------------


def _text(n: int) -> str:
    return f"{n}\n" + "x" * BIG + f"\n{n}"


def _read_text(path: Path) -> int:
    text = path.read_text(encoding="utf-8")
    first, last = text.split("\n")[0], text.rstrip().split("\n")[-1]
    assert first == last and len(text) > BIG, "half a text"
    return int(first)


def _read_json(path: Path) -> int:
    return int(json.loads(path.read_text(encoding="utf-8"))["verdicts"][0]["reason"])


def _verdict(n: int) -> list[Verdict]:
    return [Verdict("m/mse/1x1", Status.REGRESSED, str(n))]


def _record_probe(folder: Path, n: int) -> None:
    """Its answer is what the code gives; the version is kept as the answer of another, which stays as it is."""
    path = folder / "expected.json"
    with locked(folder):
        write(path, probes._dump({"grid/scale": {}, "version": {"n": [n]}}))
    probes.record(["grid/scale"], path)


def _read_probe(folder: Path) -> int:
    return int(probes._read(folder / "expected.json")["version"]["n"][0])


def _latency(folder: Path, n: int) -> None:
    LatencyStore(folder).write({"row": Recorded(1.0 + n, 0.01)}, {})


def _init(folder: Path, n: int) -> None:
    with open(os.devnull, "w", encoding="utf-8") as silent, redirect_stdout(silent):
        assert main(["init", str(folder / f"repository {n}")]) == 0


def _read_init(folder: Path) -> int:
    """Whatever a kill left is whole, and the next run completes it."""
    last = max(int(path.name.split()[1]) for path in folder.iterdir())
    _init(folder, last)
    return last


WRITERS = {
    "baseline": Writer(_write_baseline, _read_baseline, _baseline_files),
    "baseline, removing": Writer(_remove_and_write, _read_baseline, _baseline_files),
    "calibration": Writer(
        lambda folder, n: _calibration(n).save(folder),
        _read_calibration,
        _named("calibration.json", "scales.safetensors"),
    ),
    "quantized model": Writer(_save_quantized, _read_quantized, _quantized_files),
    "checkpoint": Writer(_save_checkpoint, _read_checkpoint, _named("m/config.json", "m/model.safetensors")),
    "state of training": Writer(
        _save_state, lambda folder: torch.load(folder / "state.pt", weights_only=True)["step"], _named("state.pt")
    ),
    "quamba file": Writer(
        lambda folder, n: quamba_file.write(folder / "x.pt", _calibration(n), "code"),
        lambda folder: int(float(torch.load(folder / "x.pt", weights_only=True)["act_scales"][0]["in_proj:input"]) - 1),
        _named("x.pt"),
    ),
    "text (claims, bench)": Writer(
        lambda folder, n: write(folder / "x.md", _text(n)), lambda folder: _read_text(folder / "x.md"), _named("x.md")
    ),
    "report": Writer(
        lambda folder, n: write_report(folder / "r.json", _verdict(n) * 500, {}),
        lambda folder: _read_json(folder / "r.json"),
        _named("r.json"),
    ),
    "answers of probes": Writer(_record_probe, _read_probe, _named("expected.json")),
    "latency": Writer(
        _latency,
        lambda folder: int(LatencyStore(folder).read()["row"].ratio - 1),
        lambda folder: {str(LatencyStore(folder).path.relative_to(folder))},
    ),
    "init": Writer(_init, _read_init, lambda folder: {str(p.relative_to(folder)) for p in folder.rglob("*.*")}),
}  # fmt: skip
