"""Verdicts: every status, every place, and no alarm for what is the same."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
import torch

from quambench.core.errors import NonFinite
from quambench.gate import verdicts
from quambench.gate.comparisons import Comparison, gated
from quambench.gate.findings import Finding
from quambench.gate.noise import SITE_ROWS, Noise
from quambench.gate.record import Artefacts
from quambench.gate.stats import Paired
from quambench.gate.verdicts import SEVERITY, Status, Verdict, judge
from quambench.metrics import METRICS


def ulps(x, n):
    return (x.view(torch.int32) + n).view(torch.float32)


def test_the_same_record_is_the_same(record):
    verdict = judge(record, record, n_cases=1)
    assert verdict.status is Status.SAME
    assert (verdict.place, verdict.reason) == ("", "")
    assert verdict.passes()


def test_statuses_read_as_they_are_named_worst_first():
    ranked = ["ERROR", "REGRESSED", "ORPHAN", "STALE", "INCONCLUSIVE", "DRIFTED", "IMPROVED", "NEW", "SAME"]
    assert [str(status) for status in SEVERITY] == [status.name for status in SEVERITY] == ranked


def test_of_a_row_that_nothing_is_known_of_nothing_is_told():
    assert Verdict("c", Status.NEW) == Verdict(
        "c", Status.NEW, reason="", unit="", place="", metrics=None, stored=None, comparisons=()
    )
    told = Verdict("c", Status.NEW)
    assert (told.portable, told.written, told.suspicious) == (False, False, False)


def test_nothing_stored_is_new_and_fails_with_the_command(record):
    verdict = judge(record, None, n_cases=1)
    says = "no stored baseline; --qb-new-only records it"
    assert verdict == Verdict(record.case_id, Status.NEW, says, metrics=record.metrics)
    assert not verdict.passes(allow_drift=True)


PROBE = Finding("observer/percentile", "scale[0] 0.5 -> 0.25")
PROBE_SAYS = "scale[0] 0.5 -> 0.25 at observer/percentile"


@pytest.mark.parametrize("probe", [None, PROBE], ids=["no probe", "a probe"])
@pytest.mark.parametrize(
    ("what", "status", "place", "says"),
    [
        ("stale", Status.STALE, "", "the stored result measured something else: calib_length 256 -> 128"),
        ("gone", Status.REGRESSED, "prefill.kl", "stored, and not measured any more at prefill.kl"),
        ("broken", Status.ERROR, "prefill.kl", "prefill.kl is not finite any more at prefill.kl"),
        ("rest gone", Status.REGRESSED, "decode.kl", "stored, and not measured any more at decode.kl"),
    ],
)
def test_what_cannot_be_compared_says_why_and_names_the_probe_before_it(record, probe, what, status, place, says):
    old, new, rest = record, record, None
    spoilt = record.evidence["prefill.kl"] * torch.tensor([1.0] * 11 + [torch.inf]).double()
    if what == "stale":
        old = replace(record, settings=dict(record.settings) | {"calib_length": 256})
    elif what == "gone":
        new = without(record, "prefill.kl")
    elif what == "broken":
        new = replace(record, evidence=dict(record.evidence) | {"prefill.kl": spoilt})
    else:
        old, rest = replace(record, rest=record.evidence), without(record, "decode.kl").evidence
    assert judge(new, old, 1, portable=True, probe=probe, rest=rest) == Verdict(
        record.case_id,
        status,
        reason=f"{PROBE_SAYS}; {says}" if probe else says,
        unit=probe.place if probe else "",
        place=place,
        metrics=new.metrics,
        stored=old.metrics,
    )


def test_a_changed_row_holds_both_results_and_all_comparisons(record, change):
    _, with_scale, make_record = change
    old = with_scale(make_record(), "layers.0.ssm_state", torch.tensor([9.0]))
    scale = record.artefacts.scales["layers.0.ssm_state"].item()
    verdict = judge(record, old, 1, portable=True, probe=PROBE)
    assert {c.metric for c in verdict.comparisons} >= {"kl", "accuracy", "decode_gap"}
    assert verdict == Verdict(
        record.case_id,
        Status.DRIFTED,
        f"{PROBE_SAYS}; scale changed (9 -> {scale:.6g}) at layers.0.ssm_state; quality equal to the last bit",
        unit=PROBE.place,
        place="layers.0.ssm_state",
        metrics=record.metrics,
        stored=old.metrics,
        comparisons=verdict.comparisons,
        portable=True,
    )
    assert verdict.metrics is record.metrics
    assert verdict.stored is old.metrics
    assert not judge(record, old, 1).portable


def test_what_a_probe_and_an_artefact_explain_names_no_echo_and_each_alone_does(record, change):
    with_evidence, with_scale, _ = change
    accumulated = with_evidence(record, sites__accumulated=record.evidence["sites.accumulated"] * 2)
    changed = with_scale(accumulated, "layers.0.ssm_state", torch.tensor([9.0]))
    echo = "error inside the INT8 model changed in prefill by 100% at layers.0.x_proj:input"
    assert echo not in judge(changed, record, 1, probe=PROBE).reason
    assert echo in judge(changed, record, 1).reason
    assert echo in judge(accumulated, record, 1, probe=PROBE).reason


def test_every_changed_setting_is_named_and_hashes_short_and_metrics_only_where_both_know_them(record):
    old = {"a": 1, "gone": 2, "same": 3, "data": "0123456789abcdef" * 4, "metric.kl": 1, "metric.of_old": 1}
    new = {"a": 2, "came": 2, "same": 3, "data": "fedcba9876543210" * 4, "metric.kl": 2, "metric.of_new": 1}
    said = "a 1 -> 2, came absent -> 2, data 0123456789ab -> fedcba987654, gone 2 -> absent, metric.kl 1 -> 2"
    assert verdicts.changed_fields(replace(record, settings=old), replace(record, settings=new)) == said
    long = {"a": "x" * 63}, {"a": "y" * 65}
    both = (replace(record, settings=settings) for settings in long)
    assert verdicts.changed_fields(*both) == f"a {'x' * 63} -> {'y' * 65}"


def compared(metric, worse, detectable=0.5, n=6, sure=False, p_value=0.01, error=0.125):
    return Comparison(metric, Paired(worse, error, p_value, detectable, n), worse, 0.1, 0.1, sure)


@pytest.mark.parametrize(
    ("first", "second", "changed", "status", "says"),
    [
        ([], [], False, Status.SAME, ""),
        ([], [], True, Status.DRIFTED, "quality equal to the last bit"),
        ([compared("kl", 0.0, error=0.0)], [], True, Status.DRIFTED, "quality equal to the last bit"),
        (
            [compared("decode_kl", 0.05), compared("kl", 0.0)],
            [],
            True,
            Status.DRIFTED,
            "quality equal as far as n can tell (a KL change of 0.5 nats would show)",
        ),
        (
            [compared("decode_kl", 0.05), compared("kl", 0.0, error=0.0)],
            [],
            True,
            Status.DRIFTED,
            "quality equal as far as n can tell (decode_kl +0.05 ± 0.12, and no KL of prefill)",
        ),
        (
            [compared("kl", 0.5, sure=True), compared("agreement", -0.5, sure=True), compared("accuracy", 0.25)],
            [],
            True,
            Status.REGRESSED,
            "kl +0.5 ± 0.12",
        ),
        ([compared("kl", -0.5, sure=True)], [], False, Status.IMPROVED, "kl -0.5 ± 0.12"),
        (
            [compared(metric, -0.5, sure=True, p_value=p) for metric, p in (("a", 0.3), ("b", 0.1), ("c", 0.2))],
            [],
            False,
            Status.IMPROVED,
            "b -0.5 ± 0.12, c -0.5 ± 0.12",
        ),
        (
            [compared("kl", 0.05)],
            [compared("kl", 0.5, n=90, sure=True)],
            False,
            Status.REGRESSED,
            "kl +0.5 ± 0.12, in a second look at 90 documents or items more",
        ),
        # The clearest of those that are unsure says how many would tell: errors fall with the root of n.
        (
            [compared("kl", 0.25, detectable=0.5), compared("a", 0.5, detectable=0.75, n=7), compared("b", 0.05)],
            [],
            True,
            Status.INCONCLUSIVE,
            "kl +0.25 ± 0.12, a +0.5 ± 0.12: too few to tell; about 16 instead of 7 documents or items would"
            " (try --qb-full)",
        ),
        (
            [compared("kl", 0.25, detectable=float("inf"))],
            [],
            True,
            Status.INCONCLUSIVE,
            "kl +0.25 ± 0.12: too few to tell; a corpus of more documents would tell",
        ),
        ([compared("kl", 0.25)], [], False, Status.SAME, ""),
        # What the last look at a metric leaves unsure is.
        (
            [compared("kl", 0.25), compared("a", 0.05, error=0.0)],
            [compared("kl", 0.05)],
            True,
            Status.DRIFTED,
            "quality equal as far as n can tell (a KL change of 0.5 nats would show)",
        ),
        (
            [compared("kl", 0.05)],
            [compared("kl", 0.25, n=90)],
            True,
            Status.INCONCLUSIVE,
            "kl +0.25 ± 0.12, in a second look at 90 documents or items more: too few to tell; about 360 instead of"
            " 90 documents or items would (try --qb-full)",
        ),
    ],
)
def test_each_decision_says_what_it_rests_on(first, second, changed, status, says):
    assert verdicts._decide(first, second, changed) == (status, says)


def test_another_protocol_is_stale_and_names_the_field(record):
    old = replace(record, settings=dict(record.settings) | {"calib_length": 256})
    verdict = judge(record, old, n_cases=1)
    assert verdict.status is Status.STALE
    assert not verdict.passes(allow_drift=True)


# One scale of an activation, one of a weight, and of several the first, one between and the last: in figures, since
# a limit that is changed must not move with its test.
POSITIONS = [("layers.0.x_proj:input", 1, 0), ("embedding.weight", 1, 0)] + [
    (name, 5, at) for name in ("layers.0.ssm_state", "layers.0.in_proj.weight") for at in (0, 2, 4)
]


@pytest.mark.parametrize(("name", "count", "at"), POSITIONS)
@pytest.mark.parametrize(
    ("steps", "status"), [(1, Status.SAME), (-1, Status.SAME), (2, Status.DRIFTED), (-2, Status.DRIFTED)]
)
def test_a_scale_may_move_by_one_ulp_and_no_more(record, change, name, count, at, steps, status):
    _, with_scale, _ = change
    scale = torch.linspace(0.01, 0.05, count)
    moved = scale.clone()
    moved[at] = ulps(scale, steps)[at]
    verdict = judge(with_scale(record, name, moved), with_scale(record, name, scale), 1)
    assert verdict.status is status
    assert verdict.place == (name if status is Status.DRIFTED else "")


def test_drift_tells_what_it_could_have_seen_and_can_be_allowed(record, change):
    with_evidence, with_scale, _ = change
    changed = with_scale(record, "layers.0.ssm_state", torch.tensor([9.0]))
    assert "quality equal to the last bit" in judge(changed, record, 1).reason
    kl = record.evidence["prefill.kl"]
    jitter = torch.linspace(-1e-6, 1e-6, kl.numel(), dtype=kl.dtype).view_as(kl)
    verdict = judge(with_evidence(changed, **{"prefill.kl": kl + jitter}), record, 1)
    assert verdict.status is Status.DRIFTED
    assert "nats would show" in verdict.reason
    assert not verdict.passes()
    assert verdict.passes(allow_drift=True)


def test_the_first_changed_artefact_in_forward_order_is_named(record, change):
    _, with_scale, _ = change
    new = with_scale(record, "layers.1.x_proj:input", torch.tensor([9.0]))
    new = with_scale(new, "layers.0.ssm_state", torch.tensor([9.0]))
    assert judge(new, record, 1).place == "layers.0.ssm_state"


@pytest.mark.parametrize(
    ("value", "says"),
    [(torch.tensor([0.01, 0.01]), "number of scales changed"), (torch.tensor([0.5]), "scale changed")],
)
def test_a_scale_says_how_it_changed(record, change, value, says):
    _, with_scale, _ = change
    assert says in judge(with_scale(record, "layers.0.x_proj:input", value), record, 1).reason


def test_other_integers_at_the_same_scale_are_named(record):
    digests = dict(record.artefacts.digests) | {"layers.0.in_proj.weight": "other"}
    new = replace(record, artefacts=Artefacts(record.artefacts.scales, digests))
    verdict = judge(new, record, 1)
    assert (verdict.status, verdict.place) == (Status.DRIFTED, "layers.0.in_proj.weight")


def test_a_local_error_at_an_unchanged_scale_is_an_artefact(record, change):
    with_evidence, *_ = change
    mse = record.evidence["sites.local_mse"].clone()
    mse[1] *= 4  # truncation instead of rounding
    verdict = judge(with_evidence(record, sites__local_mse=mse), record, 1)
    assert (verdict.status, verdict.place) == (Status.DRIFTED, "layers.0.ssm_state")
    assert "unchanged scale" in verdict.reason


def test_a_local_error_may_follow_one_ulp_of_its_scale(record, change):
    """The round trip of the same values at a scale one ulp away, measured, stays inside the bound."""
    from quambench.grids.grid import fake_quantize

    with_evidence, with_scale, _ = change
    x = torch.randn(100_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    name = "layers.0.x_proj:input"
    records = []
    for n in (0, 1):
        scale = ulps(torch.tensor([0.02]), n)
        mse = record.evidence["sites.local_mse"].clone()
        mse[0] = (fake_quantize(x, scale.double()) - x).square().mean()
        records.append(with_scale(with_evidence(record, sites__local_mse=mse), name, scale))
    assert records[0].evidence["sites.local_mse"][0] != records[1].evidence["sites.local_mse"][0]
    assert judge(records[1], records[0], 1).status is Status.SAME


@pytest.mark.parametrize("array", ["prefill.nll", "prefill.kl", "decode.nll", "decode.kl"])
def test_worse_quality_is_a_regression_and_better_an_improvement(record, change, array):
    with_evidence, *_ = change
    key = array.replace(".", "__")
    worse = with_evidence(record, **{key: record.evidence[array] + 0.5})
    assert judge(worse, record, 1).status is Status.REGRESSED
    assert judge(record, worse, 1).status is Status.IMPROVED


def test_lost_items_are_a_regression(record, change):
    with_evidence, *_ = change
    all_right = with_evidence(record, items__correct=torch.ones(30, dtype=torch.uint8))
    all_wrong = with_evidence(record, items__correct=torch.zeros(30, dtype=torch.uint8))
    assert judge(all_wrong, all_right, 1).status is Status.REGRESSED


def test_a_changed_artefact_with_worse_quality_is_a_regression_named_at_the_artefact(record, change):
    with_evidence, with_scale, _ = change
    new = with_scale(record, "layers.0.ssm_state", torch.tensor([9.0]))
    new = with_evidence(new, decode__kl=record.evidence["decode.kl"] + 0.5)
    verdict = judge(new, record, 1)
    assert (verdict.status, verdict.place) == (Status.REGRESSED, "layers.0.ssm_state")
    assert "decode_kl" in verdict.reason


def test_text_without_items_is_judged_by_the_rest(record, change):
    with_evidence, *_ = change
    none = {"correct": torch.uint8, "correct_float": torch.uint8, "document": torch.int32}
    empty = {f"items__{name}": torch.empty(0, dtype=dtype) for name, dtype in none.items()}
    old = with_evidence(record, **empty)
    assert judge(old, old, 1).status is Status.SAME
    worse = with_evidence(old, prefill__kl=record.evidence["prefill.kl"] + 0.5)
    assert judge(worse, old, 1).status is Status.REGRESSED


@pytest.mark.parametrize("factor", [2.0, 0.5])
def test_accumulated_error_alone_names_the_first_site(record, change, factor):
    with_evidence, *_ = change
    accumulated = record.evidence["sites.accumulated"].clone()
    accumulated[1:] *= factor
    verdict = judge(with_evidence(record, sites__accumulated=accumulated), record, 1)
    assert (verdict.status, verdict.place) == (Status.DRIFTED, "layers.0.ssm_state")
    assert "in prefill" in verdict.reason


def test_an_error_in_the_decoded_state_alone_names_the_state(record, change):
    with_evidence, *_ = change
    accumulated = record.evidence["decode.accumulated"].clone()
    accumulated[1] *= 3
    verdict = judge(with_evidence(record, decode__accumulated=accumulated), record, 1)
    assert (verdict.status, verdict.place) == (Status.DRIFTED, "layers.0.ssm_state")
    assert "in decoding" in verdict.reason


def test_a_changed_computation_shows_in_single_windows_where_its_mean_cancels(record, change):
    with_evidence, *_ = change
    sign = torch.tensor([1.0, -1.0]).repeat(6).double()
    new = with_evidence(record, prefill__nll=record.evidence["prefill.nll"] + 2.56 * sign)  # 0.01 nats/token
    verdict = judge(new, record, 1)
    assert (verdict.status, verdict.place) == (Status.DRIFTED, "loss_rise")


def moved(record, change, times: float):
    """Every sensitive number and every site's error moved by `times` its measured noise, at random."""
    with_evidence, *_ = change
    generator = torch.Generator().manual_seed(1)

    def noisy(x, size):
        d = torch.randn(x.shape, generator=generator, dtype=torch.float64)
        return x + times * size * d / d.square().mean(-1, keepdim=True).sqrt()

    unit = 1e-4 * 256  # per window, from per token
    arrays = {
        f"{p}__{n}": noisy(record.evidence[f"{p}.{n}"], unit) for p in ("prefill", "decode") for n in ("nll", "kl")
    }
    for rows in ("sites.accumulated", "decode.accumulated"):
        stored = record.evidence[rows]
        arrays[rows.replace(".", "__")] = stored * noisy(torch.zeros_like(stored), 1e-3).exp()
    return with_evidence(record, **arrays)


