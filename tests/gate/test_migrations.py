"""Older schemas: what they had is kept under its new name, what they lacked is NaN, other cases stay as they are."""

from __future__ import annotations

import torch

from quambench.gate.migrations import SCHEMA, migrated

SITES = ("layers.0.x_proj:input", "layers.0.ssm_state", "layers.1.x_proj:input", "layers.1.ssm_state")


def of_schema_1(case: str, p99: float) -> tuple[dict, dict]:
    entry = {"noise": {"kl": 0.001}, "weights": {"embedding.weight": "digest"}, "scales": ["embedding.weight", *SITES]}
    arrays = {
        "decode.kl": torch.tensor([0.5, 0.6, 0.7]),
        "decode.state_error": torch.tensor([[1.0, 2.0], [3.0, 4.0]]).double(),
    }
    arrays |= {f"{phase}.kl_p99": torch.tensor([p99, 0.01], dtype=torch.float64) for phase in ("prefill", "decode")}
    return entry, {f"{case}//{name}": array for name, array in arrays.items()}


def test_schema_1_by_hand() -> None:
    (a, arrays), (b, others) = of_schema_1("m/a", 0.1), of_schema_1("m/b", 0.2)
    entries, found = migrated({"m/a": a, "m/b": b}, arrays | others, 1)
    assert {case: entry["noise"] for case, entry in entries.items()} == {
        "m/a": {"means": {"kl": 0.001}, "units": {}, "arrays": {}},
        "m/b": {"means": {"kl": 0.001}, "units": {}, "arrays": {}},
    }
    assert [entry["rest"] for entry in entries.values()] == ["", ""]  # the digest of no second look
    of_a_case = {
        "prefill.kl_quantiles", "decode.kl_quantiles", "decode.kl", "decode.kl_prefill", "decode.accumulated",
        "sites.range_used", "scales.count", "scales.bytes", "model.bytes",
    }  # fmt: skip
    assert set(found) == {f"{case}//{name}" for case in entries for name in of_a_case}
    for case, p99 in (("m/a", 0.1), ("m/b", 0.2)):
        for phase in ("prefill", "decode"):  # rows p50, p90, p99, p999
            quantiles = found[f"{case}//{phase}.kl_quantiles"]
            assert quantiles.shape == (4, 2)
            assert quantiles[2].tolist() == [p99, 0.01]
            assert quantiles[[0, 1, 3]].isnan().all()
        assert found[f"{case}//decode.kl"].tolist() == torch.tensor([0.5, 0.6, 0.7]).tolist()
        accumulated = found[f"{case}//decode.accumulated"]  # a row for each site in order, windows
        assert accumulated.shape == (4, 2)
        assert accumulated[[1, 3]].tolist() == [[1.0, 2.0], [3.0, 4.0]]
        assert accumulated[[0, 2]].isnan().all()
        for name, shape in (
            ("decode.kl_prefill", (3,)),
            ("sites.range_used", (4,)),
            ("scales.count", ()),
            ("scales.bytes", ()),
            ("model.bytes", ()),
        ):
            assert found[f"{case}//{name}"].shape == shape
            assert found[f"{case}//{name}"].isnan().all()


def test_todays_schema_is_left_as_it_is_and_what_came_in_is_never_changed() -> None:
    entry, arrays = of_schema_1("m/a", 0.1)
    entries, found = migrated({"m/a": entry}, arrays, SCHEMA)
    assert entries == {"m/a": entry}
    assert found == arrays
    migrated({"m/a": entry}, arrays, 1)
    assert entry["noise"] == {"kl": 0.001}
    assert set(arrays) == set(found)
