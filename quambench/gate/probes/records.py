"""Records that a formula makes, for the probes of the judge: everything that any case stores, small.

Numbers are eighths, and few of them, so that sums are exact and answers the same on every machine. Nothing of
them goes through a model: what the judge says of them is the judge's alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import cache

import torch
from torch import Tensor

from quambench import metrics as measuring
from quambench.gate.arrays import Evidence
from quambench.gate.noise import SITE_ROWS, Noise
from quambench.gate.record import Artefacts, Record

WINDOWS, ITEMS, SEQUENCES, STEPS, ERROR_WINDOWS = 16, 40, 12, 16, 16
# Of six: from fewer on, windows stand for themselves. Labels are neither in order nor next to each other.
DOCUMENTS = (5, 5, 2, 2, 9, 9, 0, 0, 7, 7, 2, 5, 3, 3, 9, 11)
SITES = ("layers.0.x_proj:input", "layers.0.ssm_state", "layers.1.x_proj:input", "layers.1.out_proj:input")
SETTINGS = {"model": "m", "act_bits": 8, "symmetric": True, "calib_length": 128, "metric.kl": 1}
TASKS = ("associative", "induction", "selective_copy")
# In forward order; the embedding has a scale a row, one weight steps of groups, one site a scale per group.
SCALES: Mapping[str, tuple[float, ...]] = {
    "embedding.weight": (0.011, 0.012, 0.013, 0.014),
    "layers.0.in_proj.weight": (0.02,),
    SITES[0]: (0.05,),
    SITES[1]: (0.25, 0.5, 1.0),
    "layers.1.out_proj.weight": (1.0, 3.0, 2.0, 5.0, 4.0, 7.0),
    SITES[2]: (0.0625,),
    SITES[3]: (2.0,),
}
UNIT, ARRAY, SITE = 2.0**-10, 2.0**-5, 2.0**-8  # floors


def mixed(n: int, shift: int, modulus: int) -> Tensor:
    """(n,) float64 integers below `modulus`, out of order."""
    return ((torch.arange(n) * 37 + 11 * shift) % modulus).double()


def text(windows: int = WINDOWS, items: int = ITEMS, shift: int = 0) -> dict[str, Tensor]:
    """What a text model answers on so many windows and items."""
    documents = torch.tensor(DOCUMENTS, dtype=torch.int32).repeat(-(-windows // WINDOWS))[:windows]
    made: dict[str, Tensor] = {"prefill.bytes": mixed(windows, shift + 6, 13) + 250}
    for phase, at in (("prefill", shift), ("decode", shift + 5)):
        tokens = 48 + mixed(windows, at, 3) * 8  # windows of several lengths: a mean of means is another number
        float_loss = tokens * 3 + mixed(windows, at + 1, 23) / 8
        made |= {
            f"{phase}.tokens": tokens,
            f"{phase}.nll_float": float_loss,
            f"{phase}.nll": float_loss + 4 + mixed(windows, at + 2, 31) / 8,
            f"{phase}.kl": 8 + mixed(windows, at + 3, 11) / 8,
            f"{phase}.agree": tokens - 4 - mixed(windows, at + 4, 5),
            f"{phase}.document": documents,
        }
        made |= quantiles(phase, 1 + at / 8, len(documents.unique()))
    made |= {
        "decode.kl_prefill": 8 + mixed(windows, shift + 7, 17) / 8,
        "decode.kl_by_step": 1 + mixed(STEPS, shift + 8, 17) / 8,
        "items.correct": (mixed(items, shift + 1, 7) < 4).to(torch.uint8),
        "items.correct_float": (mixed(items, shift + 2, 7) < 5).to(torch.uint8),
        "items.document": torch.arange(items, dtype=torch.int32) // 5,
    }
    return made


def quantiles(phase: str, size: float, documents: int) -> dict[str, Tensor]:
    """Quantiles of KL, without each document, and the jackknife's errors of them."""
    whole = size * torch.tensor([0.125, 0.5, 1.0, 2.0], dtype=torch.float64)
    left_out = whole[:, None] * (1 + (mixed(4 * documents, 3, 7).view(4, -1) - 3) / 64)
    return with_errors(phase, whole, left_out)


def with_errors(phase: str, whole: Tensor, left_out: Tensor) -> dict[str, Tensor]:
    """The two arrays of quantiles, errors and all."""
    n = left_out.shape[1]
    errors = ((left_out - left_out.mean(1, keepdim=True)).square().sum(1) * (n - 1) / n).sqrt()
    return {f"{phase}.kl_quantiles": torch.stack([whole, errors], dim=1), f"{phase}.kl_left_out": left_out}


def recall() -> dict[str, Tensor]:
    """What a recall model answers, and its state along a long sequence."""
    made = {"long.state_error": (mixed(2 * 4 * 8, 4, 41).view(2, 4, 8) + 1) / 64}
    for shift, task in enumerate(TASKS):
        asked = mixed(SEQUENCES, shift, 3).int() + 3
        made |= {
            f"recall.{task}.asked": asked,
            f"recall.{task}.right": asked - mixed(SEQUENCES, shift + 1, 4).int(),
            f"recall.{task}.right_float": asked - mixed(SEQUENCES, shift + 2, 2).int(),
        }
    return made