@pytest.mark.parametrize(("times", "passes"), [(0.5, True), (1.5, True), (4.0, False)])
def test_as_much_as_another_machine_may_differ_is_no_news_and_more_is(record, change, times, passes):
    assert judge(moved(record, change, times), record, 1).passes() == passes


SILENT = Noise(  # as two disturbed repetitions measure it where 4 bits leave nothing of a model
    means=dict.fromkeys(gated({}), 0.0),
    units=dict.fromkeys(gated({}), 0.0),
    sites={rows: torch.zeros(3, dtype=torch.float64) for rows in SITE_ROWS},
)


@pytest.mark.parametrize(("times", "passes"), [(1e-9, True), (0.5, True), (3.0, False)])
@pytest.mark.parametrize("array", ["prefill.nll", "decode.kl", "decode.kl_prefill", "sites.accumulated"])
def test_where_no_noise_was_met_arithmetic_is_none_and_a_thousandth_is_news(record, change, array, times, passes):
    """A float64 sum in another order, a single tie; and beside them, what is the least that counts."""
    with_evidence, *_ = change
    old = replace(record, noise=SILENT)
    stored = record.evidence[array]
    size = 1e-3 * (stored if array.startswith("sites") else record.evidence["prefill.kl"])
    sign = torch.tensor([1.0, -1.0]).repeat(stored.shape[-1] // 2).double()
    new = with_evidence(record, **{array: stored + times * size * sign})
    assert judge(new, old, 1).passes() == passes


def test_a_baseline_without_a_measured_floor_is_judged_by_artefacts_and_significance(record, change):
    old = replace(record, noise=Noise())
    assert judge(moved(record, change, 4.0), old, 1).status is Status.SAME
    with_evidence, with_scale, _ = change
    assert judge(with_scale(record, "layers.0.ssm_state", torch.tensor([9.0])), old, 1).status is Status.DRIFTED
    assert (
        judge(with_evidence(record, prefill__kl=record.evidence["prefill.kl"] + 0.5), old, 1).status is Status.REGRESSED
    )


def test_a_difference_within_the_stored_noise_is_no_news(record, change):
    with_evidence, *_ = change
    new = with_evidence(record, prefill__kl=record.evidence["prefill.kl"] + 0.5)
    assert judge(new, record, 1).status is Status.REGRESSED
    step = 0.5 / 256 * 1.01
    noise = replace(
        record.noise,
        means={"kl": step / 3},
        units=dict(record.noise.units) | {"kl": step / 3},
        arrays={"prefill.kl": 0.5 / 3},
    )
    assert judge(new, replace(record, noise=noise), 1).status is Status.SAME


def test_worse_by_more_than_its_own_error_but_too_few_to_tell_is_inconclusive(record, change):
    """One document in six goes wrong: the mean moves, and a t-test over six cannot be sure."""
    with_evidence, with_scale, _ = change
    kl = record.evidence["prefill.kl"].clone()
    kl[:2] += 3.0
    new = with_scale(with_evidence(record, prefill__kl=kl), "layers.0.ssm_state", torch.tensor([9.0]))
    verdict = judge(new, record, 1)
    assert verdict.status is Status.INCONCLUSIVE
    assert not verdict.passes(allow_drift=True)
    assert "would (try --qb-full)" in verdict.reason
    stated = int(re.search(r"about (\d+) instead of 6 documents", verdict.reason)[1])
    comparison = next(c for c in verdict.comparisons if c.metric == "kl")
    assert comparison.paired.detectable * (6 / stated) ** 0.5 <= comparison.worse  # errors fall with the root of n


def test_right_and_wrong_are_compared_by_mcnemar(record, change):
    with_evidence, *_ = change
    old = with_evidence(record, items__correct=torch.ones(30, dtype=torch.uint8))
    lost = torch.ones(30, dtype=torch.uint8)
    lost[:16] = 0
    verdict = judge(with_evidence(old, items__correct=lost), old, 1)
    assert verdict.status is Status.REGRESSED
    assert "accuracy" in verdict.reason
    comparison = next(c for c in verdict.comparisons if c.metric == "accuracy")
    assert comparison.paired.p_value == pytest.approx(2 * 0.5**16)


def test_a_broken_probe_is_news_and_is_named_before_everything_else(record, change):
    _, with_scale, _ = change
    probe = Finding("observer/percentile", "scale[0] 0.5 -> 0.25 (one outlier)")
    alone = judge(record, record, 1, probe=probe)
    assert (alone.status, alone.unit, alone.place) == (Status.DRIFTED, "observer/percentile", "")
    both = judge(with_scale(record, "layers.0.ssm_state", torch.tensor([9.0])), record, 1, probe=probe)
    assert (both.unit, both.place) == ("observer/percentile", "layers.0.ssm_state")
    assert both.reason.index("one outlier") < both.reason.index("scale changed")


def test_the_level_is_split_over_the_stored_cases(record, change):
    with_evidence, *_ = change
    generator = torch.Generator().manual_seed(2)
    shift = 0.05 + 0.01 * torch.randn(12, generator=generator, dtype=torch.float64)
    new = with_evidence(record, prefill__kl=record.evidence["prefill.kl"] + shift)
    old = replace(record, noise=replace(record.noise, units={}, arrays={}))
    statuses = [judge(new, old, n).status for n in (1, 10**9)]
    assert statuses == [Status.REGRESSED, Status.SAME]


@pytest.mark.parametrize(("times", "status"), [(2.9, Status.SAME), (3.1, Status.DRIFTED)])
@pytest.mark.parametrize("rows", SITE_ROWS)
@pytest.mark.parametrize("site", range(3))
def test_every_site_of_either_phase_may_move_by_three_floors(record, change, rows, site, times, status):
    with_evidence, *_ = change
    array = record.evidence[rows].clone()
    array[site] *= torch.tensor(times * 1e-3).double().exp()
    verdict = judge(with_evidence(record, **{rows: array}), record, 1)
    assert (verdict.status, verdict.place) == (status, "" if status is Status.SAME else record.sites[site])


@pytest.mark.parametrize("array", ["sites.clipped", "sites.range_used", "sites.local_mse"])
@pytest.mark.parametrize("site", range(3))
def test_every_sites_own_numbers_are_compared(record, change, array, site):
    with_evidence, *_ = change
    changed = record.evidence[array].clone()
    changed[site] += 1e-3
    verdict = judge(with_evidence(record, **{array: changed}), record, 1)
    assert (verdict.status, verdict.place) == (Status.DRIFTED, record.sites[site])


def test_a_share_is_compared_as_it_is_not_relative_to_how_small_it_was(record, change):
    with_evidence, *_ = change
    few = torch.full((3,), 1e-5, dtype=torch.float64)
    old, new = (with_evidence(record, sites__clipped=shares) for shares in (few, few * 5))
    assert judge(new, old, 1).status is Status.SAME


def test_one_more_of_many_scales_is_news(record, change):
    with_evidence, *_ = change
    old, new = (with_evidence(record, **{"scales.count": torch.tensor(100_000 + n)}) for n in (0, 1))
    assert (judge(new, old, 1).status, judge(new, old, 1).place) == (Status.DRIFTED, "n_scales")


def test_records_of_other_sites_name_the_site(record):
    scales = {n: s for n, s in record.artefacts.scales.items() if n != "layers.1.x_proj:input"}
    old = replace(record, artefacts=Artefacts(scales, record.artefacts.digests))
    verdict = judge(record, old, 1)
    assert verdict.place == "layers.1.x_proj:input"
    assert "appeared" in verdict.reason


def test_order_of_documents_does_not_matter(record, change):
    with_evidence, *_ = change
    order = torch.randperm(12, generator=torch.Generator().manual_seed(0))

    def shuffled(r):
        arrays = {
            k.replace(".", "__"): r.evidence[k][order]
            for k in r.evidence
            if k.startswith("prefill.") and len(r.evidence[k]) == 12
        }
        return with_evidence(r, **arrays)

    new = with_evidence(record, prefill__kl=record.evidence["prefill.kl"] + 0.5)
    a, b = judge(new, record, 1), judge(shuffled(new), shuffled(record), 1)
    assert (a.status, a.place) == (b.status, b.place)


def test_every_gated_metric_can_be_paired_and_every_status_ranked():
    assert all(METRICS[name].terms is not None for name in gated({}))
    assert set(SEVERITY) == set(Status)


def test_a_written_verdict_passes(record):
    assert Verdict("c", Status.REGRESSED, written=True).passes()


@pytest.mark.parametrize(
    ("array", "place"),
    [("scales.count", "n_scales"), ("scales.bytes", "scale_bytes"), ("model.bytes", "model_bytes")],
)
def test_a_changed_count_is_drift_named_at_it(record, change, array, place):
    with_evidence, *_ = change
    verdict = judge(with_evidence(record, **{array: record.evidence[array] + 1}), record, 1)
    assert (verdict.status, verdict.place) == (Status.DRIFTED, place)


@pytest.mark.parametrize(("array", "what"), [("sites.clipped", "share clipped"), ("sites.range_used", "range used")])
def test_a_changed_share_at_an_unchanged_scale_is_named_at_its_site(record, change, array, what):
    with_evidence, *_ = change
    moved, nudged = record.evidence[array].clone(), record.evidence[array].clone()
    moved[1] += 1.1e-4
    nudged[1] += 0.9e-4
    verdict = judge(with_evidence(record, **{array: moved}), record, 1)
    assert (verdict.status, verdict.place) == (Status.DRIFTED, record.sites[1])
    assert what in verdict.reason
    assert judge(with_evidence(record, **{array: nudged}), record, 1).status is Status.SAME


def test_a_site_that_stays_float_now_is_named_and_no_failed_measurement(record, change):
    with_evidence, with_scale, _ = change
    site = record.sites[1]
    arrays = {name: record.evidence[f"sites.{name}"].clone() for name in ("local_mse", "clipped", "range_used")}
    for array in arrays.values():
        array[1] = torch.nan
    new = with_evidence(record, **{f"sites__{name}": array for name, array in arrays.items()})
    assert judge(new, record, 1).status is Status.ERROR  # its scale is there still
    verdict = judge(with_scale(new, site, torch.empty(0)), record, 1)
    assert (verdict.status, verdict.place) == (Status.DRIFTED, site)
    assert "number of scales changed (1 -> 0)" in verdict.reason


def test_evidence_that_is_not_finite_any_more_is_an_error_named_by_its_array(record, change):
    with_evidence, *_ = change
    spoilt = record.evidence["prefill.kl"].clone()
    spoilt[3] = torch.inf
    verdict = judge(with_evidence(record, **{"prefill.kl": spoilt}), record, 1)
    assert (verdict.status, verdict.place) == (Status.ERROR, "prefill.kl")


def without(record, *names):
    """Evidence that is not made any more; metrics follow as far as they can be measured."""
    evidence = {n: a for n, a in record.evidence.items() if n not in names}
    return replace(record, evidence=evidence)


@pytest.mark.parametrize("gone", ["items.correct", "decode.kl_by_step", "sites.range_used", "prefill.kl_left_out"])
def test_what_is_not_measured_any_more_is_red_and_drift_does_not_excuse_it(record, gone):
    verdict = judge(without(record, gone), record, 1)
    assert (verdict.status, verdict.place) == (Status.REGRESSED, gone)
    assert "not measured any more" in verdict.reason
    assert not verdict.passes(allow_drift=True)


def test_all_of_a_task_may_not_vanish_either(record):
    verdict = judge(without(record, *(n for n in record.evidence if n.startswith("items."))), record, 1)
    assert verdict.status is Status.REGRESSED


def test_half_of_the_windows_is_another_measurement(record, change):
    with_evidence, *_ = change
    half = {n: a[::2] for n, a in record.evidence.items() if n.startswith("prefill.") and a.shape == (12,)}
    verdict = judge(with_evidence(record, **half), record, 1)
    assert verdict.status is Status.REGRESSED
    assert "measured on 6 values, stored on 12 values" in verdict.reason


def test_a_stored_metric_that_no_code_knows_is_red(record):
    verdict = judge(record, replace(record, gone=("accuracy_of_old",)), 1)
    assert (verdict.status, verdict.place) == (Status.REGRESSED, "accuracy_of_old")


def test_what_is_measured_besides_is_no_news(record):
    assert judge(record, without(record, "decode.kl_by_step"), 1).status is Status.SAME


@pytest.mark.parametrize(
    ("array", "spoil"),
    [
        ("prefill.document", lambda x: torch.arange(len(x), dtype=x.dtype)),
        ("prefill.tokens", lambda x: x + 1),
        ("prefill.bytes", lambda x: x.flip(0) + torch.arange(len(x))),
        ("items.correct_float", lambda x: 1 - x),
        ("decode.nll_float", lambda x: x * (1 + 1e-6)),
        ("sites.signal", lambda x: x * 1e5),
    ],
)
def test_what_no_scale_can_change_is_compared_to_the_bit_or_to_its_rounding(record, change, array, spoil):
    with_evidence, *_ = change
    verdict = judge(with_evidence(record, **{array: spoil(record.evidence[array])}), record, 1)
    assert verdict.status is not Status.SAME
    assert array in verdict.reason


def test_a_references_rounding_is_no_news(record, change):
    with_evidence, *_ = change
    eps = torch.finfo(torch.float32).eps
    near = with_evidence(record, decode__nll_float=record.evidence["decode.nll_float"] * (1 + eps / 2))
    assert judge(near, record, 1).status is Status.SAME


@pytest.mark.parametrize("name", ["prefill.kl_quantiles", "decode.kl_quantiles", "prefill.kl_left_out"])
def test_quantiles_that_move_by_more_than_their_own_error_are_news(record, change, name):
    with_evidence, *_ = change
    old = replace(record, noise=replace(record.noise, arrays=dict(record.noise.arrays) | {name: 1e-3}))
    stored = record.evidence[name]
    errors = record.evidence[f"{name.split('.')[0]}.kl_quantiles"][:, 1]
    found = []
    for times in (0.9, 1.1):
        array = stored.clone()
        array[2, 0] -= times * errors[2]
        evidence = dict(record.evidence) | {name: array}
        # Its error is counted again; here the errors follow.
        left_out = evidence[f"{name.split('.')[0]}.kl_left_out"]
        n = left_out.shape[1]
        evidence[f"{name.split('.')[0]}.kl_quantiles"] = torch.stack(
            [
                evidence[f"{name.split('.')[0]}.kl_quantiles"][:, 0],
                ((left_out - left_out.mean(1, keepdim=True)).square().sum(1) * (n - 1) / n).sqrt(),
            ],
            dim=1,
        )
        found.append(judge(with_evidence(record, **evidence), old, 1).status)
    assert found == [Status.SAME, Status.DRIFTED]


def test_an_array_that_no_gated_metric_shows_is_compared_all_the_same(record, change):
    with_evidence, *_ = change
    moved = with_evidence(record, decode__kl_by_step=record.evidence["decode.kl_by_step"] * 1.1)
    verdict = judge(moved, record, 1)
    assert (verdict.status, verdict.place) == (Status.DRIFTED, "decode.kl_by_step")
    within = with_evidence(record, decode__kl_by_step=record.evidence["decode.kl_by_step"] * 1.02)
    assert judge(within, record, 1).status is Status.SAME


def test_a_quick_row_that_loses_all_its_answers_is_not_the_same(record, change):
    """Of thirty items six; its share of the level in a file of two hundred cases is out of reach."""
    with_evidence, *_ = change
    right = torch.zeros(30, dtype=torch.uint8)
    right[::5] = 1
    old = with_evidence(record, items__correct=right)
    verdict = judge(with_evidence(old, items__correct=torch.zeros_like(right)), old, 200)
    assert verdict.status is not Status.SAME
    assert verdict.place == "items.correct"


@pytest.mark.parametrize("name", ["prefill.kl", "decode.kl_by_step"])
def test_a_noise_floor_that_is_no_number_is_refused(record, name):
    spoilt = replace(record.noise, arrays=dict(record.noise.arrays) | {name: float("nan")})
    with pytest.raises(NonFinite, match=re.escape(name)):
        judge(record, replace(record, noise=spoilt), 1)


def test_a_changed_error_is_told_by_a_factor_where_percent_would_fill_the_line(record, change):
    with_evidence, *_ = change
    accumulated = record.evidence["sites.accumulated"].clone()
    for factor, says in ((3.0, "by 200%"), (1e6, "1e+06-fold"), (1e200, "10^200-fold")):
        accumulated[1] = record.evidence["sites.accumulated"][1] * factor
        reason = judge(with_evidence(record, sites__accumulated=accumulated), record, 1).reason
        assert says in reason
        assert len(reason) < 300


def test_quality_is_equal_only_where_every_metric_is(record, change):
    with_evidence, with_scale, _ = change
    new = with_scale(record, "layers.0.ssm_state", torch.tensor([9.0]))
    decode = record.evidence["decode.kl"].clone()
    decode[0] -= 0.1
    verdict = judge(with_evidence(new, decode__kl=decode), record, 1)
    assert "last bit" not in verdict.reason
    assert "decode_kl" in verdict.reason


# --- the second look ------------------------------------------------------------------------------------

REST_OF = ("prefill.", "decode.", "items.")


@pytest.fixture
def looks(change):
    """(stored, a new row's first look, its second): `lost` of 30 items turn wrong, then `again` of 90."""
    with_evidence, _, make_record = change

    def make(lost: int, again: int):
        stored = make_record()
        n = {"first": 30, "rest": 90}
        right = {part: torch.ones(count, dtype=torch.uint8) for part, count in n.items()}
        stored = with_evidence(stored, items__correct=right["first"])
        noise = replace(stored.noise, arrays={k: v for k, v in stored.noise.arrays.items() if k != "items.correct"})
        rest = {name: array for name, array in stored.evidence.items() if name.startswith(REST_OF)}
        document = torch.arange(n["rest"], dtype=torch.int32) // 15
        rest |= {"items.correct": right["rest"], "items.correct_float": right["rest"], "items.document": document}
        stored = replace(stored, rest=rest, rest_digest="rest", noise=noise)
        wrong = {part: r.clone() for part, r in right.items()}
        wrong["first"][:lost], wrong["rest"][:again] = 0, 0
        new = with_evidence(stored, items__correct=wrong["first"])
        return stored, new, rest | {"items.correct": wrong["rest"]}

    return make


def test_a_row_that_would_be_significant_alone_is_suspicious_and_not_yet_red(looks):
    stored, new, _ = looks(lost=14, again=0)
    verdict = judge(new, stored, 200)
    assert (verdict.status, verdict.suspicious) == (Status.SAME, True)
    assert not judge(stored, stored, 200).suspicious
    assert not judge(new, replace(stored, rest={}), 200).suspicious  # nothing to look at


def test_the_rest_convicts(looks):
    stored, new, rest = looks(lost=14, again=40)
    verdict = judge(new, stored, 200, rest=rest)
    assert verdict.status is Status.REGRESSED
    assert verdict.place == "accuracy"
    assert "second look at 90" in verdict.reason
    assert not verdict.suspicious


def test_the_rest_clears(looks):
    stored, new, rest = looks(lost=14, again=0)
    verdict = judge(new, stored, 200, rest=rest)
    assert (verdict.status, verdict.suspicious) == (Status.SAME, False)


def test_a_second_look_is_of_the_same_measurements(looks):
    stored, new, rest = looks(lost=14, again=0)
    del rest["items.correct"]
    assert judge(new, stored, 200, rest=rest).status is Status.REGRESSED


def test_each_look_has_half_of_the_rows_level(looks):
    """Fourteen of thirty in a file of a thousandth's level: p = 2^-13; with a second look half of that must hold."""
    stored, new, _ = looks(lost=14, again=0)
    n_metrics = len([c for c in judge(new, stored, 1).comparisons])
    just = int(1e-3 * 2**13 / n_metrics)  # cases for which one look would still convict
    assert judge(new, replace(stored, rest={}), just).status is Status.REGRESSED
    assert judge(new, stored, just).status is Status.SAME


def test_an_inconclusive_row_is_looked_at_again(record, change):
    with_evidence, with_scale, _ = change
    rest = {name: array for name, array in record.evidence.items() if name.startswith(REST_OF)}
    old = replace(record, rest=rest, rest_digest="rest")
    kl = record.evidence["prefill.kl"].clone()
    kl[:2] += 3.0
    new = with_scale(with_evidence(old, prefill__kl=kl), "layers.0.ssm_state", torch.tensor([9.0]))
    first = judge(new, old, 1)
    assert (first.status, first.suspicious) == (Status.INCONCLUSIVE, True)
    assert judge(new, old, 1, rest=rest).status is Status.DRIFTED
    worse = rest | {"prefill.kl": rest["prefill.kl"] + 0.5}
    assert judge(new, old, 1, rest=worse).status is Status.REGRESSED
