"""Quantized models in folders: a model's integers, its scales, and what it was made of.

quantized.json says what the arrays mean, and names the file that holds them. That file is written first, and the file
before it is removed last, so a process that is killed in between leaves the old model or the new one.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from quambench.calibration.scales import Calibration, check_calibration
from quambench.core.errors import BadArtefact, BadParameter, NotWritten, QuambenchError
from quambench.core.files import locked, remove, write
from quambench.core.pointers import check_fetched
from quambench.core.reading import Unreadable, is_file, mappings, parse_json, read_bytes, read_pair, shown
from quambench.grids.grid import check_steps
from quambench.grids.precision import Bits, Precision
from quambench.int8.held import content_of
from quambench.int8.model import QuantizedModel
from quambench.int8.source import StoredWeights, weight_shapes
from quambench.int8.w4 import GroupedWeight
from quambench.int8.weights import FloatWeight, QuantizedTensor, Weight
from quambench.models import ModelConfig, build

SCHEMA = 1
LIMIT = 16 << 30  # bytes of the arrays; a model of 2.7 G parameters has 3 GB
_ABOUT = "quantized.json"
_KINDS: Mapping[str, type[Weight]] = {"int8": QuantizedTensor, "groups": GroupedWeight, "float": FloatWeight}


@dataclass(frozen=True)
class StoredModel:
    """A quantized model, with its calibration and the name of the case that made it."""

    model: QuantizedModel
    calibration: Calibration  # its model_digest names the float model
    case_id: str  # the case that it was made by, for people

    def save(self, folder: Path) -> None:
        """Write quantized.json and weights.<digest>.safetensors. raises NotWritten"""
        weights = self.model.weights() | self.model.plain_weights()
        about, scales = self.calibration.described()
        arrays = {f"scale:{name}": tensor for name, tensor in scales.items()}
        for name, weight in weights.items():
            arrays |= {f"weight:{name}:{part}": tensor for part, tensor in _tensors(weight).items()}
        # Arrays may share memory (a scale that was expanded); safetensors wants each by itself.
        blob = save({name: tensor.contiguous().clone() for name, tensor in sorted(arrays.items())})
        digest = hashlib.sha256(blob).hexdigest()
        file = f"weights.{digest[:12]}.safetensors"
        document = {
            "schema": SCHEMA,
            "case": self.case_id,
            "arrays": {"file": file, "sha256": digest},
            "config": self.model.config.to_json(),
            "precision": _precision_to_json(self.model.precision),
            "calibration": about,
            "weights": {name: _rest(weight) for name, weight in weights.items()},
        }
        with locked(folder):
            write(folder / file, blob)
            write(folder / _ABOUT, json.dumps(document, indent=1) + "\n")
            for old in folder.glob("weights.*.safetensors"):
                if old.name != file:
                    with suppress(NotWritten):  # no file names it any more; the next save tries again
                        remove(old)

    @classmethod
    def load(cls, folder: Path) -> StoredModel:
        """Build the model again, equal to the last bit.

        raises BadArtefact where a file is missing, damaged, of another schema, or holds what no model can be
        """
        return read_pair(lambda: _text_of(folder), lambda content: _loaded(folder, content))


def _text_of(folder: Path) -> bytes:
    """Return the bytes of quantized.json. raises BadArtefact"""
    if not is_file(folder / _ABOUT):
        missing = f"{_ABOUT} is missing (quambench quantize writes it)"
        raise BadArtefact(f"{shown(folder)} holds no quantized model: {missing}")
    check_fetched(folder / _ABOUT, BadArtefact)
    try:
        return read_bytes(folder / _ABOUT)
    except Unreadable as error:
        raise BadArtefact(f"{shown(folder)} holds a corrupt quantized model: {shown(error)}") from None


def _loaded(folder: Path, content: bytes) -> StoredModel:
    try:
        about = parse_json(content, folder / _ABOUT)
        if not mappings(about, "arrays", "config", "precision", "calibration", "weights"):
            raise BadArtefact(f"{_ABOUT} must be an object with arrays, config, precision, calibration and weights")
        if about.get("schema") != SCHEMA:
            got = shown(about.get("schema"))
            raise BadArtefact(f"{_ABOUT} has schema {got}, this version reads {SCHEMA}: quantize again")
        arrays = _arrays(folder, about["arrays"])
        return _built(about, arrays, folder)
    except (QuambenchError, SafetensorError) as error:
        raise BadArtefact(f"{shown(folder)} holds a corrupt quantized model: {shown(error)}") from None
    # A bad file can break any of these steps in its own way: whatever is raised, the file is at fault.
    except (ValueError, LookupError, TypeError, AttributeError, RuntimeError, OverflowError, OSError) as error:
        raise BadArtefact(f"{shown(folder)} holds a corrupt quantized model: {shown(repr(error))}") from None


def _arrays(folder: Path, named: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return the arrays that quantized.json names. raises BadArtefact, Unreadable, SafetensorError"""
    name, digest = named.get("file"), named.get("sha256")
    if not isinstance(name, str) or Path(name).name != name:
        raise BadArtefact(f"the arrays must stand beside {_ABOUT} (got {shown(repr(name))})")
    path = folder / name
    if not is_file(path):
        raise BadArtefact(f"{name} is missing")
    check_fetched(path, BadArtefact)
    blob = read_bytes(path, LIMIT)
    if hashlib.sha256(blob).hexdigest() != digest:
        raise BadArtefact(f"{name} is not the file that {_ABOUT} describes")
    arrays: dict[str, Tensor] = load(blob)
    return arrays


