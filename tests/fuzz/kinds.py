"""What is fuzzed: each kind of file, name and command line that is read, and what must be true of those taken."""

from __future__ import annotations

import contextlib
import copy
import hashlib
import importlib.util
import io
import json
import math
import os
import random
import re
import shutil
import socket
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from itertools import accumulate, pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from engine import ACCEPTED, REFUSED, Kind, WrongAcceptance
from folders import entries, restore
from mutations import NASTY, NUMBERS, WORDS, as_bytes, changed_bytes, changed_json, changed_spec, changed_text
from safetensors.torch import load, save
from torch import Tensor

from quambench.bench.gate import LatencyStore, Recorded, faster, slower
from quambench.bench.interleave import Ratio
from quambench.calibration.refine import RefinementSpec
from quambench.calibration.scales import Calibration, check_calibration
from quambench.calibration.stored_model import StoredModel
from quambench.case import Case, check_fit, protocol_hash
from quambench.cli.main import main
from quambench.core.errors import BadArtefact, QuambenchError
from quambench.data.corpus import load_corpus
from quambench.data.tokenizer import Tokenizer
from quambench.gate import probes
from quambench.gate.baselines import BaselineStore, read_baseline, write_baseline
from quambench.gate.record import Record
from quambench.gate.verdicts import Status, judge
from quambench.grids.granularity import UNQUANTIZED, scale_shape
from quambench.grids.precision import Precision
from quambench.grouping import GroupingSpec
from quambench.int8.fuse import prepare
from quambench.int8.model import quantize_model
from quambench.int8.recipe import WeightRecipe
from quambench.int8.site_grid import site_grids
from quambench.interchange import quamba_file
from quambench.models import LanguageModel, ModelConfig, build
from quambench.models.checkpoint import load_checkpoint, save_checkpoint
from quambench.models.sites import shape_at, sites_of
from quambench.observers import ObserverSpec
from quambench.policy import PolicySpec
from quambench.report import REPORTS, terminal
from quambench.report.json import document as json_document

HERE = Path(__file__).parent
MAMBA = ModelConfig(architecture="mamba", d_model=16, n_layers=1, vocab_size=300, d_state=4, dt_rank=2)
MAMBA2 = ModelConfig(architecture="mamba2", d_model=16, n_layers=2, vocab_size=300, d_state=8, head_dim=8, n_groups=2)
TEXT = "The union of the people, and the labor of the country, is the peace of the nation. "
KINDS: dict[str, Kind] = {}


def arrays_of(blob: bytes) -> dict[str, torch.Tensor]:
    """Of a safetensors file, by name: its reader gives them in another order every time."""
    return dict(sorted(load(blob).items()))


def kind(name: str, make: Callable[[Path], Any]) -> Callable[[Callable[[Any, random.Random], str]], Callable[..., str]]:
    """Enter a function that runs one mutant."""

    def enter(one: Callable[[Any, random.Random], str]) -> Callable[..., str]:
        KINDS[name] = Kind(name, make, one)
        return one

    return enter


def demand(truth: object, what: str) -> None:
    if not truth:
        raise WrongAcceptance(what)


# --- Baselines


@dataclass(frozen=True)
class BaselineStart:
    path: Path
    raw: bytes
    document: dict[str, Any]
    blob: bytes
    evidence: Path
    records: Mapping[str, Record]


