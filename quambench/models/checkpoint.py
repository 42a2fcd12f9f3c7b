"""One loader for all checkpoints: a bundled name, a local folder, or a Hugging Face hub name.

A folder holds config.json, tokenizer.json and weights, in the layout of state-spaces or of
transformers, which differ in config.json and in one tensor's name. Weights are read by safetensors
or by torch.load(weights_only=True), so that no checkpoint can run code.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from quambench.data import recall
from quambench.data.tokenizer import Tokenizer
from quambench.errors import BadCheckpoint, MissingExtra, NonFinite, UnknownName
from quambench.models import LanguageModel, ModelConfig, build
from quambench.models.backbone import Mixer

RECALL_FILE = "recall.json"
WEIGHT_FILES = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin")  # the first found is read

_EMBEDDING, _HEAD = "backbone.embedding.weight", "lm_head.weight"
_EMBEDDINGS = "backbone.embeddings.weight"  # what transformers calls it
_NO_WEIGHTS = ("rotary_emb.inv_freq", "position_ids")  # tables some exporters add; no Mamba reads them
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_NEOX = "EleutherAI/gpt-neox-20b"  # whose tokenizer state-spaces' models use; their own folders carry none

Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class Checkpoint:
    """A float model as published, with its tokenizer.

    digest is a sha256 over the config and every weight as stored; it does not depend on the layout,
    and any changed bit of any weight changes it.
    """

    name: str  # a bundled name, or the last part of the folder or hub name
    config: ModelConfig
    model: LanguageModel  # float32, in evaluation mode, without gradients
    tokenizer: Tokenizer
    digest: str
    # A recall model: task -> the rung at which it is scored (recall.json). Empty for prose.
    recall: Mapping[str, int] = field(default_factory=dict)


def bundled_names(language: str = "") -> tuple[str, ...]:
    """Models that come with quambench; those of one language, "prose" or "recall", where it is given."""
    names = sorted(config.parent.name for config in _zoo().glob("*/config.json"))
    spoken = {True: "recall", False: "prose"}
    return tuple(n for n in names if not language or spoken[(_zoo() / n / RECALL_FILE).is_file()] == language)


def load_checkpoint(name_or_path: str) -> Checkpoint:
    """A bundled model, else a local folder, else a model of the Hugging Face hub ("org/name").

    raises UnknownName, BadCheckpoint, NonFinite, or MissingExtra when the hub's client is missing
    """
    folder = Path(name_or_path).expanduser()
    if name_or_path in bundled_names():
        folder = _zoo() / name_or_path
    elif not name_or_path or not folder.is_dir():
        if not _HUB_NAME.fullmatch(name_or_path):
            raise UnknownName("model", name_or_path, bundled_names())
        return _load(name_or_path.rpartition("/")[2], *_fetch(name_or_path))
    return _load(folder.resolve().name, folder, folder / "tokenizer.json")


def save_checkpoint(folder: Path, model: LanguageModel, dtype: torch.dtype = torch.float16) -> None:
    """Write config.json and model.safetensors in state-spaces' layout; each file appears whole or not at all.

    raises NonFinite when a weight overflows `dtype`, BadCheckpoint when `model` is no longer what
    its config says (prepared for quantization: rotated and untied)
    """
    config = model.config
    tensors = {name: t.detach().to("cpu", dtype, copy=True).contiguous() for name, t in model.state_dict().items()}
    for name, tensor in tensors.items():
        _refuse_non_finite(f"{folder} as {dtype}", name, tensor)
    rotated = any(isinstance(m, Mixer) and not isinstance(m.out_rotation, nn.Identity) for m in model.modules())
    if rotated or (config.tie_embeddings and not torch.equal(tensors.pop(_HEAD), tensors[_EMBEDDING])):
        raise BadCheckpoint("a model prepared for quantization cannot be saved as a float checkpoint")
    folder.mkdir(parents=True, exist_ok=True)
    with _replacing(folder / "model.safetensors") as part:
        save_file(tensors, part, metadata={"format": "pt"})  # transformers refuses a file without it
    with _replacing(folder / "config.json") as part:
        part.write_text(json.dumps(config.to_json(), indent=2) + "\n", encoding="utf-8")


def _zoo() -> Path:
    return Path(str(resources.files("quambench.models.zoo")))


def _load(name: str, folder: Path, tokenizer_file: Path) -> Checkpoint:
    config = _read_config(folder / "config.json")
    tokenizer = Tokenizer.load(tokenizer_file)
    if tokenizer.vocab_size > config.vocab_size:
        raise BadCheckpoint(
            f"{tokenizer_file} has {tokenizer.vocab_size} tokens, the embedding only {config.vocab_size} rows"
        )
    source, stored = _read_weights(folder)
    model, weights = _assemble(config, source, stored)
    return Checkpoint(name, config, model, tokenizer, _digest(config, weights), _read_recall(folder / RECALL_FILE))


def _read_recall(path: Path) -> dict[str, int]:
    if not path.is_file():
        return {}
    rungs = _read_json(path)
    if set(rungs) != set(recall.LADDERS):
        raise BadCheckpoint(f"{path} must give a rung to each of {', '.join(recall.LADDERS)} (got {_listed(rungs)})")
    for task, rung in rungs.items():
        if rung not in recall.LADDERS[task]:
            raise BadCheckpoint(f"{path}: {task} must be one of {_listed(recall.LADDERS[task])} (got {rung!r})")
    return rungs


def _listed(names: Iterable[object]) -> str:
    return ", ".join(map(str, names)) or "nothing"


def _read_json(path: Path) -> dict[str, Any]:
    try:
        raw = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise BadCheckpoint(f"{path.parent} has no {path.name}") from None
    except (OSError, ValueError, RecursionError) as error:
        raise BadCheckpoint(f"{path} is not readable JSON: {_one_line(error)}") from None
    if not isinstance(raw, dict):
        raise BadCheckpoint(f"{path} must hold a JSON object (got {type(raw).__name__})")
    return raw


def _read_config(path: Path) -> ModelConfig:
    try:
        return ModelConfig.from_json(_read_json(path))
    except BadCheckpoint as error:
        message = str(error)
        raise BadCheckpoint(message if str(path.parent) in message else f"{path}: {message}") from None


def _read_weights(folder: Path) -> tuple[Path, Tensors]:
    """The weight file found, and its tensors under the names and in the precision they are stored in."""
    source = next((folder / name for name in WEIGHT_FILES if (folder / name).is_file()), None)
    if source is None:
        raise BadCheckpoint(f"{folder} has no weights: none of {', '.join(WEIGHT_FILES)}")
    return source, _read_shards(source) if source.suffix == ".json" else _read_tensors(source)


def _read_shards(index: Path) -> Tensors:
    files = _read_json(index).get("weight_map")
    if not isinstance(files, dict) or not all(isinstance(f, str) and Path(f).name == f for f in files.values()):
        raise BadCheckpoint(f"{index}: weight_map must map tensor names to files of the same folder")
    tensors: Tensors = {}
    for file in sorted(set(files.values())):
        shard = _read_tensors(index.parent / file)
        listed = {name for name, where in files.items() if where == file}
        if listed != set(shard):
            raise BadCheckpoint(f"{index.parent / file}: {_difference(listed, shard)}, says {index.name}")
        tensors |= shard
    return tensors


def _read_tensors(path: Path) -> Tensors:
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        tensors = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # both readers raise whatever the corrupt part happens to trip
        raise BadCheckpoint(f"{path} is not a readable weight file: {_one_line(error)}") from None
    if not isinstance(tensors, dict) or not all(isinstance(k, str) and _is_dense(t) for k, t in tensors.items()):
        raise BadCheckpoint(f"{path} must hold a dictionary of dense tensors")
    return tensors


def _is_dense(value: object) -> bool:
    return isinstance(value, Tensor) and value.layout is torch.strided and value.device.type == "cpu"


def _assemble(config: ModelConfig, source: Path, stored: Tensors) -> tuple[LanguageModel, Tensors]:
    """The model in float32, and the weights it was made of, as stored, by state-spaces' names."""
    weights = {name: t.detach() for name, t in stored.items() if not name.endswith(_NO_WEIGHTS)}
    if _EMBEDDINGS in weights and _EMBEDDING not in weights:
        weights[_EMBEDDING] = weights.pop(_EMBEDDINGS)
    layers = {name.split(".")[2] for name in weights if re.match(r"backbone\.layers\.\d+\.", name)}
    if len(layers) != config.n_layers:  # before building, so that an absurd config costs no time
        raise BadCheckpoint(f"{source} holds {len(layers)} layers, config.json says {config.n_layers}")
    try:
        with torch.device("meta"):  # shapes only: no memory, and torch's random state stays as it is
            model = build(config)
    except (RuntimeError, TypeError, OverflowError) as error:
        config_file = source.parent / "config.json"
        raise BadCheckpoint(f"{config_file} describes an impossible model: {_one_line(error)}") from None
    expected = model.state_dict()
    head = None
    if config.tie_embeddings:
        expected.pop(_HEAD)
        head = weights.pop(_HEAD, None)  # some tied files hold it, as a copy
    if set(weights) != set(expected):
        raise BadCheckpoint(f"{source}: {_difference(expected, weights)}")
    ready: Tensors = {}
    for name, tensor in weights.items():
        if tensor.shape != expected[name].shape:
            raise BadCheckpoint(
                f"{source}: {name} must have shape {tuple(expected[name].shape)} (got {tuple(tensor.shape)})"
            )
        if not tensor.is_floating_point():
            raise BadCheckpoint(f"{source}: {name} must be floating point (got {tensor.dtype})")
        # A copy always: safetensors maps the file, and the model must outlive a change to it.
        ready[name] = tensor.to(torch.float32, copy=True)
        _refuse_non_finite(str(source), name, ready[name])
    if head is not None and not torch.equal(head.to(torch.float32), ready[_EMBEDDING]):
        raise BadCheckpoint(f"{source}: {_HEAD} differs from the embedding, to which config.json ties it")
    model.load_state_dict(ready, strict=False, assign=True)  # not strict: a tied lm_head follows below
    if config.tie_embeddings:
        model.lm_head.weight = model.backbone.embedding.weight
    return model.eval().requires_grad_(False), weights


