"""Made-up results: three layers of Mamba, eight documents of one window each, twenty items."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from quambench.case import Case, Protocol
from quambench.claims.stored import Shelf
from quambench.gate.baselines import BaselineStore
from quambench.gate.noise import Noise
from quambench.gate.record import Artefacts, Record
from quambench.metrics import METRICS
from quambench.models.sites import ARCHITECTURES

DOCUMENTS, ITEMS, LAYERS, TOKENS = 8, 20, 3, 100
MEASURED = ("kl", "decode_kl", "accuracy", "accuracy_float")
DIGESTS = {"model_digest": "m", "calibration_data": "c", "evaluation_data": "e"}


def site_names(architecture: str) -> list[str]:
    return [f"layers.{i}.{site.name}" for i in range(LAYERS) for site in ARCHITECTURES[architecture].sites] + [
        "lm_head:input"
    ]


def made_record(
    spec: str,
    *,
    model: str = "mamba-tiny",
    architecture: str = "mamba",
    kl: float | list[float] = 1.0,
    decode_kl: float | list[float] = 2.0,
    right: int = 10,
    scales: dict[str, list[float]] | None = None,
    noise: dict[str, float] | None = None,
    digests: dict[str, str] | None = None,
    protocol: Protocol | None = None,
    **evidence,
) -> Record:
    """kl, decode_kl: nats per window of 100 tokens; right: the first so many of 20 items.

    evidence: more of it by name, "__" for a dot
    """
    sites = site_names(architecture)
    arrays = {"items.correct": (torch.arange(ITEMS) < right).to(torch.uint8)}
    arrays |= {"items.correct_float": torch.ones(ITEMS, dtype=torch.uint8), "items.document": torch.arange(ITEMS).int()}
    for phase, values in (("prefill", kl), ("decode", decode_kl)):
        arrays[f"{phase}.kl"] = torch.as_tensor(values, dtype=torch.float64).expand(DOCUMENTS).clone()
        arrays[f"{phase}.tokens"] = torch.full((DOCUMENTS,), float(TOKENS), dtype=torch.float64)
        arrays[f"{phase}.document"] = torch.arange(DOCUMENTS, dtype=torch.int32)
    arrays |= {f"sites.{name}": torch.zeros(len(sites), dtype=torch.float64) for name in ("clipped",)}
    arrays |= {name.replace("__", "."): torch.as_tensor(value, dtype=torch.float64) for name, value in evidence.items()}
    case = Case.parse(model, spec, protocol)
    stored = {site: torch.tensor((scales or {}).get(site, [1.0])) for site in sites}
    return Record(
        case_id=case.id,
        settings=case.settings() | DIGESTS | (digests or {}),
        metrics={name: METRICS[name].measure(arrays) for name in MEASURED},
        evidence=arrays,
        artefacts=Artefacts(stored, {}),
        provenance={},
        noise=Noise(means=noise or {}),
    )


@pytest.fixture
def made() -> Callable[..., Record]:
    return made_record


@pytest.fixture
def at_sites() -> Callable[..., list[float]]:
    """A value at every site of a name, another elsewhere -> (S,), in the evidence's order."""

    def rows(values: dict[str, list[float]], elsewhere: float = 0.0, architecture: str = "mamba") -> list[float]:
        left = {name: list(of_layers) for name, of_layers in values.items()}
        names = [site.split(".", 2)[-1] for site in site_names(architecture)]
        return [left[name].pop(0) if name in left else elsewhere for name in names]

    return rows


@pytest.fixture
def shelf(tmp_path: Path) -> Callable[..., Shelf]:
    """Writes records as a suite's baseline, and reads them back."""

    def make(*records: Record, model: str = "mamba-tiny", machine: str = "cpu-test", suite: str = "s") -> Shelf:
        store = BaselineStore(tmp_path, machine)
        if records:
            store.write(suite, model, records)
        return Shelf(BaselineStore(tmp_path, "cpu-test"), model)

    return make
