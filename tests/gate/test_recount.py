"""The second count of a row's numbers: by hand, against the first, and what it catches."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from quambench.gate.recount import miscounted, recounted
from quambench.gate.verdicts import Status, judge
from quambench.metrics import METRICS, Measurement

NAN = float("nan")


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
    for said, right in ((1.5, True), (1.50001, False)):
        assert (miscounted({"kl": Measurement(said, NAN)}, evidence) is None) == right
    assert miscounted({"kl": Measurement(1.5, 0.0)}, evidence) is not None
    small = evidence | {"prefill.kl": column(1e-9, 2e-9)}  # no error says how small is small
    assert miscounted({"kl": Measurement(1e-9, NAN)}, small) is not None


def of_one_size(value: float, spread: float = 0.0) -> dict[str, torch.Tensor]:
    """Two documents of a window each, whose mean is `value` and its standard error `spread`."""
    return {
        "prefill.kl": column(value - spread, value + spread),
        "prefill.tokens": column(1.0, 1.0),
        "prefill.document": torch.tensor([0, 1]),
    }


@pytest.mark.parametrize("value", [3.0, 3e-9])
def test_the_tolerance_in_figures(value):
    """A millionth, of whatever size."""
    for off, right in ((5e-7, True), (5e-6, False)):
        said = {"kl": Measurement(value * (1 + off), 0.0)}
        assert (miscounted(said, of_one_size(value)) is None) == right


def test_a_value_near_zero_is_held_to_its_errors_size():
    evidence = of_one_size(0.0, spread=2.0)
    assert recounted(evidence)["kl"] == (0.0, 2.0)
    assert miscounted({"kl": Measurement(1e-7, 2.0)}, evidence) is None
    assert miscounted({"kl": Measurement(1e-5, 2.0)}, evidence) is not None
    assert miscounted({"kl": Measurement(0.0, 2.00001)}, evidence) == (
        "kl",
        "kl's standard error is said to be 2, and its evidence gives 2",
    )


def test_a_number_that_is_not_finite_is_no_number_that_is():
    for said in (NAN, math.inf, -math.inf):
        assert miscounted({"kl": Measurement(said, 0.0)}, of_one_size(1.0)) is not None
        assert miscounted({"kl": Measurement(1.0, said)}, of_one_size(1.0)) is not None


def test_infinity_is_itself_and_no_number():
    """A model gone astray: its infinite loss is said as it is counted, and whatever else is said is wrong."""
    evidence = of_one_size(1.0) | {"prefill.kl": column(math.inf, math.inf)}
    assert miscounted({"kl": Measurement(math.inf, NAN)}, evidence) is None
    for said in (1.0, -math.inf, NAN):
        assert miscounted({"kl": Measurement(said, NAN)}, evidence) is not None


def test_one_that_is_not_said_does_not_end_the_count():
    evidence = of_one_size(1.0) | {"prefill.agree": column(1.0, 0.0)}
    assert miscounted({"agreement": Measurement(0.75, 0.5)}, evidence)[0] == "agreement"


def test_evidence_of_unequal_lengths_is_none():
    short = of_one_size(1.0) | {"prefill.document": torch.tensor([0, 1, 1])}
    losses = {"decode.nll": column(1.0, 2.0, 3.0), "decode.nll_float": column(1.0, 2.0)}
    losses |= {"decode.tokens": column(1.0, 1.0), "decode.document": torch.tensor([0, 1])}
    quantiles = {"prefill.kl_left_out": torch.ones(3, 2), "prefill.kl_quantiles": torch.ones(3, 2)}
    for evidence in (short, losses, quantiles):
        with pytest.raises(ValueError, match="zip"):
            recounted(evidence)


def test_quantiles_by_hand():
    """Left out in turn they are 1 and 3: of two documents sqrt(1/2 * 2) = 1; of one no error is known."""
    of_two = torch.tensor([[1.0, 3.0]]).expand(4, 2)
    stored = torch.tensor([[0.5, 9.0], [1.5, 9.0], [2.5, 9.0], [3.5, 9.0]])
    found = recounted({"decode.kl_left_out": of_two, "decode.kl_quantiles": stored})
    assert found == {f"decode_kl_{p}": (x, 1.0) for p, x in (("p50", 0.5), ("p90", 1.5), ("p99", 2.5), ("p999", 3.5))}
    alone = recounted({"decode.kl_left_out": of_two[:, :1], "decode.kl_quantiles": stored})
    assert all(math.isnan(error) for _, error in alone.values())


def test_what_no_float_holds_is_not_counted():
    evidence = {"prefill.nll": column(700.0, 700.0), **of_one_size(0.0)}
    assert recounted(evidence)["perplexity"] == (math.exp(700), 0.0)
    assert "perplexity" not in recounted(evidence | {"prefill.nll": column(800.0, 800.0)})


def test_both_counts_agree_on_every_metric_that_the_second_knows(record):
    counted = recounted(record.evidence)
    assert miscounted(record.metrics, record.evidence) is None
    with_error = {n for n, m in record.metrics.items() if math.isfinite(m.standard_error)}
    assert with_error <= set(counted), "a metric with a standard error that nothing counts again"
    assert set(counted) <= set(METRICS)


def test_recall_is_counted_by_sequences(record):
    evidence = dict(record.evidence) | {
        "recall.associative.asked": torch.tensor([4, 4, 4], dtype=torch.int32),
        "recall.associative.right": torch.tensor([3, 1, 2], dtype=torch.int32),
        "recall.associative.right_float": torch.tensor([4, 4, 1], dtype=torch.int32),
    }
    assert recounted(evidence)["recall_associative_float"][0] == 0.75
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
