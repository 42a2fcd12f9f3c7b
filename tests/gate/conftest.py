"""Small synthetic records: a model of two sites and two weights, twelve windows, thirty items."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from quambench.gate.comparisons import gated
from quambench.gate.noise import SITE_ROWS, Noise
from quambench.gate.record import Artefacts, Record
from quambench.metrics import METRICS

SITES = ("layers.0.x_proj:input", "layers.0.ssm_state", "layers.1.x_proj:input")
WEIGHTS = ("embedding.weight", "layers.0.in_proj.weight")
SETTINGS = {"model": "m", "act_bits": 8, "calib_length": 128}


def quiet_noise() -> Noise:
    """A floor as a small model's: sites' log ratios move by a thousandth, windows by a ten-thousandth."""
    return Noise(
        means=dict.fromkeys(gated({}), 0.0),
        units=dict.fromkeys(gated({}), 1e-4),
        sites={rows: torch.full((3,), 1e-3, dtype=torch.float64) for rows in SITE_ROWS},
        arrays={"prefill.nll": 1e-6, "prefill.kl": 1e-2, "decode.kl_by_step": 1e-2, "items.correct": 0.1},
    )


def quantiles() -> dict[str, torch.Tensor]:
    """Quantiles of KL over six documents, without each of them, and their jackknife errors."""
    whole = torch.tensor([0.01, 0.05, 0.1, 0.2], dtype=torch.float64)
    left_out = whole[:, None] * torch.tensor([0.98, 1.02, 0.99, 1.01, 1.0, 1.0], dtype=torch.float64)
    errors = ((left_out - left_out.mean(1, keepdim=True)).square().sum(1) * 5 / 6).sqrt()
    return {"kl_quantiles": torch.stack([whole, errors], dim=1), "kl_left_out": left_out}


def make_record(seed: int = 0, case_id: str = "m/running_max/1x1", settings=None, noise=None) -> Record:
    generator = torch.Generator().manual_seed(seed)

    def rand(*shape):
        return torch.rand(*shape, generator=generator, dtype=torch.float64)

    documents = torch.arange(12, dtype=torch.int32) // 2
    evidence = {"prefill.bytes": torch.full((12,), 900.0, dtype=torch.float64)}
    for phase in ("prefill", "decode"):
        nll = 500 + 50 * rand(12)
        evidence |= {
            f"{phase}.nll": nll + rand(12),
            f"{phase}.nll_float": nll,
            f"{phase}.kl": 1 + 0.1 * rand(12),
            f"{phase}.agree": (240 + 5 * rand(12)).round(),
            f"{phase}.tokens": torch.full((12,), 256.0, dtype=torch.float64),
            f"{phase}.document": documents,
            **{f"{phase}.{name}": array for name, array in quantiles().items()},
        }
    evidence |= {
        "decode.accumulated": 0.01 * (1 + 0.1 * rand(3, 12)),
        "decode.kl_prefill": 1 + 0.1 * rand(12),
        "decode.kl_by_step": 1 + 0.1 * rand(16),
        "items.correct": (rand(30) > 0.5).to(torch.uint8),
        "items.correct_float": (rand(30) > 0.5).to(torch.uint8),
        "items.document": torch.arange(30, dtype=torch.int32) // 5,
        "sites.local_mse": torch.tensor([1e-4, 2e-4, 3e-4], dtype=torch.float64),
        "sites.signal": torch.ones(3, dtype=torch.float64),
        "sites.clipped": torch.zeros(3, dtype=torch.float64),
        "sites.range_used": torch.ones(3, dtype=torch.float64),
        "scales.count": torch.tensor(5),
        "scales.bytes": torch.tensor(20),
        "model.bytes": torch.tensor(1000),
        "sites.accumulated": 0.01 * (1 + 0.1 * rand(3, 8)),
    }
    order = (WEIGHTS[0], WEIGHTS[1], *SITES)
    scales = {name: torch.tensor([0.01 * (i + 1)]) for i, name in enumerate(order)}
    return Record(
        case_id=case_id,
        settings=dict(settings or SETTINGS),
        metrics={name: metric.measure(evidence) for name, metric in METRICS.items()},
        evidence=evidence,
        artefacts=Artefacts(scales, {name: f"digest of {name}" for name in WEIGHTS}),
        provenance={"machine": "cpu-test"},
        noise=noise or quiet_noise(),
    )


def with_evidence(record: Record, **arrays) -> Record:
    """Arrays by name, "prefill_kl" for "prefill.kl"; metrics follow."""
    named = {k.replace("__", "."): v for k, v in arrays.items()}
    evidence = dict(record.evidence) | named
    return replace(record, evidence=evidence, metrics={n: m.measure(evidence) for n, m in METRICS.items()})


def with_scale(record: Record, name: str, value: torch.Tensor) -> Record:
    artefacts = Artefacts(dict(record.artefacts.scales) | {name: value}, record.artefacts.digests)
    return replace(record, artefacts=artefacts)


@pytest.fixture
def record() -> Record:
    return make_record()


@pytest.fixture
def change():
    """(with_evidence, with_scale, make_record): ways to another record."""
    return with_evidence, with_scale, make_record