def _records() -> Callable[..., Record]:
    spec = importlib.util.spec_from_file_location("_records_of_tests", HERE.parent / "gate" / "conftest.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.make_record


def baseline_start(folder: Path) -> BaselineStart:
    make, path = _records(), folder / "b" / "alpha" / "cpu" / "m.json"
    cases = {name: make(n, name) for n, name in enumerate(("m/running_max/1x1", "m/mse/1x1"))}
    write_baseline(
        path,
        {
            name: replace(
                record,
                rest={k: v for k, v in record.evidence.items() if k.startswith("prefill.")},
                rest_digest="d",
                accepted="why" if "mse" in name else "",
            )
            for name, record in cases.items()
        },
    )
    (evidence,) = path.parent.glob("*.safetensors")
    raw = path.read_bytes()
    return BaselineStart(path, raw, json.loads(raw), evidence.read_bytes(), evidence, read_baseline(path))


def told(records: Mapping[str, Record]) -> dict[str, Any]:
    """All that is judged and shown of records, in a form that can be compared."""

    def arrays(of: Mapping[str, torch.Tensor]) -> dict[str, Any]:
        return {n: (str(a.dtype), tuple(a.shape), a.contiguous().numpy().tobytes()) for n, a in of.items()}

    return {
        name: (
            r.case_id,
            dict(r.settings),
            repr(sorted(r.metrics.items())),
            arrays(r.evidence),
            arrays(r.artefacts.scales),
            list(r.artefacts.scales),
            dict(r.artefacts.digests),
            dict(r.provenance),
            dict(r.noise.means),
            dict(r.noise.units),
            arrays(r.noise.sites),
            dict(r.noise.arrays),
            dict(r.restated),
            r.accepted,
            arrays(r.rest),
            r.rest_digest,
            r.gone,
        )
        for name, r in records.items()
    }


def _resigned(document: Any) -> Any:
    """With every hash as it must be, as far as there is anything to hash."""
    with contextlib.suppress(Exception):
        for entry in document["cases"].values():
            with contextlib.suppress(Exception):
                entry["protocol"] = protocol_hash(entry["settings"])
    with contextlib.suppress(Exception):
        document["sha256"] = hashlib.sha256(json.dumps(document["cases"], sort_keys=True).encode()).hexdigest()
    return document


def _put(start: BaselineStart, raw: bytes, blob: bytes | None = None) -> None:
    start.path.write_bytes(raw)
    start.evidence.write_bytes(start.blob if blob is None else blob)


def _works(start: BaselineStart) -> str:
    """A file that was signed anew and is taken can be judged, shown and stored again."""
    found = read_baseline(start.path)
    for name, record in found.items():
        stored = start.records.get(name)
        for new, old in ((record, record), (stored or record, record), (record, stored)):
            with contextlib.suppress(QuambenchError):
                verdict = judge(new, old, max(len(found), 1))
                demand(isinstance(verdict.status, Status), "no verdict")
                for render in REPORTS.values():
                    render([verdict], record.provenance)
                terminal([verdict]).encode()
                json.dumps(json_document([verdict], record.provenance), allow_nan=False)
        for scale in record.artefacts.scales.values():
            demand(scale.isfinite().all(), "a scale that is not finite")
    again = start.path.with_name("again.json")
    write_baseline(again, found)
    demand(told(read_baseline(again)).keys() == told(found).keys(), "what is written of it reads back otherwise")
    for file in again.parent.glob("again*"):
        file.unlink()
    return ACCEPTED


@kind("baseline", baseline_start)
def _baseline(start: BaselineStart, chance: random.Random) -> str:
    """Not signed anew: whatever is taken is what was stored."""
    if chance.random() < 0.4:
        raw = changed_bytes(chance, start.raw)
    else:
        raw = as_bytes(chance, changed_json(chance, start.document))
    _put(start, raw)
    found = read_baseline(start.path)
    BaselineStore(start.path.parents[2], "cpu").named("alpha", "m")
    demand(told(found) == told(start.records), "another baseline is taken for the stored one")
    return ACCEPTED


@kind("baseline-signed", baseline_start)
def _baseline_signed(start: BaselineStart, chance: random.Random) -> str:
    document = changed_json(chance, start.document)
    if chance.random() < 0.7:  # of the cases themselves
        document = {**start.document, "cases": changed_json(chance, start.document["cases"])}
    _put(start, as_bytes(chance, _resigned(document)))
    return _works(start)


@kind("evidence", baseline_start)
def _evidence(start: BaselineStart, chance: random.Random) -> str:
    blob = changed_bytes(chance, start.blob, head=4000)
    _put(start, start.raw, blob)
    read_baseline(start.path)
    demand(blob == start.blob, "changed evidence is taken")
    return ACCEPTED


@kind("evidence-signed", baseline_start)
def _evidence_signed(start: BaselineStart, chance: random.Random) -> str:
    blob = (
        changed_bytes(chance, start.blob, 6000)
        if chance.random() < 0.5
        else save(changed_arrays(chance, arrays_of(start.blob)))
    )
    document = json.loads(start.raw)
    document["evidence"]["sha256"] = hashlib.sha256(blob).hexdigest()
    _put(start, json.dumps(document).encode(), blob)
    return _works(start)


def changed_arrays(chance: random.Random, arrays: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """One or two arrays gone, renamed, of another type, shape or value."""
    for _ in range(chance.choice((1, 1, 2))):
        if not arrays:
            break
        name = chance.choice(list(arrays))
        array = arrays[name]
        made = chance.randrange(9)
        if made == 0:
            del arrays[name]
        elif made == 1:
            arrays[name + chance.choice(("x", ".y", "//z", "\0"))] = arrays.pop(name)
        elif made == 2:
            other = chance.choice(
                (
                    torch.float64,
                    torch.float32,
                    torch.float16,
                    torch.bfloat16,
                    torch.int64,
                    torch.int8,
                    torch.uint8,
                    torch.bool,
                )
            )
            arrays[name] = array.to(other)
        elif made == 3 and array.numel():
            arrays[name] = array.flatten()[: chance.randrange(array.numel() + 1)].clone()
        elif made == 4:
            arrays[name] = (
                array[None].clone() if chance.random() < 0.5 else torch.cat([array.flatten(), array.flatten()])
            )
        elif made == 5:
            arrays[name] = arrays[chance.choice(list(arrays))].clone()
        elif array.numel():
            value = chance.choice((math.nan, math.inf, -math.inf, 0.0, -1.0, 1e30, -1e-9, 1e-40, 2.0**31))
            array = array.clone()
            with contextlib.suppress(RuntimeError, OverflowError, ValueError):
                array.view(-1)[chance.randrange(array.numel()) :: chance.choice((1, 3, 10**6))] = value
            arrays[name] = array
    return arrays


# --- Calibrations


@dataclass(frozen=True)
class CalibrationStart:
    folder: Path
    made: Calibration
    about: dict[str, Any]
    blob: bytes
    config: ModelConfig
    file: Path
    file_raw: bytes
    content: Any


def calibration_of(config: ModelConfig, symmetric: bool = True) -> Calibration:
    """Some scales for every site, one of them float."""
    scales, granularities = {}, {}
    for n, (name, site) in enumerate(sites_of(config).items()):
        granularity = site.allowed[n % len(site.allowed)] if not symmetric else "tensor"
        shape = scale_shape(granularity, name, config)
        step = torch.full(shape, 0.5 + n)
        scales[name] = step if symmetric else torch.stack([step, torch.full(shape, float(n % 5 - 2))])
        granularities[name] = granularity
    if not symmetric:
        scales["lm_head:input"], granularities["lm_head:input"] = torch.zeros(0), UNQUANTIZED
    return Calibration(scales, granularities, dict.fromkeys(scales, "running_max"), 8, "m", "d", symmetric=symmetric)


def calibration_start(config: ModelConfig, symmetric: bool, folder: Path) -> CalibrationStart:
    made, file = calibration_of(config, symmetric), folder / "q.pt"
    made.save(folder / "c")
    quamba_file.write(file, calibration_of(config), "code")
    about = json.loads((folder / "c" / "calibration.json").read_text())
    blob = (folder / "c" / "scales.safetensors").read_bytes()
    return CalibrationStart(
        folder / "c", made, about, blob, config, file, file.read_bytes(), torch.load(file, weights_only=True)
    )


def _sound(found: Calibration, config: ModelConfig) -> None:
    """Steps are such that integers times them are numbers; the model's, or refused where they meet it."""
    for site, scale in found.scales.items():
        steps = scale if found.symmetric or not scale.numel() else scale[0]
        demand(
            steps.dtype == torch.float32 and steps.isfinite().all() and (steps > 0).all(),
            f"the scale of {site}: {scale}",
        )
    try:
        check_calibration(found, config)
    except BadArtefact:
        return
    for site, grid in site_grids(found, config, found.act_bits if found.act_bits <= 8 else 8, found.symmetric).items():
        one = torch.ones(1, *shape_at(site, config))
        demand(grid.dequantize(grid.quantize(one)).shape == one.shape, f"the grid of {site} does not fit its tensor")


def _calibration(start: CalibrationStart, chance: random.Random) -> str:
    raw, blob, about = json.dumps(start.about).encode(), start.blob, start.about
    made = chance.randrange(4)
    if made == 0:
        blob = changed_bytes(chance, blob, 1500)
    elif made == 1:
        raw = changed_bytes(chance, raw)
    elif made == 2:
        raw = as_bytes(chance, changed_json(chance, about))
    else:
        arrays = arrays_of(blob)
        site = chance.choice(list(about["sites"]))
        arrays[site] = torch.full_like(arrays[site], chance.choice((math.nan, math.inf, 0.0, -1.0, 1e-9, 3.0)))
        blob = save(changed_arrays(chance, arrays) if chance.random() < 0.5 else arrays)
    start.folder.joinpath("calibration.json").write_bytes(raw)
    start.folder.joinpath("scales.safetensors").write_bytes(blob)
    found = Calibration.load(start.folder)
    demand(found.digest == start.made.digest, "other scales are taken for the stored ones")
    _sound(found, start.config)
    return ACCEPTED


def _calibration_signed(start: CalibrationStart, chance: random.Random) -> str:
    about, arrays = (
        changed_json(chance, start.about) if chance.random() < 0.5 else dict(start.about),
        arrays_of(start.blob),
    )
    if chance.random() < 0.8:
        arrays = changed_arrays(chance, arrays)
    with contextlib.suppress(Exception):
        sites = about["sites"]
        about["scales_digest"] = replace(
            start.made,
            scales={s: arrays[s] for s in sites},
            granularities={s: sites[s]["granularity"] for s in sites},
            act_bits=about["act_bits"],
            symmetric=about["symmetric"],
        ).digest
    start.folder.joinpath("calibration.json").write_bytes(as_bytes(chance, about))
    start.folder.joinpath("scales.safetensors").write_bytes(save(arrays))
    found = Calibration.load(start.folder)
    _sound(found, start.config)
    out = start.folder.parent / "out.pt"
    with contextlib.suppress(QuambenchError):
        quamba_file.write(out, found, "code")
    found.save(start.folder)
    demand(Calibration.load(start.folder).digest == found.digest, "what is saved of it reads back otherwise")
    return ACCEPTED


kind("calibration", partial(calibration_start, MAMBA2, False))(_calibration)
kind("calibration-signed", partial(calibration_start, MAMBA2, False))(_calibration_signed)
kind("calibration-mamba", partial(calibration_start, MAMBA, True))(_calibration_signed)


# --- Quantized models


@dataclass(frozen=True)
class QuantizedStart:
    folder: Path
    about: dict[str, Any]
    blob: bytes
    logits: Tensor


def quantized_start(config: ModelConfig, folder: Path) -> QuantizedStart:
    torch.manual_seed(0)
    model = quantize_model(prepare(build(config).requires_grad_(False)), calibration_of(config), Precision())
    StoredModel(model, calibration_of(config), "id").save(folder / "m")
    about = json.loads((folder / "m" / "quantized.json").read_text())
    blob = (folder / "m" / about["arrays"]["file"]).read_bytes()
    return QuantizedStart(folder / "m", about, blob, model(torch.tensor([[1, 2, 3]]))[0])


def _quantized(start: QuantizedStart, chance: random.Random) -> str:
    """Whatever is taken answers with numbers; what was not signed anew is what was saved."""
    blob, about, signed = start.blob, json.loads(json.dumps(start.about)), chance.random() < 0.8
    if chance.random() < 0.5:
        about = changed_json(chance, about)
    elif not signed:
        blob = changed_bytes(chance, blob, 1500)
    else:
        arrays = arrays_of(blob)
        name = chance.choice(list(arrays))
        arrays[name] = arrays[name].float() * chance.choice((math.nan, math.inf, 0.0, -1.0, 1e-9, 3.0))
        blob = save(changed_arrays(chance, arrays) if chance.random() < 0.5 else arrays)
    with contextlib.suppress(Exception):
        if signed:
            about["arrays"]["sha256"] = hashlib.sha256(blob).hexdigest()
    start.folder.joinpath("quantized.json").write_bytes(as_bytes(chance, about))
    start.folder.joinpath(start.about["arrays"]["file"]).write_bytes(blob)
    found = StoredModel.load(start.folder)
    logits = found.model(torch.tensor([[1, 2, 3]]))[0]
    demand(signed or about != start.about or torch.equal(logits, start.logits), "another model is taken for the stored")
    demand(logits.shape[:2] == (1, 3), "the model that is taken does not answer")
    return ACCEPTED


kind("quantized", partial(quantized_start, MAMBA2))(_quantized)
kind("quantized-mamba", partial(quantized_start, MAMBA))(_quantized)


def changed_object(chance: random.Random, thing: Any) -> Any:
    """A copy of lists, dicts and tensors with one thing in it changed."""
    if isinstance(thing, dict) and thing and chance.random() < 0.93:
        key, made = chance.choice(list(thing)), chance.randrange(20)
        rest = {k: v for k, v in thing.items() if k != key or made > 1}
        if made > 1:
            rest[key] = changed_object(chance, thing[key])
        return rest | ({"x": thing[key]} if made == 1 else {})
    if isinstance(thing, list | tuple) and thing and chance.random() < 0.93:
        at = chance.randrange(len(thing))
        return type(thing)(
            [*thing[:at], *([changed_object(chance, thing[at])] if chance.random() < 0.9 else []), *thing[at + 1 :]]
        )
    if isinstance(thing, torch.Tensor) and chance.random() < 0.8:
        return changed_arrays(chance, {"t": thing}).get("t", torch.zeros(0))
    others = (
        torch.tensor(math.nan),
        torch.tensor(0.0),
        torch.zeros(3),
        torch.zeros(0),
        torch.tensor(1 + 2j),
        torch.ones(2, 2).to_sparse(),
        torch.tensor(2),
        torch.tensor(True),
        torch.ones(1).expand(3),
        torch.ones(6)[::2],
    )
    return copy.deepcopy(chance.choice((*[x for x in NASTY if not isinstance(x, str) or "\ud800" not in x], *others)))


@kind("quamba", partial(calibration_start, MAMBA2, True))
def _quamba(start: CalibrationStart, chance: random.Random) -> str:
    checkpoint: Any = SimpleNamespace(name="m", config=start.config, digest="m")
    made = chance.randrange(3)
    if made == 0:
        raw = changed_bytes(chance, start.file_raw, 3000)
    else:
        content = changed_object(chance, start.content)
        if made == 1 and isinstance(content, dict):
            content["made_of"] = None
        buffer = io.BytesIO()
        torch.save(content, buffer)
        raw = buffer.getvalue()
    start.file.write_bytes(raw)
    found = quamba_file.read(start.file, checkpoint)
    _sound(found, start.config)
    if made != 1 and found.data_digest:  # it has made_of, which vouches for the scales
        demand(
            found.digest == calibration_of(start.config).digest,
            "other scales are taken for those that made_of describes",
        )
    return ACCEPTED


# --- Checkpoints and tokenizers


@dataclass(frozen=True)
class CheckpointStart:
    folder: Path
    files: Mapping[str, bytes]
    config: dict[str, Any]
    theirs: dict[str, Any]
    index: dict[str, Any]
    tokenizer: dict[str, Any]


def tiny(config: ModelConfig) -> LanguageModel:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return build(config)


def in_one_storage(arrays: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Views of one vector."""
    ends = list(accumulate((a.numel() for a in arrays.values()), initial=0))
    whole = torch.cat([a.flatten() for a in arrays.values()])
    return {name: whole[at : at + a.numel()].view(a.shape) for at, (name, a) in zip(ends, arrays.items(), strict=False)}


def without_address(raw: bytes) -> bytes:
    """What torch wrote before 1.6, which names the one storage by where it stood in memory: no two runs the same."""
    name = b"0" * 15
    named = b"X" + len(name).to_bytes(4, "little") + name
    return re.sub(rb"X[\x01-\x14]\0\0\0\d{9,20}(?=\D)", lambda _: named, raw)


def checkpoint_start(config: ModelConfig, folder: Path) -> CheckpointStart:
    model = tiny(config)
    model.eval().requires_grad_(False)(
        torch.tensor([[1, 2, 3]])
    )  # what is built for this machine is built now, and not by a mutant
    at = folder / "model"
    save_checkpoint(at, model, torch.float32)
    Tokenizer.train([TEXT * 3], 300).save(at / "tokenizer.json")
    files = {file.name: file.read_bytes() for file in at.iterdir()}
    arrays = arrays_of(files["model.safetensors"])
    names = sorted(arrays)
    parts = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file, own in parts.items():
        files[file] = save({name: arrays[name] for name in own})
    index = {"metadata": {}, "weight_map": {name: file for file, own in parts.items() for name in own}}
    buffer = io.BytesIO()
    torch.save(arrays, buffer)
    files["pytorch_model.bin"] = buffer.getvalue()
    buffer = io.BytesIO()
    torch.save(in_one_storage(arrays), buffer, _use_new_zipfile_serialization=False)
    files["old.bin"] = without_address(buffer.getvalue())
    files["recall.json"] = b'{"associative": 8, "induction": 32, "selective_copy": 4}'
    theirs = {
        "model_type": config.architecture,
        "hidden_size": 16,
        "num_hidden_layers": config.n_layers,
        "vocab_size": 300,
        "state_size": config.d_state,
        "expand": 2,
        "conv_kernel": 4,
        "tie_word_embeddings": True,
        "rms_norm": True,
    }
    if config.architecture == "mamba2":
        theirs |= {"head_dim": 8, "n_groups": 2, "num_heads": 4, "chunk_size": 256, "time_step_limit": [0.0, math.inf]}
    else:
        theirs |= {"time_step_rank": 2, "use_bias": False, "use_conv_bias": True}
    shutil.rmtree(at)
    return CheckpointStart(
        at, files, json.loads(files["config.json"]), theirs, index, json.loads(files["tokenizer.json"])
    )


def _lay(start: CheckpointStart, **files: bytes) -> None:
    """The folder with these files and nothing else; a double underscore stands for a point."""
    start.folder.mkdir(exist_ok=True)
    names = {name.replace("__", "."): raw for name, raw in files.items()}
    for file in start.folder.iterdir():
        if file.name not in names:
            file.unlink()
    for name, raw in names.items():
        (start.folder / name).write_bytes(raw)


def _checkpoint(start: CheckpointStart, chance: random.Random) -> str:
    f = start.files
    files = {
        "config__json": f["config.json"],
        "tokenizer__json": f["tokenizer.json"],
        "model__safetensors": f["model.safetensors"],
    }
    made = chance.randrange(6)
    if made <= 1:
        files["config__json"] = as_bytes(chance, changed_json(chance, chance.choice((start.config, start.theirs))))
    elif made == 2:
        files["model__safetensors"] = changed_bytes(chance, f["model.safetensors"], 3000)
    elif made == 3:
        del files["model__safetensors"]
        files |= {"a__safetensors": f["a.safetensors"], "b__safetensors": f["b.safetensors"]}
        files["model__safetensors__index__json"] = as_bytes(chance, changed_json(chance, start.index))
    elif made == 4:
        del files["model__safetensors"]
        files["pytorch_model__bin"] = changed_bytes(chance, f[chance.choice(("pytorch_model.bin", "old.bin"))], 3000)
    else:
        files["recall__json"] = as_bytes(chance, changed_json(chance, json.loads(f["recall.json"])))
    _lay(start, **files)
    found = load_checkpoint(str(start.folder))
    for name, parameter in found.model.named_parameters():
        demand(parameter.isfinite().all(), f"{name} is not finite")
    for task, rung in found.recall.items():
        demand(type(rung) is int, f"the rung of {task} is {rung!r}")
    if chance.random() < 0.2:
        found.model(torch.tensor([[1, 2, 3]]))
    return ACCEPTED


kind("checkpoint", partial(checkpoint_start, MAMBA))(_checkpoint)
kind("checkpoint-mamba2", partial(checkpoint_start, MAMBA2))(_checkpoint)


@kind("tokenizer", partial(checkpoint_start, MAMBA))
def _tokenizer(start: CheckpointStart, chance: random.Random) -> str:
    raw = start.files["tokenizer.json"]
    made = (
        changed_bytes(chance, raw, 1000)
        if chance.random() < 0.3
        else as_bytes(chance, changed_json(chance, start.tokenizer))
    )
    _lay(start, tokenizer__json=made)
    found = Tokenizer.load(start.folder / "tokenizer.json")
    demand(isinstance(found.encode(TEXT), list), "no ids")
    return ACCEPTED


# --- Corpora


def corpus_start(folder: Path) -> SimpleNamespace:
    texts = [f"{TEXT}{n} " * (n + 1) for n in range(5)]
    lines = [{"text": text, "id": n, "about": {"a": [n]}} for n, text in enumerate(texts)]
    (folder / "texts").mkdir()
    return SimpleNamespace(folder=folder / "texts", file=folder / "texts.jsonl", texts=texts, lines=lines)


@kind("corpus", corpus_start)
def _corpus(start: SimpleNamespace, chance: random.Random) -> str:
    if chance.random() < 0.3:
        for n, text in enumerate(start.texts):
            raw = changed_bytes(chance, text.encode()) if chance.random() < 0.5 else text.encode()
            (start.folder / f"{n}.txt").write_bytes(raw)
        found = load_corpus(start.folder)
    else:
        made = [
            as_bytes(chance, changed_json(chance, line, 1)) if chance.random() < 0.4 else json.dumps(line).encode()
            for line in start.lines
        ]
        raw = b"\n".join(made)
        start.file.write_bytes(changed_bytes(chance, raw) if chance.random() < 0.3 else raw)
        found = load_corpus(start.file)
    names = {d.digest for part in found.parts.values() for d in part}
    demand(len(names) == sum(map(len, found.parts.values())), "a document stands in two parts")
    demand(all(d.text.encode() for part in found.parts.values() for d in part), "a document without a text")
    demand(found.digest, "no digest")
    return ACCEPTED


# --- Specs


def spec_start(folder: Path) -> SimpleNamespace:
    (folder / "mix.json").write_text('["W8A8", "W4A8"]')
    os.mkfifo(folder / "pipe.json")
    return SimpleNamespace(folder=folder)


def _same_again(case: Case) -> None:
    text = case.id.removeprefix("m/")
    if "layers=" in text or "[mix.json]" in text:  # such an id counts a mix's layers, and says so when it is read
        return
    demand(Case.parse("m", text) == case, f"its own id is read as another case: {text[:200]}")


@kind("spec", spec_start)
def _spec(start: SimpleNamespace, chance: random.Random) -> str:
    text = changed_spec(chance)
    made = chance.randrange(8)
    if made < 4:
        case = Case.parse("m", text)
        _same_again(case)
        protocol_hash(case.settings())
        check_fit(case)
        return ACCEPTED
    read: Callable[[str], Any] = (ObserverSpec, PolicySpec, GroupingSpec, RefinementSpec)[made - 4].parse
    if chance.random() < 0.3:
        read = chance.choice((Precision.parse, WeightRecipe.parse))
    first = text if chance.random() < 0.5 else text.partition("/")[0]
    found = read(first)
    demand(str(getattr(found, "complete", found)), "no name")
    return ACCEPTED


@kind("mix", spec_start)
def _mix(start: SimpleNamespace, chance: random.Random) -> str:
    document = chance.choice((["W8A8", "W4A8"] * 3, {"layers": ["W8A8", "W4A8"], "embedding": "W8", "lm_head": "W8A8"}))
    raw = as_bytes(chance, changed_json(chance, document))
    if chance.random() < 0.2:
        raw = changed_bytes(chance, raw)
    (start.folder / "mix.json").write_bytes(raw)
    found = Precision.parse("mix.json")
    demand(0 < len(found.layers) <= 10_000, "a mix of no length")
    demand(
        all(b.weights in (*range(2, 9), 16) and b.acts in (*range(2, 9), 16) for b in found.everywhere), "no such bits"
    )
    return ACCEPTED


# --- Probes and latencies


def probes_start(folder: Path) -> SimpleNamespace:
    answers = {"a/b": {"q": [1, 2], "scale": [0.5, 2.0], "said": ["a", "b"]}, "c": {"x": [1.5, None]}}
    document = {"schema": 1, "probes": {**answers, "c": {"x": [1.5, 2.0]}}}
    (folder / "streams.safetensors").write_bytes(save({"x": torch.ones(3), "y": torch.arange(4)}))
    return SimpleNamespace(
        file=folder / "expected.json",
        document=document,
        streams=folder / "streams.safetensors",
        folder=folder,
        blob=(folder / "streams.safetensors").read_bytes(),
    )


@kind("probes", probes_start)
def _probes(start: SimpleNamespace, chance: random.Random) -> str:
    if chance.random() < 0.2:
        start.streams.write_bytes(changed_bytes(chance, start.blob, 200))
        demand(isinstance(probes._questions(start.streams), dict), "no questions")
        return ACCEPTED
    raw = as_bytes(chance, changed_json(chance, start.document))
    start.file.write_bytes(changed_bytes(chance, raw) if chance.random() < 0.2 else raw)
    for answers in probes._read(start.file).values():
        for stored in answers.values():
            numbers = all(isinstance(x, int | float) and not isinstance(x, bool) for x in stored)
            demand(numbers or all(isinstance(x, str) for x in stored), f"an answer of {stored!r}")
        said = probes._ask(probes.Probe("p", lambda _: dict(probes._ONE)), {}, answers).status
        same = {k: list(v) for k, v in answers.items()} == start.document["probes"]["a/b"]
        demand(said == "same" or not same, "the stored answer is not the same")
    return ACCEPTED


def latency_start(folder: Path) -> SimpleNamespace:
    store = LatencyStore(folder)
    store.write({"a": Recorded(1.5, 0.01), "b": Recorded(0.2, 0.0)}, {"commit": "x"})
    return SimpleNamespace(store=store, document=json.loads(store.path.read_text()))


@kind("latency", latency_start)
def _latency(start: SimpleNamespace, chance: random.Random) -> str:
    raw = as_bytes(chance, changed_json(chance, start.document))
    start.store.path.write_bytes(changed_bytes(chance, raw) if chance.random() < 0.2 else raw)
    now = Ratio(1.0, 0.9, 1.1, 1.0, 1.0, 5)
    for stored in start.store.read().values():
        demand(0 < stored.ratio < math.inf and 0 <= stored.spread < math.inf, f"a row of {stored}")
        slower(now, stored), faster(now, stored)
    return ACCEPTED


# --- Names and things that are no files


def places_start(folder: Path) -> SimpleNamespace:
    os.mkfifo(folder / "pipe")
    (folder / "folder.json").mkdir()
    (folder / "loop").symlink_to("loop")
    (folder / "nowhere").symlink_to("is-not-there")
    (folder / "empty").write_bytes(b"")
    with socket.socket(socket.AF_UNIX) as one:
        here = Path.cwd()
        os.chdir(folder)
        one.bind("socket")
        os.chdir(here)
    with (folder / "huge").open("wb") as file:
        file.truncate(1 << 40)
    return SimpleNamespace(folder=folder)


PLACES = (
    "pipe",
    "folder.json",
    "loop",
    "nowhere",
    "empty",
    "socket",
    "huge",
    "x" * 300,
    "a\0b",
    "x/" * 3000,
    "/dev/zero",
    "/dev/tty",
    "loop/x",
    "empty/x",
    "\ud800",
    "",
    ".",
    "..",
    "/",
    "~nobody/x",
    "a\nb",
)


@kind("places", places_start)
def _places(start: SimpleNamespace, chance: random.Random) -> str:
    """Every reader, of what is no file: none waits, none fills the memory, none takes it."""
    name = chance.choice(PLACES)
    if chance.random() < 0.2:
        name = changed_text(chance, name)
    if os.path.normpath(name).startswith(("/", "..")) and not os.path.normpath(name).startswith("/dev/"):
        return "left out"  # a folder of the whole machine is a corpus, and takes as long as it takes
    link = start.folder / f"l{chance.randrange(10**9)}"
    made = link / "x"
    made.parent.mkdir()
    inner = chance.choice(
        (
            "calibration.json",
            "scales.safetensors",
            "quantized.json",
            "config.json",
            "tokenizer.json",
            "model.safetensors",
            "pytorch_model.bin",
            "model.safetensors.index.json",
            "recall.json",
            "a.txt",
            "m.json",
        )
    )
    with contextlib.suppress(OSError, ValueError, UnicodeEncodeError):
        (link / inner).symlink_to(start.folder / name if not name.startswith("/") else name)
    checkpoint: Any = SimpleNamespace(name="m", config=MAMBA, digest="m")
    path = start.folder / name
    readers: tuple[Callable[[], Any], ...] = (
        lambda: read_baseline(path),
        lambda: Calibration.load(path),
        lambda: quamba_file.read(path, checkpoint),
        lambda: load_corpus(path),
        lambda: load_corpus(path.with_name("p.jsonl") if not name else Path(f"{path}.jsonl")),
        lambda: load_checkpoint(str(path)),
        lambda: Precision.parse(f"mix[{name}.json]"),
        lambda: probes._read(path),
        lambda: probes._questions(path),
        lambda: Tokenizer.load(path),
        lambda: BaselineStore(start.folder, "c").find("s", name),
        lambda: Calibration.load(link),
        lambda: StoredModel.load(path),
        lambda: StoredModel.load(link),
        lambda: load_checkpoint(str(link)),
        lambda: load_corpus(link),
        lambda: read_baseline(link / inner),
        lambda: BaselineStore(start.folder, name or "c").named(name, "m"),
    )
    try:
        found = chance.choice(readers)()
    finally:
        shutil.rmtree(link, ignore_errors=True)
    demand(not found, f"{name[:50]!r} is taken")
    return REFUSED


# --- The command line


def argv_start(folder: Path) -> SimpleNamespace:
    places_start(folder)
    model = checkpoint_start(MAMBA, folder)
    f = model.files
    _lay(
        model,
        config__json=f["config.json"],
        tokenizer__json=f["tokenizer.json"],
        model__safetensors=f["model.safetensors"],
    )
    digest = load_checkpoint(str(model.folder)).digest
    made = replace(calibration_of(MAMBA), model_digest=digest)
    made.save(folder / "scales")
    quamba_file.write(folder / "q.pt", made, "code")
    baseline_start(folder)
    (folder / "mix.json").write_text('["W8A8"]')
    texts = folder / "corpus"
    texts.mkdir()
    for n in range(5):
        (texts / f"{n}.txt").write_text(f"{TEXT}{n} " * 30)
    return SimpleNamespace(folder=folder, before=entries(folder))


FILES = (
    "scales",
    "q.pt",
    "b",
    "b/alpha/cpu/m.json",
    "corpus",
    "mix.json",
    "model",
    "model/config.json",
    "nothing",
    "mod\x1b[31mel",
    *PLACES[:-9],
    "x" * 300,
    "out",
)
LISTS = (
    "models",
    "observers",
    "policies",
    "groupings",
    "sites",
    "metrics",
    "tasks",
    "faults",
    "refinements",
    "kernels",
    "",
)


def arguments(chance: random.Random) -> list[str]:
    """A command line that is nearly right; none that measures for long, none that leaves the folder."""
    file = partial(chance.choice, FILES)
    number = partial(chance.choice, (*NUMBERS, "2", "4", "8", "16"))
    spec = chance.choice(WORDS) if chance.random() < 0.5 else changed_spec(chance)
    out = chance.choice(("out", "out/x", "out.pt", "out\x1b[31m", file()))
    made: list[str] = chance.choice(
        (
            ["list", chance.choice(LISTS)],
            ["report", file(), "--format", chance.choice(("terminal", "md", "json", "x"))],
            [
                "export",
                chance.choice(("scales", file())),
                "--format",
                "quamba",
                "--out",
                out,
                *chance.choice(([], ["--force"])),
            ],
            [
                "import",
                chance.choice(("q.pt", file())),
                "--format",
                "quamba",
                "--model",
                chance.choice(("model", file())),
                "--out",
                out,
            ],
            [
                "calibrate",
                chance.choice(("model", file())),
                "--observer",
                spec,
                "--corpus",
                chance.choice(("corpus", file())),
                "--windows",
                chance.choice(("2", number())),
                "--length",
                chance.choice(("8", number())),
                "--out",
                out,
            ],
            [
                "calibrate",
                "model",
                "--corpus",
                "corpus",
                "--windows",
                "2",
                "--length",
                "8",
                "--policy",
                spec.partition("/")[0],
                "--grouping",
                chance.choice((*WORDS, number())),
            ],
            ["eval", chance.choice((file(), "nowhere")), "--observer", spec, "--corpus", file()],
            ["eval", "model", "--corpus", chance.choice(("empty", "nothing", "pipe")), "--calibration", file()],
            ["init", chance.choice(("new", file())), "--observer", spec],
            ["init", "new", "--grouping", spec, "--calibration", changed_spec(chance)],
            ["sensitivity", chance.choice(("nowhere", "empty", "x" * 300)), "--observer", spec],
            ["zoo", chance.choice(("x", "", "--help"))],
            ["selftest", "--fault", changed_text(chance, "no such fault")],
            [chance.choice(("", "x", "--help", "-h", "--version", "evaluate", "\0")), file()],
        )
    )
    if chance.random() < 0.3:
        at = chance.randrange(len(made))
        if made[at] not in ("selftest", "zoo", "claims", "bench", "compare", "sensitivity", "eval"):
            made[at] = changed_text(chance, made[at])
    if chance.random() < 0.1:
        del made[chance.randrange(1, len(made))]
    return [_in_the_folder(word) for word in made]


def _in_the_folder(word: str) -> str:
    """A path that leads elsewhere, led back; what is no file lies in /dev alone."""
    return word if word in PLACES and word.startswith("/dev/") else word.replace("..", ".").lstrip("/")


@contextlib.contextmanager
def captured() -> Iterator[tuple[io.StringIO, io.StringIO]]:
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        yield out, err


SLOW = ("claims", "bench", "compare", "selftest", "eval", "sensitivity", "zoo")


def _slow(words: list[str]) -> bool:
    """Whether what was left out of a command line has made it one that measures for minutes."""
    if not words or words[0] not in SLOW:
        return False
    if words[0] == "selftest":
        return "--fault" not in words or words.index("--fault") == len(words) - 1
    if words[0] in ("eval", "sensitivity"):
        return "model" in words[1:2] and ("--corpus" not in words or words[-1] == "--corpus")
    return words[0] != "zoo"


def reads_back(words: list[str], folder: Path) -> None:
    """What a command wrote when it says that all is well. raises WrongAcceptance where its twin refuses it"""
    named = [word for flag, word in pairwise(words) if flag == "--out"]
    if not named or words[0] not in ("calibrate", "import", "export") or {"-h", "--help"} & {*words}:
        return
    out = folder / named[-1]
    try:
        if words[0] == "export":
            digest = Calibration.load(folder / words[1]).model_digest
            checkpoint: Any = SimpleNamespace(name="m", config=MAMBA, digest=digest)
            _sound(quamba_file.read(out, checkpoint), MAMBA)
        else:
            _sound(Calibration.load(out), MAMBA)
    except QuambenchError as error:
        raise WrongAcceptance(f"{words} wrote what cannot be read: {error}") from None


@kind("argv", argv_start)
def _argv(start: SimpleNamespace, chance: random.Random) -> str:
    """In this process, with what it says captured: exit code 0, 1 or 2, and an error is one line."""
    words = arguments(chance)
    if _slow(words):
        return "left out"
    try:
        with captured() as (_, err):
            try:
                code = main(words)
            except SystemExit as stopped:  # argparse's own
                demand(stopped.code in (0, 2), f"exit code {stopped.code!r} of {words}")
                return ACCEPTED if stopped.code == 0 else REFUSED
        demand(code in (0, 1, 2), f"exit code {code!r} of {words}")
        said = err.getvalue()
        demand(code != 2 or said.startswith("quambench: "), f"{words} says {said[:200]!r}")
        if code == 0:
            reads_back(words, start.folder)
        return ACCEPTED if code == 0 else REFUSED
    finally:
        restore(start.folder, start.before)
