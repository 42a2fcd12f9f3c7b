"""The loader of every checkpoint: a bundled name, a local folder, or a Hugging Face hub name.

A checkpoint is config.json, tokenizer.json and weights, in the layout of state-spaces or of transformers, which differ
in config.json and in one tensor's name. Weights are read by safetensors or by torch.load(weights_only=True), so that
no checkpoint can run code, and tensor by tensor, so that little more memory is taken than the model keeps.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Collection, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from quambench_kernels.dispatch import UnavailableError, check_asked
from safetensors.torch import save_file
from torch import Tensor, nn

from quambench.core.errors import BadCheckpoint, BadParameter, MissingExtra, NonFinite, UnknownName
from quambench.core.files import locked, making, write
from quambench.data import recall
from quambench.data.tokenizer import Tokenizer
from quambench.models import LanguageModel, ModelConfig, build
from quambench.models.backbone import Mixer
from quambench.models.places import Folder, Place, Repository
from quambench.models.weights import WEIGHT_FILES, Weights, difference, one_line, open_weights, read_json

RECALL_FILE = "recall.json"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

_EMBEDDING, _HEAD = "backbone.embedding.weight", "lm_head.weight"
_EMBEDDINGS = "backbone.embeddings.weight"  # what transformers calls it
_NO_WEIGHTS = ("rotary_emb.inv_freq", "position_ids")  # tables some exporters add; no Mamba reads them
_WRAPPERS = ("module.", "_orig_mod.", "model.")  # what DataParallel, torch.compile and Lightning put before names
# A rate that is rounded compounds over a sequence: these stay float32 in narrower models, as in state-spaces' own.
_ALWAYS_FLOAT32 = (".A_log", ".D", ".dt_bias", ".dt_proj.bias")
# state-spaces' models carry no tokenizer: they were trained with this one, and their rows are its tokens, padded.
_NEOX, _NEOX_TOKENS, _PADDED_TO_AT_MOST = "EleutherAI/gpt-neox-20b", 50277, 128


@dataclass(frozen=True)
class Checkpoint:
    """A float model as published, with its tokenizer.

    digest is a sha256 over the config and every weight as stored; it does not depend on the layout,
    and any changed bit of any weight changes it.
    """

    name: str  # a bundled name, or the last part of the folder or hub name, with "@revision" where one was asked for
    config: ModelConfig
    model: LanguageModel  # in evaluation mode, without gradients
    tokenizer: Tokenizer
    digest: str
    # A recall model: task -> the rung at which it is scored (recall.json). Empty for prose.
    recall: Mapping[str, int] = field(default_factory=dict)
    origin: str = ""  # "bundled", "folder", or "hub org/name@commit"

    @property
    def bundled(self) -> bool:
        """Whether it came with quambench: trained with the start token before every text."""
        return self.origin == "bundled"


def bundled_names(language: str = "") -> tuple[str, ...]:
    """Return the names of the models that come with quambench; with `language`, "prose" or "recall", those alone."""
    names = sorted(config.parent.name for config in _zoo().glob("*/config.json"))
    spoken = {True: "recall", False: "prose"}
    return tuple(n for n in names if not language or spoken[(_zoo() / n / RECALL_FILE).is_file()] == language)


def recalls(name: str) -> bool:
    """Whether a model, bundled or in a folder, was trained on recall: its sequences are generated, no text is read."""
    folder = _folder(name)
    return name in bundled_names("recall") or (folder is not None and (folder / RECALL_FILE).is_file())


def load_checkpoint(name: str, *, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu") -> Checkpoint:
    """Load a bundled model, else a local folder, else a model of the Hugging Face hub, "org/name" or
    "org/name@revision".

    dtype    of the model, one of DTYPES; A_log, D and the biases of dt are float32 in any
    device   "cpu", "cuda" or "cuda:N"; tensors go there one by one
    memory   beside the model's own, a few tens of megabytes

    raises UnknownName, BadCheckpoint, NonFinite; BadParameter for a dtype or a device that is not there; MissingExtra
    when the hub's client is not installed
    """
    there = checked_device(device)
    if dtype not in DTYPES.values():
        raise BadParameter(f"dtype must be {', '.join(DTYPES)} (got {str(dtype).removeprefix('torch.')})")
    try:
        check_asked()
    except UnavailableError as error:
        raise BadParameter(str(error)) from None
    called, place = _place(name)
    try:
        _file(place, "config.json")
    except (BadCheckpoint, MissingExtra) as error:
        if isinstance(place, Folder):
            raise
        if isinstance(error, MissingExtra):
            raise error.within(f"no folder {name} is here, and a model of the Hugging Face hub is asked for") from None
        raise BadCheckpoint(f"{error}; no folder {name} is here") from None
    return _load(called, place, dtype, there)


def save_checkpoint(folder: Path, model: LanguageModel, dtype: torch.dtype = torch.float16) -> None:
    """Write config.json and model.safetensors in state-spaces' layout; each file appears whole or not at all.

    The weights come first: a folder that had no checkpoint has none until it has both.

    raises NonFinite when a weight overflows `dtype`, BadCheckpoint when `model` is no longer what
    its config says (prepared for quantization: rotated and untied)
    """
    config = model.config
    wide = {name: t.detach() for name, t in model.state_dict().items()}
    tensors = {name: t.to("cpu", dtype, copy=True).contiguous() for name, t in wide.items()}
    for name, tensor in tensors.items():
        _check_finite(str(folder), name, tensor, wide[name])
    rotated = any(isinstance(m, Mixer) and not isinstance(m.out_rotation, nn.Identity) for m in model.modules())
    if rotated or (config.tie_embeddings and not torch.equal(tensors.pop(_HEAD), tensors[_EMBEDDING])):
        raise BadCheckpoint("a model prepared for quantization cannot be saved as a float checkpoint")
    with locked(folder):
        with making(folder / "model.safetensors") as partial:
            save_file(tensors, partial, metadata={"format": "pt"})  # transformers refuses a file without it
        write(folder / "config.json", json.dumps(config.to_json(), indent=2) + "\n")


def _zoo() -> Path:
    return Path(str(resources.files("quambench.models.zoo")))


def _place(name: str) -> tuple[str, Place]:
    """Return the model's name and the place of its files."""
    if name in bundled_names():
        return name, Folder(_zoo() / name, "bundled")
    folder = _folder(name)
    if folder is not None:
        return folder.resolve().name, Folder(folder)
    repository = Repository.parse(name)
    if repository is None:
        raise _no_model(name)
    return repository.short, repository


