"""Each metric on evidence small enough to work by hand."""

from __future__ import annotations

import math

import pytest
import torch

from quambench.metrics import METRICS


def column(*values):
    return torch.tensor(values, dtype=torch.float64)


EVIDENCE = {
    "prefill.bytes": column(4.0, 12.0),
    "prefill.nll": column(2.0, 6.0),
    "prefill.nll_float": column(1.0, 5.0),
    "prefill.kl": column(0.2, 0.6),
    "prefill.agree": column(1.0, 2.0),
    "prefill.tokens": column(2.0, 2.0),
    "prefill.document": torch.tensor([0, 1]),
    "prefill.kl_quantiles": torch.tensor([[0.1, 0.0], [0.2, 0.0], [0.5, 0.1], [0.9, 0.2]], dtype=torch.float64),
    "decode.kl_prefill": column(0.1, 0.3),
    "items.correct": torch.tensor([1, 0, 0, 1], dtype=torch.uint8),
    "items.correct_float": torch.tensor([1, 1, 1, 0], dtype=torch.uint8),
    "items.document": torch.tensor([0, 0, 1, 1]),
    "sites.local_mse": column(0.01, 1.0),
    "sites.signal": column(1.0, 10.0),
    "sites.clipped": column(0.0, 0.25),
    "sites.accumulated": torch.tensor([[0.1, 0.1], [0.001, 0.001]], dtype=torch.float64),
}
EVIDENCE |= {
    "recall.associative.right": torch.tensor([3, 1]), "recall.associative.right_float": torch.tensor([4, 4]),
    "recall.induction.right": torch.tensor([1, 0]), "recall.induction.right_float": torch.tensor([1, 1]),
    "recall.selective_copy.right": torch.tensor([0, 0]), "recall.selective_copy.right_float": torch.tensor([2, 1]),
    "recall.associative.asked": torch.tensor([4, 4]), "recall.induction.asked": torch.tensor([1, 1]),
    "recall.selective_copy.asked": torch.tensor([2, 2]),
    "long.state_error": torch.tensor([[[0.1, 0.3], [0.2, 0.6]], [[0.3, 0.5], [0.4, 1.0]]], dtype=torch.float64),
    "scales.count": torch.tensor(23), "scales.bytes": torch.tensor(92), "model.bytes": torch.tensor(1000),
    "sites.range_used": column(0.5, 1.2), "sites.range_wasted": column(0.5, 0.1),
}  # fmt: skip
EVIDENCE |= {k.replace("prefill", "decode"): v for k, v in EVIDENCE.items() if k.startswith("prefill")}

QUANTILES = {"p50": 0.1, "p90": 0.2, "p99": 0.5, "p999": 0.9}
BY_HAND = {
    "perplexity": math.exp(2.0),  # 8 nats over 4 tokens
    "ppl_ratio": math.exp(0.5),
    "decode_ppl_ratio": math.exp(0.5),
    "bits_per_byte": 8 / math.log(2) / 16,
    "loss_rise": 0.5,
    "kl": 0.2,
    "decode_kl": 0.2,
    **{f"{phase}kl_{q}": v for phase in ("", "decode_") for q, v in QUANTILES.items()},
    "decode_gap": 0.1,  # 0.4 nats over 4 tokens
    "range_wasted": 0.3,
    "recall_associative": 0.5,
    "recall_associative_float": 1.0,
    "recall_induction": 0.5,
    "recall_induction_float": 1.0,
    "recall_selective_copy": 0.0,
    "recall_selective_copy_float": 0.75,
    "state_error": (0.3 + 0.8) / 2,  # last checkpoint, layers averaged: (0.2 + 0.4) / 2 and (0.6 + 1.0) / 2
    "state_error_growth": (0.3 / 0.2 + 0.8 / 0.4) / 2,
    "n_scales": 23,
    "scale_bytes": 92,
    "model_bytes": 1000,
    "least_range_used": 0.5,
    "agreement": 0.75,
    "decode_agreement": 0.75,
    "accuracy": 0.5,
    "accuracy_float": 0.75,
    "flips_to_wrong": 0.5,
    "flips_to_right": 0.25,
    "worst_local_sqnr": 10.0,
    "worst_accumulated_sqnr": 10.0,
    "most_clipped": 0.25,
}


