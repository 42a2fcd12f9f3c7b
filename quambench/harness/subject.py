"""What is asked: a float model, or an INT8 one from saved scales or calibrated on the spot."""

from __future__ import annotations

import copy
import hashlib
from dataclasses import dataclass
from pathlib import Path

import torch

from quambench.calibrate import Calibration
from quambench.case import Case
from quambench.data.corpus import load_corpus
from quambench.data.tokenizer import Tokenizer
from quambench.decoding import Model
from quambench.errors import BadParameter
from quambench.models.checkpoint import Checkpoint, load_checkpoint
from quambench.quant.quantized import QuantizedModel
from quambench.quant.site_grid import Unquantized
from quambench.runner import ModelRun, saved_model

DTYPES = {"float32": torch.float32, "float64": torch.float64}


@dataclass(frozen=True, slots=True)
class Subject:
    """A model that answers, and how it reads text.

    digest  of everything that decides its answers: another calibration is another digest
    starts  whether the start token stands before every text, as it did in training
    """

    model: Model
    tokenizer: Tokenizer
    name: str
    digest: str
    starts: bool


def float_subject(checkpoint: Checkpoint, starts: bool, dtype: str = "float32") -> Subject:
    """raises BadParameter"""
    if dtype not in DTYPES:
        raise BadParameter(f"dtype must be one of {', '.join(DTYPES)} (got {dtype!r})")
    model = checkpoint.model if dtype == "float32" else copy.deepcopy(checkpoint.model).to(DTYPES[dtype])
    return Subject(model, checkpoint.tokenizer, f"{checkpoint.name}/{dtype}", _hash(checkpoint.digest, dtype), starts)


def saved_subject(checkpoint: Checkpoint, folder: Path, starts: bool) -> Subject:
    """The INT8 model of scales that `quambench calibrate --out` wrote. raises BadArtefact"""
    calibration = Calibration.load(folder)
    _, model = saved_model(checkpoint, calibration)
    digest = digest_of(checkpoint, model, calibration)
    return quantized_subject(checkpoint, model, digest, f"{checkpoint.name}/{folder}", starts)


def case_subject(run: ModelRun, case: Case, starts: bool) -> Subject:
    """The INT8 model of one of a run's cases. raises what making its scales raises"""
    model = run.quantized(case)
    return quantized_subject(
        run.checkpoint, model, digest_of(run.checkpoint, model, run.calibration(case)), case.id, starts
    )


def quantized_subject(checkpoint: Checkpoint, model: Model, digest: str, name: str, starts: bool) -> Subject:
    """A quantized model, called from the host. digest: as `digest_of` makes it"""
    return Subject(model, checkpoint.tokenizer, name, digest, starts)


def digest_of(checkpoint: Checkpoint, model: QuantizedModel, calibration: Calibration) -> str:
    """Of everything that decides a quantized model's answers."""
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
) -> Subject:
    """From the harness' model_args.

    calibration                  a folder that `quambench calibrate --out` wrote
    observer                     or what follows the model in a case's id: "percentile", "mse/channel/w8a4"
    grouping, policy, precision  further parts of the case, where the observer does not name them
    add_bos_token                whether the start token stands first; by default before bundled models alone, which
                                 were trained so: others are asked as lm_eval asks them

    Without calibration and observer it is the float model that answers.

    raises UnknownName, BadParameter, BadCheckpoint, BadArtefact
    """
    parts = {"grouping": grouping, "policy": policy, "precision": precision}
    if observer is None and (lone := [name for name, part in parts.items() if part]):
        raise BadParameter(f"{lone[0]} needs an observer beside it: observer=percentile,{lone[0]}={parts[lone[0]]}")
    if observer and calibration:
        raise BadParameter("give a saved calibration or an observer to calibrate with, not both")
    if dtype and (observer or calibration):
        raise BadParameter("dtype is the float model's; a quantized model computes as its runtime does")
    checkpoint = load_checkpoint(model)
    starts = checkpoint.bundled if add_bos_token is None else add_bos_token
    if calibration:
        return saved_subject(checkpoint, Path(calibration), starts)
    if observer is None:
        return float_subject(checkpoint, starts, dtype or "float32")
    case = Case.parse(checkpoint.name, "/".join([observer, *filter(None, parts.values())]))
    return case_subject(ModelRun(checkpoint, load_corpus(corpus), [case]), case, starts)


def _hash(*parts: str) -> str:
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()
