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
    "prefill.kl_p99": column(0.5, 0.1),
    "items.correct": torch.tensor([1, 0, 0, 1], dtype=torch.uint8),
    "items.correct_float": torch.tensor([1, 1, 1, 0], dtype=torch.uint8),
    "items.document": torch.tensor([0, 0, 1, 1]),
    "sites.local_mse": column(0.01, 1.0),
    "sites.signal": column(1.0, 10.0),
    "sites.clipped": column(0.0, 0.25),
    "sites.accumulated": torch.tensor([[0.1, 0.1], [0.001, 0.001]], dtype=torch.float64),
}
EVIDENCE |= {k.replace("prefill", "decode"): v for k, v in EVIDENCE.items() if k.startswith("prefill")}

BY_HAND = {
    "perplexity": math.exp(2.0),  # 8 nats over 4 tokens
    "ppl_ratio": math.exp(0.5),
    "decode_ppl_ratio": math.exp(0.5),
    "bits_per_byte": 8 / math.log(2) / 16,
    "loss_rise": 0.5,
    "kl": 0.2,
    "decode_kl": 0.2,
    "kl_p99": 0.5,
    "decode_kl_p99": 0.5,
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