def _no_model(name: str) -> BadCheckpoint | UnknownName:
    """Return the error for a name that names no model: a path that leads nowhere is not called a misspelt name."""
    path = Path(name)
    with suppress(RuntimeError, OSError, ValueError):
        path = path.expanduser()
        if name and path.exists():
            folder = path.parent if path.name in ("config.json", "tokenizer.json", *WEIGHT_FILES) else None
            hint = f"name the folder, {folder}" if folder else "a model is a folder with config.json and weights"
            return BadCheckpoint(f"{name} is a file, not a folder: {hint}")
    if name.startswith((".", "~")) or "/" in name or "\\" in name:
        return BadCheckpoint(f"no folder {name} is here; a model is a folder, a bundled name or a hub name, org/name")
    return UnknownName("model", name, bundled_names())


def _folder(name: str) -> Path | None:
    """Return the folder that `name` names, else None. An impossible path (too long, the home of an unknown user) is
    None too.
    """
    try:
        folder = Path(name).expanduser()
        return folder if name and folder.is_dir() else None
    except (RuntimeError, OSError, ValueError):
        return None


def checked_device(name: str | torch.device) -> torch.device:
    """Return the device, after a check that it is there. raises BadParameter"""
    try:
        device = torch.device(name)
    except RuntimeError:
        device = torch.device("meta")  # a stand-in that the next check refuses
    if device.type not in ("cpu", "cuda"):
        raise BadParameter(f"device must be cpu, cuda or cuda:N (got {str(name)!r})")
    if device.type == "cuda":
        if not torch.cuda.is_available():
            why = "finds none" if torch.version.cuda else "is built without CUDA"
            raise BadParameter(f"there is no device {name}: torch {torch.__version__} {why}; use cpu")
        last = torch.cuda.device_count() - 1
        if device.index is not None and device.index > last:
            raise BadParameter(f"there is no device {name}: the last one is cuda:{last}")
    return device


