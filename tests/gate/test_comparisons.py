"""Paired comparisons of gated metrics: what counts at the least, what the level is split over, what is refused."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from quambench.core.errors import NonFinite
from quambench.gate.comparisons import Comparison, compare, least_change
from quambench.gate.noise import Noise, terms_of
from quambench.gate.stats import Paired, paired
from quambench.gate.verdicts import Status, judge

LEVEL = 1e-3


def of(metric: str, found: tuple[Comparison, ...]) -> Comparison:
    return next(c for c in found if c.metric == metric)


@pytest.mark.parametrize(
    ("worse", "floor", "margin", "unsure"),
    [(0.3, 0.2, 0.1, True), (0.15, 0.2, 0.1, False), (0.15, 0.1, 0.2, False), (0.2, 0.2, 0.2, False)],
)
def test_unsure_is_what_is_worse_by_more_than_noise_and_its_own_error(worse, floor, margin, unsure):
    found = Comparison("kl", Paired(worse, 0.1, 0.01, 0.3, 6), worse, floor, margin, significant=False)
    assert found.unsure == unsure
    assert not replace(found, significant=True).unsure
    assert found.suspicious is False


def test_a_number_that_cannot_be_compared_is_refused_by_its_name():
    sure = Comparison("kl", Paired(0.0, 0.1, 1.0, 0.3, 6), 0.0, 0.1, 0.1, significant=False)
    for changed, what in (
        (replace(sure, worse=float("inf")), "kl"),
        (replace(sure, floor=float("nan")), "the margin of kl"),
        (replace(sure, margin=float("inf")), "the margin of kl"),
    ):
        with pytest.raises(NonFinite, match=f"^{what} is (inf|nan), which cannot be compared$"):
            _ = changed.unsure


def test_a_mean_that_is_no_number_any_more_is_refused_by_its_name(record, change):
    with_evidence, *_ = change
    kl = record.evidence["prefill.kl"].clone()
    kl[0] = float("nan")
    new = with_evidence(record, prefill__kl=kl).evidence
    with pytest.raises(NonFinite, match=r"^kl is nan, which cannot be compared$"):
        compare(record.evidence, new, record.noise, LEVEL)


def test_what_could_be_detected_is_told_at_the_share_that_each_metric_has_of_the_level(record, change):
    with_evidence, *_ = change
    bumps = torch.linspace(0, 0.1, 12, dtype=torch.float64)
    new = with_evidence(record, prefill__kl=record.evidence["prefill.kl"] + bumps).evidence
    terms = terms_of("kl", record.evidence), terms_of("kl", new)
    for names in (["kl"], ["kl", "agreement"], ["kl", "agreement", "accuracy", "loss_rise"]):
        found = compare(record.evidence, new, record.noise, LEVEL, names)
        assert {c.metric for c in found} == set(names)
        assert of("kl", found).paired == paired(*terms, LEVEL / len(names))


def test_where_nothing_says_how_much_is_noise_and_nothing_its_error_any_change_counts(record, change):
    """A single document gives no standard error, and a metric that was not gated when it was stored has no floor."""
    with_evidence, *_ = change
    old = with_evidence(record, prefill__document=torch.zeros(12, dtype=torch.int32))
    new = with_evidence(old, prefill__kl=record.evidence["prefill.kl"] + 0.5)
    found = of("kl", compare(old.evidence, new.evidence, Noise(), LEVEL, ["kl"]))
    assert (found.floor, found.margin, found.significant) == (0.0, 0.0, True)


@pytest.mark.parametrize("empty", [False, True], ids=["NaN", "nothing"])
def test_what_was_not_measured_then_is_not_compared(record, change, empty):
    """An older schema's NaN in every window; a text without items."""
    with_evidence, *_ = change
    if empty:
        none = {"correct": torch.uint8, "correct_float": torch.uint8, "document": torch.int32}
        old = with_evidence(record, **{f"items__{name}": torch.empty(0, dtype=dtype) for name, dtype in none.items()})
        new, metric = old, "accuracy"
    else:
        old = with_evidence(record, decode__kl_prefill=torch.full((12,), float("nan"), dtype=torch.float64))
        new, metric = record, "decode_gap"
    assert metric in {c.metric for c in compare(record.evidence, record.evidence, record.noise, LEVEL)}
    assert metric not in {c.metric for c in compare(old.evidence, new.evidence, record.noise, LEVEL)}


def test_one_item_alone_is_compared(record, change):
    with_evidence, *_ = change
    names = ("correct", "correct_float", "document")
    one = with_evidence(record, **{f"items__{name}": record.evidence[f"items.{name}"][:1] for name in names})
    assert of("accuracy", compare(one.evidence, one.evidence, record.noise, LEVEL)).paired.n == 1


@pytest.mark.parametrize("larger", ["kl", "decode_kl"])
def test_the_least_that_counts_is_a_thousandth_of_a_metrics_size_and_of_kl_where_that_is_in_nats(record, larger):
    """By hand: eight windows of four tokens, each window's terms the same; kl or decode_kl is largest."""
    weights, documents = torch.full((8,), 4.0, dtype=torch.float64), torch.arange(8, dtype=torch.int32)
    per_token = {"kl": 0.25, "decode_kl": 0.5} if larger == "decode_kl" else {"kl": 0.5, "decode_kl": 0.25}

    def windows(size):
        return torch.full((8,), 4 * size, dtype=torch.float64)

    evidence = dict(record.evidence) | {"long.state_error": torch.full((2, 3, 8), 0.125, dtype=torch.float64)}
    for phase, kl in (("prefill", per_token["kl"]), ("decode", per_token["decode_kl"])):
        evidence |= {f"{phase}.tokens": weights, f"{phase}.document": documents, f"{phase}.kl": windows(kl)}
        evidence |= {f"{phase}.nll": windows(2.0), f"{phase}.nll_float": windows(2.0), f"{phase}.agree": windows(1.0)}
    evidence["decode.kl_prefill"] = windows(0.0625)
    found = least_change(evidence)
    in_nats = ("loss_rise", "kl", "decode_ppl_ratio", "decode_kl", "decode_gap")
    assert {n: v for n, v in found.items() if v} == pytest.approx(
        dict.fromkeys(in_nats, 5e-4) | {"state_error": 1.25e-4}
    )
    assert found["agreement"] == found["accuracy"] == found["recall_associative"] == 0.0


def test_two_looks_have_half_of_the_rows_level_each_and_not_less(record, change):
    """All of thirty items turn wrong: p = 2^-29, against a share in a file of very many cases."""
    with_evidence, *_ = change
    old = with_evidence(record, items__correct=torch.ones(30, dtype=torch.uint8))
    new = with_evidence(old, items__correct=torch.zeros(30, dtype=torch.uint8))
    old = replace(old, noise=replace(record.noise, arrays={}))
    n_metrics = len(judge(new, old, 1).comparisons)
    most = 1e-3 * 2**29 / n_metrics  # cases for which a single look would just convict
    for rest, cases, status in (
        ({}, 0.99 * most, Status.REGRESSED),
        ({}, 1.01 * most, Status.SAME),
        (old.evidence, 0.49 * most, Status.REGRESSED),
        (old.evidence, 0.51 * most, Status.SAME),
    ):
        assert judge(new, replace(old, rest=rest), int(cases)).status is status
