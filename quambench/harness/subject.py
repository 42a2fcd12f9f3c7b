"""The model that is asked: a float one, or an INT8 one from saved scales or calibrated on the spot."""

from __future__ import annotations

import copy
import hashlib
from dataclasses import dataclass
from pathlib import Path

import torch

from quambench.calibration.scales import Calibration
from quambench.calibration.stored_model import StoredModel
from quambench.case import Case
from quambench.core.errors import BadParameter
from quambench.data.corpus import load_corpus
from quambench.data.tokenizer import Tokenizer
from quambench.evaluation.decoding import Model
from quambench.int8.model import QuantizedModel
from quambench.int8.site_grid import Unquantized
from quambench.models.checkpoint import DTYPES, Checkpoint, checked_device, load_checkpoint
from quambench.models.device import on_host
from quambench.run.runner import CPU, ModelRun, saved_model, stored_model

NARROW = DTYPES  # dtypes that a checkpoint is loaded to
WIDE = "float64"


@dataclass(frozen=True, slots=True)
class Subject:
    """A model that answers, and the way in which it reads text.

    digest  hash of everything that decides its answers: the model, with its calibration, the tokenizer and `starts`
    starts  whether the start token stands before every text, as it did in training
    """

    model: Model
    tokenizer: Tokenizer
    name: str
    digest: str
    starts: bool


def float_subject(checkpoint: Checkpoint, starts: bool, dtype: str, device: torch.device = CPU) -> Subject:
    """Return the float model of a checkpoint that was loaded to `dtype`, or in float64, on a device.

    raises BadParameter
    """
    model = copy.deepcopy(checkpoint.model).double() if dtype == WIDE else checkpoint.model
    there = on_host(model.to(device), device)
    return _subject(checkpoint, there, _hash(checkpoint.digest, dtype), f"{checkpoint.name}/{dtype}", starts)


def saved_subject(checkpoint: Checkpoint, folder: Path, starts: bool, device: torch.device = CPU) -> Subject:
    """Return the INT8 model of scales that `quambench calibrate --out` wrote. raises BadArtefact"""
    calibration = Calibration.load(folder)
    _, model = saved_model(checkpoint, calibration, device)
    return _of_folder(checkpoint, folder, model, calibration, starts, device)


def stored_subject(checkpoint: Checkpoint, folder: Path, starts: bool, device: torch.device = CPU) -> Subject:
    """Return the INT8 model that `quambench quantize --out` wrote. raises BadArtefact"""
    stored = StoredModel.load(folder)
    _, model = stored_model(checkpoint, stored, device)
    return _of_folder(checkpoint, folder, model, stored.calibration, starts, device)


def _of_folder(
    checkpoint: Checkpoint,
    folder: Path,
    model: QuantizedModel,
    calibration: Calibration,
    starts: bool,
    device: torch.device,
) -> Subject:
    digest = digest_of(checkpoint, model, calibration)
    return quantized_subject(checkpoint, on_host(model, device), digest, f"{checkpoint.name}/{folder}", starts)


def case_subject(run: ModelRun, case: Case, starts: bool) -> Subject:
    """Return the INT8 model of one of a run's cases. raises what making its scales raises"""
    model = run.quantized(case)
    digest = digest_of(run.checkpoint, model, run.calibration(case))
    return quantized_subject(run.checkpoint, on_host(model, run.device), digest, case.id, starts)


def quantized_subject(checkpoint: Checkpoint, model: Model, digest: str, name: str, starts: bool) -> Subject:
    """Return a quantized model that is called from the host; `digest` is as `digest_of` makes it."""
    return _subject(checkpoint, model, digest, name, starts)


def digest_of(checkpoint: Checkpoint, model: QuantizedModel, calibration: Calibration) -> str:
    """Return a hash of everything that decides what a quantized model answers to given tokens."""
    weights = [f"{weight} {made.digest}" for weight, made in model.weights().items()]
    left_float = [site for site, grid in model.grids.items() if isinstance(grid, Unquantized)]
    return _hash(checkpoint.digest, calibration.digest, *weights, *left_float)


def subject_of(
    model: str,
    calibration: str | None = None,
    observer: str | None = None,
    grouping: str | None = None,
    policy: str | None = None,
    precision: str | None = None,
    corpus: str | None = None,
    dtype: str | None = None,
    add_bos_token: bool | None = None,
    device: str = "cpu",
    quantized: str | None = None,
) -> Subject:
    """Return the Subject that the harness' model_args describe.

    calibration                  a folder that `quambench calibrate --out` wrote
    quantized                    or one that `quambench quantize --out` wrote
    observer                     or what follows the model in a case's id: "percentile", "mse/channel/w8a4"
    dtype                        of the float model: float32, float64, bfloat16 or float16
    device                       cpu, cuda or cuda:N
    grouping, policy, precision  further parts of the case, where the observer does not name them
    add_bos_token                whether the start token stands first; by default before bundled models alone, which
                                 were trained so: others are asked as lm_eval asks them

    Without calibration, quantized and observer it is the float model that answers.

    raises UnknownName, BadParameter, BadCheckpoint, BadArtefact
    """
    parts = {"grouping": grouping, "policy": policy, "precision": precision}
    if observer is None and (lone := [name for name, part in parts.items() if part]):
        raise BadParameter(f"{lone[0]} needs an observer beside it: observer=percentile,{lone[0]}={parts[lone[0]]}")
    if observer and calibration:
        raise BadParameter("give a saved calibration or an observer to calibrate with, not both")
    if quantized and (observer or calibration):
        raise BadParameter("give a saved quantized model, or what to quantize with (observer, calibration), not both")
    if dtype and (observer or calibration or quantized):
        raise BadParameter("dtype is the float model's; a quantized model computes as its runtime does")
    if dtype not in (None, WIDE, *NARROW):
        raise BadParameter(f"dtype must be one of {', '.join([*NARROW, WIDE])} (got {dtype!r})")
    there = checked_device(device)
    checkpoint = load_checkpoint(model, dtype=NARROW.get(dtype or "", torch.float32))
    starts = checkpoint.bundled if add_bos_token is None else add_bos_token
    if quantized:
        return stored_subject(checkpoint, Path(quantized), starts, there)
    if calibration:
        return saved_subject(checkpoint, Path(calibration), starts, there)
    if observer is None:
        return float_subject(checkpoint, starts, dtype or "float32", there)
    case = Case.parse(checkpoint.name, "/".join([observer, *filter(None, parts.values())]))
    return case_subject(ModelRun(checkpoint, load_corpus(corpus), [case], device=device), case, starts)


def _subject(checkpoint: Checkpoint, model: Model, digest: str, name: str, starts: bool) -> Subject:
    tokenizer = checkpoint.tokenizer
    return Subject(model, tokenizer, name, _hash(digest, tokenizer.digest, f"starts={starts}"), starts)


def _hash(*parts: str) -> str:
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()