def _digest(config: ModelConfig, weights: Tensors) -> str:
    digest = hashlib.sha256(json.dumps(config.to_json(), sort_keys=True).encode())
    for name, tensor in sorted(weights.items()):
        digest.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        digest.update(tensor.flatten().contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _fetch(name: str) -> tuple[Path, Path]:
    """Folder of a hub model in the local cache, and its tokenizer file."""
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        raise MissingExtra("huggingface_hub", "hub") from None

    def download(repo: str, files: Sequence[str]) -> Path:
        return Path(snapshot_download(repo, allow_patterns=list(files)))

    try:
        folder = download(name, ["config.json", "tokenizer.json", "model*.safetensors", WEIGHT_FILES[1]])
        if not any((folder / file).is_file() for file in WEIGHT_FILES):
            folder = download(name, [WEIGHT_FILES[2]])
        tokenizer_file = folder / "tokenizer.json"
        if name.startswith("state-spaces/") and not tokenizer_file.is_file():
            tokenizer_file = download(_NEOX, [tokenizer_file.name]) / tokenizer_file.name
    except Exception as error:  # network, authentication, cache: the client has no common base for them
        raise BadCheckpoint(
            f"{name} could not be fetched from the Hugging Face hub ({_one_line(error)});"
            f" a local folder or a bundled model ({', '.join(bundled_names()) or 'none here'}) works too"
        ) from None
    return folder, tokenizer_file


def _refuse_non_finite(place: str, name: str, tensor: Tensor) -> None:
    if not tensor.isfinite().all():
        raise NonFinite(f"{place}: {name} holds NaN or infinity")


def _difference(expected: Any, found: Any) -> str:
    """ "lacks a, b and 3 more; has unexpected c", of two collections of names."""
    parts = []
    for what, names in (("lacks", set(expected) - set(found)), ("has unexpected", set(found) - set(expected))):
        first = sorted(names)[:3]
        more = f" and {len(names) - len(first)} more" if len(names) > len(first) else ""
        parts += [f"{what} {', '.join(first)}{more}"] if names else []
    return "; ".join(parts)


def _one_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


@contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    """A file beside `path` to write to, which takes its place once the block ends well."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        part.touch()
        mode = part.stat().st_mode  # what the umask gives; safetensors would leave a file for its owner alone
        yield part
        part.chmod(mode)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
