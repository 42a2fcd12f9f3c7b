"""Records: results as the gate keeps them, with numbers, evidence, artefacts, settings and provenance."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from quambench.case import protocol_hash
from quambench.evaluation.result import Result
from quambench.gate.noise import Noise
from quambench.metrics import Measurement


@dataclass(frozen=True, slots=True)
class Artefacts:
    """The products of calibration and weight quantization, by name in forward order.

    scales   "layers.0.x_proj:input" (a site) or "layers.0.in_proj.weight" -> float32, any shape
    digests  weight name -> hash of its integers
    """

    scales: Mapping[str, Tensor]
    digests: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Record:
    """A judged or stored case. Evidence arrays are those of `evaluate`."""

    case_id: str
    settings: Mapping[str, Any]
    metrics: Mapping[str, Measurement]
    evidence: Mapping[str, Tensor]
    artefacts: Artefacts
    provenance: Mapping[str, Any]
    noise: Noise = field(default_factory=Noise)  # measured when this was stored
    # metric -> (as stored, as today's code has it from the stored evidence), where these differ
    restated: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    accepted: str = ""  # why a worse result was stored, in its author's words
    # Evidence of a second look, on what the first left out; empty where none was taken.
    rest: Mapping[str, Tensor] = field(default_factory=dict)
    rest_digest: str = ""  # hash of the windows and items of the second look
    gone: tuple[str, ...] = ()  # metrics that were stored and that no code measures any more

    @property
    def protocol(self) -> str:
        return protocol_hash(dict(self.settings))

    @property
    def sites(self) -> list[str]:
        """The names of sites, in the order of the evidence's site rows."""
        return [name for name in self.artefacts.scales if name not in self.artefacts.digests]

    @property
    def artefact_digest(self) -> str:
        """A hash over all artefacts, so that a diff shows that something changed."""
        h = hashlib.sha256()
        for name, scale in self.artefacts.scales.items():
            h.update(name.encode() + scale.contiguous().numpy().tobytes())
        for name, digest in self.artefacts.digests.items():
            h.update(f"{name} {digest}".encode())
        return h.hexdigest()[:16]


def record_of(result: Result, provenance: Mapping[str, Any]) -> Record:
    """Flatten a Result; scales in the order in which a forward pass meets them, a layer's weights before its sites."""
    named = {name: weight.scale for name, weight in result.weights.items()} | dict(result.calibration.scales)
    in_order = sorted(named, key=lambda name: (_layer(name), name not in result.weights))
    return Record(
        case_id=result.case.id,
        settings=result.settings,
        metrics=result.metrics,
        evidence=result.evidence,
        artefacts=Artefacts(
            scales={name: named[name].flatten().contiguous() for name in in_order},
            digests={name: weight.digest for name, weight in result.weights.items()},
        ),
        provenance=provenance,
    )


def _layer(name: str) -> float:
    """Return a layer's number; the embedding comes before the first layer, lm_head after the last."""
    if name.startswith("layers."):
        return int(name.split(".")[1])
    return -math.inf if name.startswith("embedding") else math.inf


def scale_steps_apart(a: Tensor, b: Tensor) -> Tensor:
    """Return the distance in representable float32 steps (ulp) of positive finite values; int64."""
    return (a.view(torch.int32).long() - b.view(torch.int32).long()).abs()
