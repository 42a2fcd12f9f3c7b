"""The second count of a row's numbers: by hand, against the first, and what it catches."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from quambench.gate.recount import miscounted, recounted
from quambench.gate.verdicts import Status, judge
from quambench.metrics import METRICS, Measurement


def column(*values):
    return torch.tensor(values, dtype=torch.float64)


def test_by_hand():
    """Two documents of two windows and one: means 1.5 and 3 over equal weights, residuals -1 and 1 around 2."""
    evidence = {"prefill.kl": column(1.0, 2.0, 3.0), "prefill.tokens": column(1.0, 1.0, 1.0)}
    evidence["prefill.document"] = torch.tensor([4, 4, 7], dtype=torch.int32)
    value, error = recounted(evidence)["kl"]
    assert value == 2.0
    assert error == pytest.approx(math.sqrt(2 / 1 * (1 + 1)) / 3)


def test_one_document_has_no_standard_error():
    evidence = {"prefill.kl": column(1.0, 2.0), "prefill.tokens": column(1.0, 1.0)}
    evidence["prefill.document"] = torch.zeros(2, dtype=torch.int32)
    assert math.isnan(recounted(evidence)["kl"][1])


def test_both_counts_agree_on_every_metric_that_the_second_knows(record):
    counted = recounted(record.evidence)
    assert miscounted(record.metrics, record.evidence) is None
    with_error = {n for n, m in record.metrics.items() if math.isfinite(m.standard_error)}
    assert with_error <= set(counted), "a metric with a standard error that nothing counts again"
    assert set(counted) <= set(METRICS)


def test_recall_is_counted_by_sequences(record):
    evidence = dict(record.evidence) | {
        "recall.associative.right": torch.tensor([3, 1, 2], dtype=torch.int32),
        "recall.associative.right_float": torch.tensor([4, 4, 4], dtype=torch.int32),
        "recall.associative.asked": torch.tensor([4, 4, 4], dtype=torch.int32),
    }
    metrics = {n: m.measure(evidence) for n, m in METRICS.items()}
    assert metrics["recall_associative"].value == 0.5
    assert miscounted(metrics, evidence) is None
    assert recounted(evidence)["recall_associative"][1] == pytest.approx(metrics["recall_associative"].standard_error)


@pytest.mark.parametrize("name", ["kl", "loss_rise", "decode_gap", "accuracy", "perplexity", "bits_per_byte", "kl_p99"])
@pytest.mark.parametrize("part", ["value", "standard_error"])
def test_a_number_that_its_evidence_contradicts_is_an_error_that_names_the_metric(record, name, part):
    measured = record.metrics[name]
    wrong = replace(measured, **{part: getattr(measured, part) * 1.01})
    new = replace(record, metrics=dict(record.metrics) | {name: wrong})
    verdict = judge(new, record, 1)
    assert (verdict.status, verdict.place) == (Status.ERROR, name)
    assert "its evidence gives" in verdict.reason


def test_standard_errors_over_windows_are_noticed(record):
    """A careless clustering: each window its own document. The evidence still says whose window it is."""
    kl, tokens = record.evidence["prefill.kl"], record.evidence["prefill.tokens"]
    n, mean = len(kl), (kl.sum() / tokens.sum()).item()
    over_windows = ((n / (n - 1) * (kl - mean * tokens).square().sum()).sqrt() / tokens.sum()).item()
    wrong = Measurement(mean, over_windows)
    assert miscounted(dict(record.metrics) | {"kl": wrong}, record.evidence)[0] == "kl"