def _built(about: Mapping[str, Any], arrays: Mapping[str, Tensor], folder: Path) -> StoredModel:
    config = ModelConfig.from_json(about["config"])
    if config.n_layers > len(about["weights"]):  # before anything is done layer by layer
        raise BadArtefact(f"config says {config.n_layers} layers, and there are {len(about['weights'])} weights")
    precision = _precision_from_json(about["precision"])
    precision.check_layers(config.n_layers)
    scales = {name.removeprefix("scale:"): t for name, t in arrays.items() if name.startswith("scale:")}
    calibration = Calibration.from_described(about["calibration"], scales, folder)
    check_calibration(calibration, config)
    weights = {name: _weight(name, said, arrays) for name, said in about["weights"].items()}
    _check_weights(weights, config)
    model = QuantizedModel(config, calibration, precision, StoredWeights(weights))
    return StoredModel(model, calibration, str(about["case"]))


def _weight(name: str, said: Mapping[str, Any], arrays: Mapping[str, Tensor]) -> Weight:
    kind = _KINDS[said["kind"]]
    rest = {key: value for key, value in said.items() if key != "kind"}
    if wrong := [key for key, value in rest.items() if value is not None and (type(value) is not int or value < 1)]:
        raise BadArtefact(f"{name}: {wrong[0]} must be a whole number, 1 or more (got {shown(repr(rest[wrong[0]]))})")
    prefix = f"weight:{name}:"
    tensors = {key.removeprefix(prefix): tensor for key, tensor in arrays.items() if key.startswith(prefix)}
    weight = kind(**tensors, **rest)
    integers = kind is not FloatWeight
    if integers != (weight.q.dtype == torch.int8) or not (integers or weight.q.is_floating_point()):
        raise BadArtefact(f"{name} cannot be of {str(weight.q.dtype).removeprefix('torch.')}")
    if integers:
        check_steps(weight.scale, name)
        if not _fits(weight):
            raise BadArtefact(f"{name}: scales {tuple(weight.scale.shape)} do not fit {tuple(weight.q.shape)}")
    elif not weight.q.isfinite().all():
        raise BadArtefact(f"{name} has values that are not finite")
    return weight


def _fits(weight: Weight) -> bool:
    try:
        return weight.dequantize().shape == weight.q.shape
    except RuntimeError:  # shapes that do not broadcast
        return False


def _check_weights(weights: Mapping[str, Weight], config: ModelConfig) -> None:
    """Check that names and shapes are those of a model of this config. raises BadArtefact"""
    with torch.device("meta"):  # shapes only
        shapes = weight_shapes(build(replace(config, tie_embeddings=False)))
    apart = sorted(weights.keys() ^ shapes.keys())
    if apart:
        raise BadArtefact(f"{apart[0]} is {'no weight of such a model' if apart[0] in weights else 'missing'}")
    for name, weight in weights.items():
        if tuple(weight.q.shape) != shapes[name]:
            raise BadArtefact(f"{name} must have shape {shapes[name]} (got {tuple(weight.q.shape)})")


def _tensors(weight: Weight) -> dict[str, Tensor]:
    return {name: part for name, part in content_of(weight).items() if isinstance(part, Tensor)}


def _rest(weight: Weight) -> dict[str, Any]:
    """Return the weight's kind, and its fields that are no arrays."""
    kind = next(name for name, of in _KINDS.items() if isinstance(weight, of))
    return {"kind": kind} | {name: part for name, part in content_of(weight).items() if not isinstance(part, Tensor)}


def _precision_to_json(precision: Precision) -> dict[str, Any]:
    return asdict(precision) | {"layers": [str(bits) for bits in precision.layers]}


def _precision_from_json(said: Mapping[str, Any]) -> Precision:
    """Read a precision. raises BadParameter, TypeError"""
    for name in ("embedding", "lm_head", "ssm_state", "symmetric"):
        if type(said[name]) is not bool:
            raise BadParameter(f"{name} must be true or false (got {shown(repr(said[name]))})")
    whole = Bits.parse(f"w{said['weight_bits']}a{said['act_bits']}")
    layers = tuple(Bits.parse(bits) for bits in said["layers"])
    return Precision(**{**said, "weight_bits": whole.weights, "act_bits": whole.acts, "layers": layers})
