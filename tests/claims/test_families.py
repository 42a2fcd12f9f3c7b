"""Each family on made-up results whose effects can be worked out by hand, and with a fault planted."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch

from quambench.bench.interleave import Ratio
from quambench.claims import FAMILIES, Sources, Verdict, alpha, average, compared, cost, groups, layers, overfit, ranges
from quambench.claims.fresh import LayerCosts, Seen

UP = [1.2, 1.4] * 4  # against 1.0: +0.3 nats of 100 tokens
SIX_DECIMALS = 0.5e-6 / 1.959964  # relative: quantiles of t and z are written so, and none here is smaller
REACH = 2.364624 * 0.1 * math.sqrt(8 / 7) / math.sqrt(8) / 100  # 95 %, of 8 documents
MODEL = "mamba-tiny"


def sources(shelf=None, fresh=None, recall=False) -> Sources:
    return Sources({MODEL: shelf}, {MODEL: fresh} if fresh else {}, frozenset({MODEL} if recall else ()))


def found(rows, words):
    """The one row whose claim has these words."""
    (row,) = [r for r in rows if words in r.claim.words]
    return row


def by_hand(estimate, reach):
    return pytest.approx((estimate, estimate - reach, estimate + reach), rel=SIX_DECIMALS)


def interval(row):
    return row.measured.effect.estimate, row.measured.effect.low, row.measured.effect.high


def test_no_family_falls_over_nothing_stored(shelf):
    for family in FAMILIES.values():
        rows = family.rows(sources(shelf()))
        arithmetic = [row for row in rows if row.measured]
        assert all(row.measured.effect.exact for row in arithmetic)
        assert all(row.why for row in rows if not row.measured)
        assert family.about


def assert_alpha_one_is_worse(shelf, made):
    stored = shelf(made("percentile[alpha=0.9995]", kl=1.0, right=10), made("percentile[alpha=1.0]", kl=UP, right=10))
    rows = [r for r in alpha.by_alpha.rows(sources(stored)) if r.claim.words.startswith("α = 1 ")]
    by_kl = found(rows, "by KL")
    assert interval(by_kl) == by_hand(0.003, REACH)
    assert by_kl.verdict is Verdict.CONTRADICTED
    assert found(rows, "by accuracy").verdict is Verdict.NOT_CONFIRMED
    assert "float 100 %" in found(rows, "by accuracy").measured.remark


def test_alpha(shelf, made):
    assert_alpha_one_is_worse(shelf, made)


def test_old_and_new_exchanged_would_be_caught(shelf, made, monkeypatch):
    right_way = compared.difference
    monkeypatch.setattr(compared, "difference", lambda q, old, new, remark: right_way(q, new, old, remark))
    with pytest.raises(AssertionError):
        assert_alpha_one_is_worse(shelf, made)


def test_a_missing_case_is_one_row(shelf, made):
    rows = alpha.by_alpha.rows(sources(shelf(made("percentile[alpha=0.9995]"))))
    assert len(rows) == 3  # one an α
    assert all("pytest suites/ --qb-new-only records it" in row.why for row in rows)


def test_the_best_alpha_is_held_against_the_best_of_the_others(shelf, made):
    worst = [3.0] * 8
    stored = shelf(
        made("percentile[alpha=0.999]", kl=worst),
        made("percentile[alpha=0.9995]", kl=1.0),
        made("percentile[alpha=0.9999]", kl=worst),
        made("percentile[alpha=1.0]", kl=UP),
    )
    by_kl = found(alpha.best_alpha.rows(sources(stored)), "Quamba1, by KL")
    wider = REACH * 3.127552 / 2.364624  # t(1 - 0.05/6, 7) = 3.127552
    assert interval(by_kl) == by_hand(0.003, wider)
    assert by_kl.measured.remark.startswith("the best other is 0.9995 (0.999: 30, 0.9995: 10, 0.9999: 30, 1: 13")
    assert by_kl.verdict is Verdict.CONTRADICTED


def test_scales_are_counted_by_definition():
    rows = {(r.claim.words, r.model): r for r in groups.numbers.rows(sources())}
    eight, one = "G = 8, E = 8192", "G = 1, E = 5120 (2.7b)"
    for sides, count in ((2, 32), (4, 128), (8, 512), (16, 2048)):
        words = f"{sides}×{sides} groups: scales of x a layer"
        assert rows[words, eight].measured.effect.estimate == count == 8 * sides * sides
        assert rows[words, eight].verdict is Verdict.CONFIRMED
        assert rows[words, one].measured.effect.estimate == count / 8
        assert rows[words, one].verdict is Verdict.CONTRADICTED
    size = "4×4 groups: bytes of x's scales, 64 layers"
    assert rows[size, eight].measured.effect.estimate == 64 * 4 * 128 == 32768
    everything = "4×4 groups: bytes of all grouped scales, 64 layers"
    assert rows[everything, eight].measured.effect.estimate == 64 * 4 * (128 + 128 * 128 + 16)
    assert rows[everything, eight].verdict is Verdict.CONTRADICTED


def assert_steps_are_finer(shelf, made):
    fine = {f"layers.{i}.ssm_state": [0.5, 0.25, 0.75, 0.5] for i in range(3)}
    fine["layers.1.ssm_state"] = [0.25, 0.25]
    stored = shelf(made("percentile"), made("percentile/channel", scales=fine))
    row = found(groups.steps.rows(sources(stored)), "`percentile/channel` has finer steps than `percentile`")
    ratios = [math.log(2), math.log(4), math.log(2)]  # one step of 1.0 over mean steps 0.5, 0.25, 0.5
    mean = sum(ratios) / 3
    reach = 4.302653 * math.sqrt(sum((r - mean) ** 2 for r in ratios) / 2 / 3)  # t(0.975, 2)
    expected = tuple(math.exp(x) for x in (mean, mean - reach, mean + reach))
    assert interval(row) == pytest.approx(expected, rel=SIX_DECIMALS)
    assert row.verdict is Verdict.NOT_CONFIRMED


def test_steps(shelf, made):
    assert_steps_are_finer(shelf, made)


def test_a_ratio_upside_down_would_be_caught(shelf, made, monkeypatch):
    right_way = groups.finer
    turned = lambda *args: {site: 1 / ratios for site, ratios in right_way(*args).items()}  # noqa: E731
    monkeypatch.setattr(groups, "finer", turned)
    with pytest.raises(AssertionError):
        assert_steps_are_finer(shelf, made)


def test_drift_between_calibration_and_runtime(shelf, made, at_sites):
    used = at_sites({"ssm_state": [0.5, 0.5, 1.3]}, elsewhere=1.0)
    fresh = SimpleNamespace(
        seen=SimpleNamespace(largest={"a": torch.tensor([1.0, 2.0]), "b": torch.tensor([4.0, 1.0])}),
        seen_at_runtime=SimpleNamespace(largest={"a": torch.tensor([2.1, 0.1]), "b": torch.tensor([3.0, 3.2])}),
    )
    measured, stored = ranges.drift.rows(sources(shelf(made("running_max", sites__range_used=used)), fresh))
    assert measured.measured.effect.estimate == pytest.approx((0.05 + 0.2) / 2)  # 2.1 / 2 and 3.2 / 4
    assert "1 of 2 sites within ±10 %" in measured.measured.remark
    assert stored.measured.effect.estimate == pytest.approx((0.5 + 0.5 + 0.3) / len(used))
    assert f"{len(used) - 3} of {len(used)} sites" in stored.measured.remark


def test_clipped_values(shelf, made, at_sites):
    shares = at_sites({"ssm_state": [0.002, 0.002, 0.002], "x_proj:input": [0.02, 0.03, 0.02]})
    rows = ranges.clipped.rows(sources(shelf(made("percentile", sites__clipped=shares))))
    state, x = found(rows, "ssm_state"), found(rows, "x_proj:input")
    assert interval(state) == pytest.approx((0.002,) * 3)
    assert state.verdict is Verdict.CONFIRMED
    assert x.measured.effect.estimate == pytest.approx(0.07 / 3)
    assert x.measured.effect.low < 0.01  # three layers: 4.3 standard errors
    assert x.verdict is Verdict.NOT_CONFIRMED


def test_waste_of_a_symmetric_grid(shelf, made, at_sites):
    wasted = made("running_max", sites__range_wasted=at_sites({"x_proj:input": [0.4, 0.5, 0.45]}))
    saved = made("running_max/w8a8-asymmetric", kl=UP, sites__range_wasted=at_sites({"x_proj:input": [0.1, 0.2, 0.15]}))
    rows = ranges.symmetry.rows(sources(shelf(wasted, saved)))
    symmetric = found(rows, "symmetry wastes range")
    assert symmetric.measured.effect.estimate == pytest.approx(0.45 - 0.15)
    assert symmetric.verdict is Verdict.CONFIRMED
    assert symmetric.measured.remark == "the symmetric grid wastes 45 % (at most 50 %), the asymmetric one 15 %"
    no_gain = found(rows, "asymmetric is no better than symmetric, `running_max`, by KL")
    assert interval(no_gain) == by_hand(0.003, REACH)
    assert no_gain.verdict is Verdict.CONFIRMED  # KL rose


def test_evidence_from_before_there_was_waste(shelf, made):
    stored = shelf(made("running_max"), made("running_max/w8a8-asymmetric"))
    row = found(ranges.symmetry.rows(sources(stored)), "symmetry wastes range")
    assert "stored before there was sites.range_wasted" in row.why


def layer_costs(first=5.0, last=1.0):
    alone = torch.tensor([[first, 2.0, 3.0, last], [first + 1, 2.0, 3.0, last]], dtype=torch.float64) / 1e3
    every = torch.tensor([10.0, 10.0], dtype=torch.float64) / 1e3
    return LayerCosts(alone, every[:, None] - alone, every, {"layers.0.z": 0.004, "layers.1.z": 0.001})


def test_sensitive_layers():
    rows = layers.ends.rows(sources(fresh=SimpleNamespace(layer_costs=layer_costs())))
    for way in ("quantized alone", "left float alone"):  # made so that both ways say the same
        first = found(rows, f"the first layer costs more than any between, {way}")
        assert first.measured.effect.estimate == pytest.approx(0.0025)  # 2 and 3 over layer 2's
        last = found(rows, f"the last layer costs more than any between, {way}")
        assert interval(last) == pytest.approx((-0.002,) * 3)
        assert last.verdict is Verdict.CONTRADICTED
    remark = found(rows, "the first layer costs more than any between, quantized alone").measured.remark
    assert "costliest sites alone: layers.0.z 4, layers.1.z 1" in remark


def test_two_layers_have_nothing_between_them():
    costs = LayerCosts(torch.ones(2, 2), torch.ones(2, 2), torch.ones(2), {"layers.0.z": 1.0})
    rows = layers.ends.rows(sources(fresh=SimpleNamespace(layer_costs=costs)))
    assert all("no layer between" in row.why for row in rows)


def test_the_moving_average_by_hand():
    quantiles = torch.tensor([1.0, 2.0, 4.0], dtype=torch.float64)
    along = average.averages(quantiles, 0.5, torch.tensor([[0, 1, 2], [2, 1, 0]]))
    assert along.tolist() == [[1.0, 1.5, 2.75], [4.0, 3.0, 2.0]]
    level = torch.full((9,), 2.0, dtype=torch.float64)
    assert average.spread(level, 0.3) == 0
    assert average.batches_needed(level, 0.05) == 1
    step = torch.tensor([1.0, 3.0], dtype=torch.float64)  # mean 2; after one more at σ 0.5: 2, whatever the order
    assert average.batches_needed(step, 0.5) == 2
    assert average.batches_needed(step, 0.05) == 2  # never near: all there are


def test_a_large_sigma_oscillates_and_is_fast(shelf):
    generator = torch.Generator().manual_seed(0)
    quantile = {f"s{i}": 1 + torch.rand(64, generator=generator, dtype=torch.float64) for i in range(4)}
    fresh = SimpleNamespace(seen=Seen({}, quantile))
    rows = average.sigma.rows(sources(shelf(), fresh))
    wide, slow = found(rows, "oscillates"), found(rows, "needs more batches")
    # Stationary spread goes with sqrt(σ / (2 - σ)): 2.6 times. Of 64 batches in random order the whole
    # is known, and 0.05 still remembers the first, so the simulated ratio is near that, not equal.
    theory = math.sqrt(0.3 / 1.7 / (0.05 / 1.95))
    assert wide.measured.effect.low > 1
    assert abs(math.log(wide.measured.effect.estimate / theory)) < math.log(2)
    assert wide.verdict is Verdict.CONFIRMED
    assert slow.measured.effect.estimate > 0


def test_the_orders_are_the_same_every_time():
    assert torch.equal(average.random_orders(8), average.random_orders(8))


def assert_training_overfits(shelf, made):
    losses = [4.0, 1.0, 4.0, 3.0]  # removed 75 % on its own part, 25 % on the other
    stored = shelf(made("percentile", kl=2.0), made("percentile/learned", kl=UP, refinement__losses=losses))
    rows = overfit.overfit.rows(sources(stored))
    validation = found(rows, "`percentile/learned` gains more on its own data than on validation")
    effect = validation.measured.effect
    assert effect.estimate == pytest.approx(0.5)
    assert (effect.low, effect.high) == (-math.inf, math.inf)  # one training tells no more
    assert validation.verdict is Verdict.NOT_CONFIRMED
    test = found(rows, "`percentile/learned` gains more on its own data than on the test part")
    # KL left: 1.3 / 2 = 0.65, so 35 % removed; 75 - 35 = 40 points. Its error: that of windows, over 2 nats.
    assert interval(test) == by_hand(0.75 - 0.35, REACH * 100 / 2)


def test_overfitting(shelf, made):
    assert_training_overfits(shelf, made)


def test_own_and_other_exchanged_would_be_caught(shelf, made, monkeypatch):
    right_way = overfit.removed
    monkeypatch.setattr(overfit, "removed", lambda record: right_way(record)[::-1])
    with pytest.raises(AssertionError):
        assert_training_overfits(shelf, made)


def test_a_search_that_errs_more_elsewhere(shelf, made, at_sites):
    plain = made("running_max", sites__local_mse=at_sites({"ssm_state": [1.0] * 3, "x_proj:input": [1.0] * 3}, 7.0))
    searched = made("mse", sites__local_mse=at_sites({"ssm_state": [2.0] * 3, "x_proj:input": [0.5] * 3}, 1.0))
    row = found(overfit.overfit.rows(sources(shelf(plain, searched))), "`mse` errs more")
    assert row.measured.effect.estimate == pytest.approx(1.0)
    assert (row.measured.n, row.measured.remark) == ("6 sites", "worse at 3 of 6 sites")
    assert row.verdict is Verdict.NOT_CONFIRMED


def test_gains_of_tuning(shelf, made):
    stored = shelf(made("percentile", kl=UP, right=10), made("mse", kl=1.0, right=20))
    rows = FAMILIES["What tuning gains"].rows(sources(stored))
    by_kl = found(rows, "MSE search over the whole range beats it, by KL")
    assert interval(by_kl) == by_hand(-0.003, REACH)
    assert by_kl.verdict is Verdict.CONFIRMED
    by_items = found(rows, "MSE search over the whole range beats it, by accuracy")
    assert by_items.measured.effect.estimate == pytest.approx(0.5)
    assert by_items.verdict is Verdict.NOT_CONFIRMED  # far more than the claimed 1-2 points
    assert "learned" in found(rows, "learned scales").why


def seconds():
    plain = torch.tensor([1.0, 2.0, 4.0], dtype=torch.float64)
    factors = {"running_max": 1, "percentile": 1, "mse[low=0.8,steps=20]": 18, "percentile/channel": 10}
    factors |= {"dynamic_percentile": 3, "running_max/8x8/quamba2": 5}
    factors |= {f"running_max/{n}x{n}/quamba2": 60 for n in (2, 4, 16)}
    return {spec: plain * factor for spec, factor in factors.items()}


GROUPABLE = SimpleNamespace(architecture="mamba2")


def test_costs_of_tuning():
    fresh = SimpleNamespace(times=seconds(), learning_seconds=0.0)
    rows = cost.costs.rows(sources(GROUPABLE, fresh))
    assert interval(found(rows, "MSE search")) == pytest.approx((18,) * 3)
    assert found(rows, "MSE search").verdict is Verdict.CONFIRMED  # rounds to 20
    assert found(rows, "a scale per channel").verdict is Verdict.CONFIRMED
    assert found(rows, "α tuning (another α)").verdict is Verdict.CONFIRMED
    assert found(rows, "chosen by each site").verdict is Verdict.CONTRADICTED
    assert interval(found(rows, "learned scales")) == pytest.approx((1,) * 3)
    assert found(rows, "learned scales").verdict is Verdict.CONTRADICTED
    assert found(rows, "8×8 groups").verdict is Verdict.CONFIRMED
    without_heads = cost.costs.rows(sources(SimpleNamespace(architecture="mamba"), fresh))
    assert "8×8 groups" not in {r.claim.words for r in without_heads}
    del fresh.times["running_max/8x8/quamba2"]
    assert "too few heads" in found(cost.costs.rows(sources(GROUPABLE, fresh)), "8×8 groups").why


def test_training_is_paid_on_top_of_calibration():
    times = {spec: torch.ones(3, dtype=torch.float64) for spec in seconds()}
    rows = cost.costs.rows(sources(GROUPABLE, SimpleNamespace(times=times, learning_seconds=99.0)))
    assert interval(found(rows, "learned scales")) == pytest.approx((100,) * 3)


def test_times_by_granularity():
    rows = groups.times.rows(sources(GROUPABLE, SimpleNamespace(times=seconds())))
    four = found(rows, "4×4 groups")
    assert four.measured.effect.estimate == pytest.approx(140)
    assert four.verdict is not Verdict.CONTRADICTED  # 140 of 120 to 300 seconds, in three repetitions
    assert found(rows, "16×16 groups").verdict is Verdict.CONTRADICTED
    (per_tensor,) = [row for row in rows if row.claim.words == "per tensor"]
    assert per_tensor.measured.effect.estimate == pytest.approx(7 / 3)
    assert interval(found(rows, "per channel takes")) == pytest.approx((10,) * 3)
    assert found(rows, "per channel takes").verdict is Verdict.CONTRADICTED


def test_comparisons_by_hand(shelf, made):
    """Groups 0 to 15 are head groups 1 to 4 of dim groups 1 to 4: 0 takes 1 + 1, 5 takes 2 + 2, 14 takes 4 + 3."""
    of_channel = torch.tensor([[0, 0, 5, 14]], dtype=torch.int32)
    record = made("running_max/4x4/quamba2", architecture="mamba2", groups__of_channel=of_channel)
    row = found(groups.look_up.rows(sources(shelf(record))), "comparisons per look-up")
    assert row.measured.effect.estimate == (2 + 2 + 4 + 7) / 4
    assert row.verdict is Verdict.CONFIRMED  # 3.75


def test_the_cost_of_a_look_up_is_what_it_adds(shelf):
    costs = {way: Ratio(1.02, 1.016, 1.024, 1e-3, 1e-3, 41) for way, *_ in groups.LOOK_UPS}
    costs["table"] = Ratio(1.0, 0.99, 1.01, 1e-3, 1e-3, 41)
    rows = groups.look_up.rows(sources(shelf(), fresh=SimpleNamespace(look_up_costs=costs)))
    assert interval(found(rows, "walking, 8×8")) == pytest.approx((0.02, 0.016, 0.024))
    verdicts = {row.claim.figure: row.verdict for row in rows}
    assert verdicts == {
        "<0.5 %": Verdict.CONTRADICTED,
        "<1 %": Verdict.CONTRADICTED,
        "~2 %": Verdict.CONFIRMED,  # 1.5 to 2.5
        "~5 %": Verdict.CONTRADICTED,
        "~10 %": Verdict.CONTRADICTED,
    }


def test_what_is_out_of_reach_says_so():
    rows = FAMILIES["The runtime"].rows(sources())
    assert [row.verdict for row in rows] == [Verdict.CANNOT, Verdict.CANNOT]
    assert not any(row.measured for row in rows)