def _load(name: str, place: Place, dtype: torch.dtype, device: torch.device) -> Checkpoint:
    raw, config = _read_config(_file(place, "config.json"))
    tokenizer_file = _tokenizer_file(place, raw, config)
    tokenizer = Tokenizer.load(tokenizer_file)
    if tokenizer.vocab_size > config.vocab_size:
        raise BadCheckpoint(
            f"{tokenizer_file} has {tokenizer.vocab_size} tokens, the embedding only {config.vocab_size} rows"
        )
    source = _weight_file(place)
    model, digest = _assemble(config, source, open_weights(source), dtype, device)
    return Checkpoint(name, config, model, tokenizer, digest, _read_recall(place.find(RECALL_FILE)), place.origin)


def _file(place: Place, name: str) -> Path:
    found = place.find(name)
    if found is None:
        raise place.lacks(name)
    return found


def _weight_file(place: Place) -> Path:
    """Return the first of WEIGHT_FILES that is there; of an index, all files that it lists are fetched."""
    for name in WEIGHT_FILES:
        source = place.find(name)
        if source is None:
            continue
        files = read_json(source).get("weight_map") if source.suffix == ".json" else {}
        for file in sorted({f for f in files.values() if isinstance(f, str)} if isinstance(files, dict) else ()):
            place.find(file)  # the reader reports what else is wrong with the index
        return source
    raise place.lacks(f"weights (none of {', '.join(WEIGHT_FILES)})")


def _tokenizer_file(place: Place, raw: dict[str, Any], config: ModelConfig) -> Path:
    """Return the checkpoint's own tokenizer.json, else that of the model it names, else GPT-NeoX's for
    state-spaces' models.
    """
    own = place.find("tokenizer.json")
    if own is not None:
        return own
    about = place.find("tokenizer_config.json")
    names = [raw.get("tokenizer_name_or_path"), read_json(about).get("name_or_path") if about else None]
    named = next((r for r in (Repository.parse(n) for n in names if isinstance(n, str)) if r), None)
    if named is None:
        if "ssm_cfg" not in raw or not 0 <= config.vocab_size - _NEOX_TOKENS < _PADDED_TO_AT_MOST:
            raise place.lacks("tokenizer.json")
        named = Repository(_NEOX)
    try:
        return _file(named, "tokenizer.json")
    except (BadCheckpoint, MissingExtra) as error:
        lacks = f"{place} has no tokenizer.json, and there is no getting {named.name}'s"
        raise BadCheckpoint(f"{lacks} ({error}); put tokenizer.json there") from None


def _read_recall(path: Path | None) -> dict[str, int]:
    if path is None:
        return {}
    rungs = read_json(path)
    if set(rungs) != set(recall.LADDERS):
        raise BadCheckpoint(f"{path} must give a rung to each of {', '.join(recall.LADDERS)} (got {_listed(rungs)})")
    for task, rung in rungs.items():
        if type(rung) is not int or rung not in recall.LADDERS[task]:
            raise BadCheckpoint(f"{path}: {task} must be one of {_listed(recall.LADDERS[task])} (got {rung!r})")
    return rungs


def _listed(names: Iterable[object]) -> str:
    return ", ".join(map(str, names)) or "nothing"


def _read_config(path: Path) -> tuple[dict[str, Any], ModelConfig]:
    raw = read_json(path)
    try:
        return raw, ModelConfig.from_json(raw)
    except BadCheckpoint as error:
        raise BadCheckpoint(f"{path}: {error}") from None