def tasks() -> dict[str, Tensor]:
    """Two tasks of another harness: right or wrong, and a loss by the byte."""
    made: dict[str, Tensor] = {}
    for shift, (task, higher) in enumerate({"choice": 1, "loss": 0}.items()):
        value = (mixed(24, shift, 5) < 3).double() if higher else 1 + mixed(24, shift, 11) / 8
        made |= {
            f"task.{task}.value": value,
            f"task.{task}.value_float": value.clone(),
            f"task.{task}.log_likelihood": -8 - mixed(24, shift, 13) / 8,
            f"task.{task}.log_likelihood_float": -7 - mixed(24, shift, 13) / 8,
            f"task.{task}.weight": 1 + (1 - higher) * mixed(24, shift, 4),
            f"task.{task}.document": torch.arange(24, dtype=torch.int32) // 3,
            f"task.{task}.higher_is_better": torch.tensor(higher, dtype=torch.uint8),
            f"task.{task}.unit": torch.tensor(0 if higher else 3, dtype=torch.uint8),
        }
    return made


def inside() -> dict[str, Tensor]:
    """Errors at the sites, what is counted, how channels are put in groups, and what training came to."""
    n = len(SITES)
    return {
        "decode.accumulated": (8 + mixed(n * WINDOWS, 9, 29).view(n, -1)) / 64,
        "sites.local_mse": (1 + mixed(n, 1, 7)) / 1024,
        "sites.signal": (40 + mixed(n, 2, 19)) / 8,
        "sites.clipped": torch.tensor([0.0, 0.015625, 0.0, 0.5], dtype=torch.float64),
        "sites.range_used": torch.tensor([1.0, 4.0, 0.875, 0.75], dtype=torch.float64),
        "sites.range_wasted": torch.tensor([0.0, 0.25, 0.125, 0.5], dtype=torch.float64),
        "sites.accumulated": (8 + mixed(n * ERROR_WINDOWS, 3, 23).view(n, -1)) / 64,
        "groups.channel_index": torch.tensor([[2, 0, 1, 3], [0, 3, 1, 2]], dtype=torch.int32),
        "groups.of_channel": torch.tensor([[0, 0, 1, 1], [0, 1, 1, 1]], dtype=torch.int32),
        "refinement.losses": torch.tensor([8, 4, 9, 5], dtype=torch.float64) / 8,
        "scales.count": torch.tensor(1007),
        "scales.bytes": torch.tensor(4028),
        "model.bytes": torch.tensor(100_000),
    }


def record(*metrics: str) -> Record:
    """With everything in it; where some metrics are named, as from a time that knew those alone."""
    made = _record()
    evidence = {name: array.clone() for name, array in made.evidence.items()}
    return replace(
        made, evidence=evidence, metrics={n: m for n, m in made.metrics.items() if not metrics or n in metrics}
    )


@cache
def _record() -> Record:
    evidence = text() | recall() | inside()
    names = [name for name, metric in measuring.METRICS.items() if metric.terms is not None]
    noise = Noise(
        means=dict.fromkeys(names, UNIT / 4),
        units=dict.fromkeys(names, UNIT),
        sites={rows: SITE * torch.tensor([1.0, 0.0, 2.0, 1.0], dtype=torch.float64) for rows in SITE_ROWS},
        arrays={name: ARRAY for name in evidence if not name.startswith(("sites.", "groups.", "scales.", "model."))},
    )
    return Record(
        case_id="m/running_max/1x1",
        settings=dict(SETTINGS),
        metrics=measured(evidence),
        evidence=evidence,
        artefacts=Artefacts(
            {name: torch.tensor(values) for name, values in SCALES.items()},
            {name: f"digest of {name}" for name in SCALES if name not in SITES},
        ),
        provenance={"machine": "cpu"},
        noise=noise,
    )


def measured(evidence: Evidence) -> dict[str, measuring.Measurement]:
    """Every metric, of this evidence."""
    return {name: metric.measure(evidence) for name, metric in measuring.metrics_of(evidence).items()}


def with_arrays(record: Record, arrays: Mapping[str, Tensor]) -> Record:
    """Arrays in place of those of a record; the metrics that it has follow."""
    evidence, known = {**record.evidence, **arrays}, measuring.METRICS
    return replace(record, evidence=evidence, metrics={name: known[name].measure(evidence) for name in record.metrics})


def altered(record: Record, arrays: Mapping[str, Tensor]) -> Record:
    """Arrays in place of those of a record, and its metrics left alone: for who does not read them."""
    return replace(record, evidence={**record.evidence, **arrays})


def without(record: Record, *names: str) -> Record:
    """A record whose evidence lacks some arrays; its metrics stay."""
    return replace(record, evidence={name: x for name, x in record.evidence.items() if name not in names})


def with_scales(record: Record, changed: Mapping[str, Tensor | None]) -> Record:
    """Scales in place of a record's; None takes one away."""
    scales = {**record.artefacts.scales, **changed}
    kept = {name: scale for name, scale in scales.items() if scale is not None}
    return replace(record, artefacts=Artefacts(kept, record.artefacts.digests))


def steps_on(x: Tensor, steps: int, at: int = 0) -> Tensor:
    """float32 x, one entry so many representable numbers on."""
    bits = x.view(torch.int32).clone()
    bits[at] += steps
    return bits.view(torch.float32)