def test_every_metric_has_an_example():
    assert set(BY_HAND) == set(METRICS)


@pytest.mark.parametrize("name", BY_HAND)
def test_by_hand(name):
    assert METRICS[name].measure(EVIDENCE).value == pytest.approx(BY_HAND[name], rel=1e-12)  # few float64 roundings


NOT_OF_RECALL = ("accuracy", "accuracy_float", "flips_to_wrong", "flips_to_right", "bits_per_byte")


@pytest.mark.parametrize("name", sorted(METRICS))
def test_what_the_data_do_not_ask_for_is_unknown_not_zero(name):
    prose = {k: v for k, v in EVIDENCE.items() if not k.startswith(("recall.", "long."))}
    made = {k: v for k, v in EVIDENCE.items() if not k.startswith("items.")} | {
        "prefill.bytes": column(math.nan, math.nan)
    }
    unknown_in_prose = name.startswith(("recall_", "state_error"))
    assert math.isnan(METRICS[name].measure(prose).value) == unknown_in_prose
    assert math.isnan(METRICS[name].measure(made).value) == (name in NOT_OF_RECALL)


ABOUT_GRIDS = ("worst_local_sqnr", "most_clipped", "least_range_used", "range_wasted")


@pytest.mark.parametrize("name", sorted(METRICS))
def test_without_any_grid_what_grids_do_is_unknown_neither_zero_nor_infinite(name):
    none = torch.full_like(EVIDENCE["sites.range_used"], math.nan)
    floats = EVIDENCE | {
        "sites.local_mse": torch.zeros_like(none), "sites.clipped": torch.zeros_like(none),
        "sites.range_used": none, "sites.range_wasted": none,
    }  # fmt: skip
    assert math.isnan(METRICS[name].measure(floats).value) == (name in ABOUT_GRIDS)


def test_a_site_that_stays_float_is_not_the_worst():
    kept = {k: v.clone() for k, v in EVIDENCE.items() if k.startswith("sites.")}
    worst = METRICS["worst_local_sqnr"].measure(EVIDENCE).value
    best = int((EVIDENCE["sites.signal"] / EVIDENCE["sites.local_mse"]).argmax())
    kept["sites.local_mse"][best], kept["sites.range_used"][best] = 0.0, math.nan
    assert METRICS["worst_local_sqnr"].measure(EVIDENCE | kept).value == worst


def test_standard_errors_by_hand():
    # kl: values 0.2 and 0.6 over weights 2 and 2: residuals -0.2 and 0.2, sqrt(2 * 0.08) / 4 = 0.1.
    assert METRICS["kl"].measure(EVIDENCE).standard_error == pytest.approx(0.1, rel=1e-12)
    # Perplexity's error is the loss's times the perplexity: residuals -2 and 2, sqrt(2 * 8) / 4 = 1.
    assert METRICS["perplexity"].measure(EVIDENCE).standard_error == pytest.approx(math.exp(2.0), rel=1e-12)


@pytest.mark.parametrize("name", sorted(METRICS))
def test_every_metric_states_what_it_is(name):
    metric = METRICS[name]
    assert metric.name == name
    assert metric.unit
    assert metric.better in ("lower", "higher")
    assert metric.version >= 1


def test_a_model_gone_astray_has_an_infinite_perplexity_and_no_traceback():
    lost = EVIDENCE | {"prefill.nll": column(2000.0, 2000.0)}  # 1,000 nats a token; exp overflows at 709.8
    assert METRICS["perplexity"].measure(lost).value == math.inf
    assert METRICS["ppl_ratio"].measure(lost).value == math.inf
