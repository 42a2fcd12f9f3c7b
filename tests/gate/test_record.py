"""What the gate keeps of a result."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from quambench.calibration.scales import Calibration
from quambench.case import Case
from quambench.evaluation.result import Result
from quambench.gate.noise import Noise
from quambench.gate.record import Artefacts, Record, record_of
from quambench.metrics import Measurement

# In the order in which a forward pass meets them, which neither the alphabet nor the order of their making is.
IN_ORDER = [
    "embedding.weight",
    "layers.2.out_proj.weight",
    "layers.2.dt_bias",
    "layers.2.in_proj:input",
    "layers.2.ssm_state",
    "layers.10.in_proj.weight",
    "layers.10.ssm_state",
    "lm_head.weight",
    "lm_head:input",
]
WEIGHTS = ("lm_head.weight", "layers.10.in_proj.weight", "embedding.weight", "layers.2.out_proj.weight")
WEIGHTS += ("layers.2.dt_bias",)
SITES = ("layers.10.ssm_state", "lm_head:input", "layers.2.in_proj:input", "layers.2.ssm_state")


def number(name: str) -> float:
    return 0.5 + IN_ORDER.index(name)


@pytest.fixture
def result() -> Result:
    scales = {name: torch.tensor(number(name)) for name in SITES}
    scales["lm_head:input"] = torch.tensor([[1.0, 2.0], [3.0, 4.0]]).T
    return Result(
        case=Case.parse("m", "running_max"),
        settings={"act_bits": 8},
        metrics={"kl": Measurement(0.25, 0.125)},
        evidence={"prefill.kl": torch.ones(3)},
        calibration=Calibration(scales, {}, {}, 8, "model", "data"),
        weights={
            name: SimpleNamespace(scale=torch.tensor([number(name)]), digest=f"digest of {name}") for name in WEIGHTS
        },
        seconds=1.0,
    )


def test_a_record_keeps_all_that_a_result_says(result):
    provenance = {"machine": "cpu-test"}
    record = record_of(result, provenance)
    assert record == Record(
        case_id="m/running_max/1x1",
        settings=result.settings,
        metrics=result.metrics,
        evidence=result.evidence,
        artefacts=record.artefacts,
        provenance=provenance,
    )
    assert record.artefacts.digests == {name: f"digest of {name}" for name in WEIGHTS}
    assert record.protocol == result.protocol


def test_what_only_a_stored_result_has_is_empty_in_a_fresh_one(result):
    record = record_of(result, {})
    assert (record.noise, record.restated, record.rest, record.gone) == (Noise(), {}, {}, ())
    assert (record.accepted, record.rest_digest) == ("", "")


def test_scales_stand_flat_in_forward_order_and_weights_before_the_sites_of_their_layer(result):
    scales = record_of(result, {}).artefacts.scales
    assert list(scales) == IN_ORDER
    expected = {name: [number(name)] for name in IN_ORDER} | {"lm_head:input": [1.0, 3.0, 2.0, 4.0]}
    assert {name: scale.tolist() for name, scale in scales.items()} == expected
    assert all(scale.is_contiguous() for scale in scales.values())


def test_sites_are_what_has_a_scale_and_no_integers(result):
    assert record_of(result, {}).sites == [name for name in IN_ORDER if name in SITES]


def test_the_hash_of_the_artefacts_tells_every_change_of_them(record):
    scales, digests = dict(record.artefacts.scales), dict(record.artefacts.digests)
    first = next(iter(scales))
    others = [
        Artefacts(scales | {first: scales[first] * 2}, digests),
        Artefacts({f"{name}x" if name == first else name: scale for name, scale in scales.items()}, digests),
        Artefacts(dict(reversed(scales.items())), digests),
        Artefacts(scales, digests | {first: "other"}),
        Artefacts(scales, {f"{name}x" if name == first else name: digest for name, digest in digests.items()}),
    ]
    found = {replace(record, artefacts=artefacts).artefact_digest for artefacts in (record.artefacts, *others)}
    assert len(found) == 6
    assert {len(digest) for digest in found} == {16}