def _assemble(
    config: ModelConfig, source: Path, weights: Weights, dtype: torch.dtype, device: torch.device
) -> tuple[LanguageModel, str]:
    """Return the model, and the digest of what it was made of. Names are state-spaces', whatever the layout."""
    names = _unwrapped(name for name in weights.stored if not name.endswith(_NO_WEIGHTS))  # ours -> as stored
    if _EMBEDDINGS in names and _EMBEDDING not in names:
        names[_EMBEDDING] = names.pop(_EMBEDDINGS)
    layers = {name.split(".")[2] for name in names if re.match(r"backbone\.layers\.\d+\.", name)}
    if len(layers) != config.n_layers:  # before building, so that an absurd config costs no time
        raise BadCheckpoint(f"{source} holds {_held(layers, names)}, config.json says {config.n_layers} layers")
    try:
        with torch.device("meta"):  # shapes only: no memory, and torch's random state stays as it is
            model = build(config)
    except (RuntimeError, TypeError, OverflowError) as error:
        config_file = source.parent / "config.json"
        raise BadCheckpoint(f"{config_file} describes an impossible model: {one_line(error)}") from None
    expected = model.state_dict()
    head = None
    if config.tie_embeddings:
        expected.pop(_HEAD)
        head = names.pop(_HEAD, None)  # some tied files hold it, as a copy
    if set(names) != set(expected):
        raise BadCheckpoint(f"{source}: {difference(expected, names)}")
    for name, stored_as in names.items():
        stored, shape = weights.stored[stored_as], tuple(expected[name].shape)
        if stored.shape != shape:
            raise BadCheckpoint(f"{source}: {name} must have shape {shape} (got {stored.shape})")
        if not stored.dtype.is_floating_point:
            raise BadCheckpoint(f"{source}: {name} must be floating point (got {stored.dtype})")
    if head is not None:
        _check_head(source, weights, names[_EMBEDDING], head)
    digest = hashlib.sha256(json.dumps(config.to_json(), sort_keys=True).encode())
    ready: dict[str, Tensor] = {}
    for name, stored_as in sorted(names.items()):
        stored = weights.stored[stored_as]
        digest.update(json.dumps([name, str(stored.dtype), list(stored.shape)]).encode())
        kept = torch.float32 if name.endswith(_ALWAYS_FLOAT32) else dtype
        ready[name] = _new(stored.shape, kept, device, source)
        at = 0
        for piece in weights.pieces(stored_as):
            digest.update(piece.view(torch.uint8).numpy().data)
            part = ready[name].view(-1)[at : at + len(piece)]
            part.copy_(piece)  # straight there: copies between would leave malloc's heap full of holes
            _check_finite(str(source), name, part, piece)
            at += len(part)
            del piece  # or a mapping would live on beside the next
    model.load_state_dict(ready, strict=False, assign=True)  # not strict: a tied lm_head follows below
    if config.tie_embeddings:
        model.lm_head.weight = model.backbone.embedding.weight
    return model.eval().requires_grad_(False), digest.hexdigest()


def _unwrapped(stored: Iterable[str]) -> dict[str, str]:
    """Return names without the prefix of what wrapped the model when it was saved -> the names as stored.

    A prefix goes only where every name has it, so that no two names can become one.
    """
    names = {name: name for name in stored}
    while prefix := next((p for p in _WRAPPERS if names and all(name.startswith(p) for name in names)), ""):
        names = {name.removeprefix(prefix): as_stored for name, as_stored in names.items()}
    return names


def _held(layers: Collection[str], names: Collection[str]) -> str:
    """Return how many layers there are in words; where there are none, what is there instead."""
    if layers or not names:
        return f"{len(layers)} layers"
    wrapped = next((p for p in _WRAPPERS for name in names if name.startswith(p)), "")
    hint = f": save it without the prefix {wrapped}" if wrapped else ""
    return f"no backbone.layers.0, but {', '.join(sorted(names)[:2])}{hint}"


def _check_head(source: Path, weights: Weights, embedding: str, head: str) -> None:
    same = weights.stored[head].shape == weights.stored[embedding].shape
    if not same or not all(
        torch.equal(a.float(), b.float()) for a, b in zip(weights.pieces(embedding), weights.pieces(head), strict=True)
    ):
        raise BadCheckpoint(f"{source}: {_HEAD} differs from the embedding, to which config.json ties it")


def _new(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device, source: Path) -> Tensor:
    try:
        return torch.empty(shape, dtype=dtype, device=device)
    except torch.OutOfMemoryError:
        needed = math.prod(shape) * dtype.itemsize / 2**30
        raise BadParameter(f"{source} does not fit on {device}: no {needed:.2g} GiB more are free there") from None


def _check_finite(place: str, name: str, narrow: Tensor, wide: Tensor) -> None:
    """Refuse `wide` where it is not finite, or is not finite in the dtype of `narrow`, which was made of it.

    raises NonFinite
    """
    if not all(x.isfinite() for x in torch.aminmax(narrow)):  # NaN is both; a tenth of the time of asking each
        raise NonFinite(f"{place}: {name} {_why_not_finite(wide.double().flatten(), narrow.dtype)}")


def _why_not_finite(wide: Tensor, dtype: torch.dtype) -> str:
    if not wide.isfinite().all():
        return "holds NaN or infinity"
    largest = wide[wide.abs().argmax()]
    wider = sorted(name for name, other in DTYPES.items() if largest.to(other).isfinite())
    does_not_fit = f"does not fit {str(dtype).removeprefix('torch.')} ({largest.item():g})"
    return f"{does_not_fit}; use {' or '.join(wider)}" if wider else does_not_fit
