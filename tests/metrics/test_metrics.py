"""Each metric on evidence small enough to work by hand."""

from __future__ import annotations

import math
import sys

import pytest
import torch

from quambench.core.errors import UnknownName
from quambench.metrics import METRICS, metrics_of


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
    "sites.accumulated": torch.tensor([[0.05, 0.15], [0.0015, 0.0005]], dtype=torch.float64),
}
EVIDENCE |= {
    "recall.associative.right": torch.tensor([3, 1]), "recall.associative.right_float": torch.tensor([4, 4]),
    "recall.induction.right": torch.tensor([1, 0]), "recall.induction.right_float": torch.tensor([1, 1]),
    "recall.selective_copy.right": torch.tensor([0, 0]), "recall.selective_copy.right_float": torch.tensor([2, 1]),
    "recall.associative.asked": torch.tensor([4, 4]), "recall.induction.asked": torch.tensor([1, 1]),
    "recall.selective_copy.asked": torch.tensor([2, 2]),
    "long.state_error": torch.tensor(
        [[[0.1, 0.3], [7.0, 9.0], [0.2, 0.6]], [[0.3, 0.5], [5.0, 2.0], [0.4, 1.0]]], dtype=torch.float64
    ),
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
    missing, gone = sorted(METRICS.keys() - BY_HAND.keys()), sorted(BY_HAND.keys() - METRICS.keys())
    assert not missing, f"work out {missing[0]} of EVIDENCE above by hand, and write the number into BY_HAND"
    assert not gone, f"no metric is called {gone[0]} any more: take it out of BY_HAND"


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


# sqrt(2 * (e1^2 + e2^2)) over the sum of weights, e the residuals of two documents, windows or sequences.
ERRORS_BY_HAND = {
    "perplexity": math.exp(2.0),  # the loss's times the perplexity: residuals -2 and 2, sqrt(2 * 8) / 4 = 1
    "ppl_ratio": 0.0,
    "decode_ppl_ratio": 0.0,
    "bits_per_byte": 0.0,
    "loss_rise": 0.0,
    "kl": 0.1,  # residuals -0.2 and 0.2
    "decode_kl": 0.1,
    **{f"{phase}kl_{q}": v for phase in ("", "decode_") for q, v in zip(QUANTILES, (0.0, 0.0, 0.1, 0.2), strict=True)},
    "decode_gap": 0.05,
    "agreement": 0.25,
    "decode_agreement": 0.25,
    "accuracy": 0.0,  # each document has one right of two: windows alone would say 0.29
    "accuracy_float": 0.25,
    "flips_to_wrong": 0.0,
    "flips_to_right": 0.25,
    "recall_associative": 0.25,
    "recall_associative_float": 0.0,
    "recall_induction": 0.5,
    "recall_induction_float": 0.0,
    "recall_selective_copy": 0.0,
    "recall_selective_copy_float": 0.25,
    "state_error": 0.25,
    "state_error_growth": 0.25,  # ratios 1.5 and 2
}


@pytest.mark.parametrize("name", sorted(METRICS))
def test_standard_errors_by_hand(name):
    wanted = ERRORS_BY_HAND.get(name, math.nan)  # of a count or an extreme there is none
    found = METRICS[name].measure(EVIDENCE).standard_error
    assert found == pytest.approx(wanted, rel=1e-12, abs=1e-15, nan_ok=True)  # few float64 roundings


@pytest.mark.parametrize("name", sorted(METRICS))
def test_what_is_not_measured_has_no_error_either(name):
    unasked = {k: v for k, v in EVIDENCE.items() if not k.startswith(("recall.", "long.", "items."))}
    unasked |= {"prefill.bytes": column(math.nan, math.nan), "sites.range_used": column(math.nan, math.nan)}
    del unasked["sites.range_wasted"]
    found = METRICS[name].measure(unasked)
    assert math.isnan(found.standard_error) or not math.isnan(found.value)


def test_the_error_of_three_documents():
    # Residuals 1, 1 and -2 around a mean of 2: sqrt(3 / 2 * 6) / 3 = 1.
    three = {"prefill.kl": column(3.0, 3.0, 0.0), "prefill.tokens": column(1.0, 1.0, 1.0)}
    three |= {"prefill.document": torch.tensor([5, 1, 3])}
    assert METRICS["kl"].measure(three).standard_error == pytest.approx(1.0)


@pytest.mark.parametrize("name", ["bits_per_byte", "accuracy", "recall_induction", "state_error"])
def test_terms_of_what_is_not_asked_are_none_so_that_nothing_is_compared(name):
    unasked = {k: v for k, v in EVIDENCE.items() if not k.startswith(("recall.", "long.", "items."))}
    found = METRICS[name].terms(unasked | {"prefill.bytes": column(math.nan, math.nan)})
    assert {part.shape for part in (found.values, found.weights, found.documents)} == {(0,)}
    assert found.values.dtype == found.weights.dtype == torch.float64


def test_one_document_alone_has_no_error():
    alone = EVIDENCE | {"prefill.document": torch.tensor([3, 3])}
    assert METRICS["kl"].measure(alone).value == METRICS["kl"].measure(EVIDENCE).value
    assert math.isnan(METRICS["kl"].measure(alone).standard_error)


EXTREMES = (
    "worst_local_sqnr", "worst_accumulated_sqnr", "most_clipped", "least_range_used", "range_wasted", "n_scales",
    "scale_bytes", "model_bytes", "state_error_growth",
)  # fmt: skip
OF_KL = tuple(f"{phase}kl_{q}" for phase in ("", "decode_") for q in QUANTILES)
LOGARITHMIC = ("perplexity", "ppl_ratio", "decode_ppl_ratio")


@pytest.mark.parametrize("name", sorted(METRICS))
def test_two_results_are_paired_by_the_terms_that_make_the_number(name):
    metric = METRICS[name]
    if name in (*EXTREMES, *OF_KL):
        assert metric.terms is None, f"{name} has terms: take it out of EXTREMES, so that they are compared with it"
    elif metric.terms is None:
        assert name not in STATED, f"{name} has lost its terms, and two results of it can no longer be paired"
    else:
        value = metric.measure(EVIDENCE).value
        terms = metric.terms(EVIDENCE)
        assert (terms.values.dtype, terms.weights.dtype) == (torch.float64, torch.float64)
        mean = terms.mean()
        assert mean == pytest.approx(math.log(value) if name in LOGARITHMIC else value, rel=1e-12)


def test_flips_by_hand():
    # Of seven items: right in both, three right in the quantized model alone, two in the float model alone, neither.
    items = {
        "items.correct": torch.tensor([1, 1, 1, 1, 0, 0, 0], dtype=torch.uint8),
        "items.correct_float": torch.tensor([1, 0, 0, 0, 1, 1, 0], dtype=torch.uint8),
        "items.document": torch.arange(7),
    }
    wanted = {"accuracy": 4 / 7, "accuracy_float": 3 / 7, "flips_to_right": 3 / 7, "flips_to_wrong": 2 / 7}
    assert {name: METRICS[name].measure(items).value for name in wanted} == pytest.approx(wanted, rel=1e-12)


def test_a_site_that_wastes_nothing_because_it_stays_float_is_left_out_of_the_mean():
    some = EVIDENCE | {"sites.range_wasted": column(0.5, math.nan), "sites.range_used": column(0.5, math.nan)}
    assert METRICS["range_wasted"].measure(some).value == 0.5
    assert METRICS["least_range_used"].measure(some).value == 0.5


TASKS = ("associative", "induction", "selective_copy")
SHARES_UP = (
    "agreement", "decode_agreement", "accuracy", "accuracy_float", "flips_to_right",
    *(f"recall_{task}{twin}" for task in TASKS for twin in ("", "_float")),
)  # fmt: skip
STATED = {  # unit, better
    "perplexity": ("ppl", "lower"),
    "ppl_ratio": ("ratio", "lower"),
    "decode_ppl_ratio": ("ratio", "lower"),
    "bits_per_byte": ("bits/byte", "lower"),
    **dict.fromkeys(("loss_rise", "kl", "decode_kl", "decode_gap"), ("nats/token", "lower")),
    **{f"{phase}kl_{q}": ("nats", "lower") for phase in ("", "decode_") for q in QUANTILES},
    **dict.fromkeys(SHARES_UP, ("share", "higher")),
    **dict.fromkeys(("flips_to_wrong", "most_clipped", "range_wasted"), ("share", "lower")),
    "least_range_used": ("share", "higher"),
    **dict.fromkeys(("worst_local_sqnr", "worst_accumulated_sqnr"), ("dB", "higher")),
    **dict.fromkeys(("state_error", "state_error_growth"), ("ratio", "lower")),
    "n_scales": ("scales", "lower"),
    **dict.fromkeys(("scale_bytes", "model_bytes"), ("bytes", "lower")),
}


def test_every_metric_states_what_it_is():
    """A direction turned round would call worse better; a version makes stored numbers stale."""
    found = {name: (m.unit, m.better) for name, m in METRICS.items()}
    unstated = sorted(found.keys() - STATED.keys())
    assert not unstated, f"write {unstated[0]}: {found[unstated[0]]} into STATED, so that a change of it shows"
    assert found == STATED
    assert {name: m.name for name, m in METRICS.items()} == {name: name for name in STATED}
    assert {m.version for m in METRICS.values()} == {1}


def test_an_unknown_metric_is_named():
    with pytest.raises(UnknownName, match=r"no metric named 'kll'\. Did you mean 'kl'\?.* in quambench/metrics/$"):
        METRICS["kll"]


def test_metrics_of_a_result_are_all_that_are_known_and_its_tasks():
    assert metrics_of(EVIDENCE) == dict(METRICS)
    of_task = {f"task.arc.{c}": column(1.0) for c in ("value", "log_likelihood", "higher_is_better", "weight")}
    assert set(metrics_of(EVIDENCE | of_task)) == {*METRICS, "task_arc", "task_arc_float", "task_arc_nats"}


def test_a_perplexity_is_a_number_as_far_as_floats_have_one():
    """exp of 709.78 nats is the last; the bound itself is beyond."""
    bound = math.log(sys.float_info.max)
    for nats, value in ((709.0, math.exp(709.0)), (bound, math.inf)):
        one = {"prefill.nll": torch.tensor([nats], dtype=torch.float64), "prefill.tokens": torch.ones(1)}
        one["prefill.document"] = torch.zeros(1, dtype=torch.int32)
        assert METRICS["perplexity"].measure(one).value == value


def test_a_model_gone_astray_has_an_infinite_perplexity_and_no_traceback():
    lost = EVIDENCE | {"prefill.nll": column(2000.0, 2000.0)}  # 1,000 nats a token; exp overflows at 709.8
    assert METRICS["perplexity"].measure(lost).value == math.inf
    assert METRICS["ppl_ratio"].measure(lost).value == math.inf
