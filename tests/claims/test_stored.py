"""Cases found by what they measured, and differences worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch

from quambench.case import QUICK
from quambench.claims import stored
from quambench.claims.base import CannotMeasure
from quambench.claims.stored import ACCURACY, DECODE_KL, KL, difference, flips

# Four windows 0.2 nats up and four 0.4: 0.3 on the mean, standard deviation 0.1 sqrt(8/7), in 100 tokens each.
UP = [1.2, 1.4] * 4
SIX_DECIMALS = 0.5e-6 / 1.959964  # relative: quantiles of t and z are written so, and none here is smaller
REACH = 2.364624 * 0.1 * math.sqrt(8 / 7) / math.sqrt(8) / 100  # t(0.975, 7) = 2.364624


def test_a_case_is_found_by_what_it_measured_not_by_its_name(shelf, made):
    found = shelf(made("percentile[alpha=0.9995]"), made("percentile/channel"))
    one, other = found.find("percentile", "percentile/channel")
    assert one.case_id.endswith("percentile[alpha=0.9995]/1x1")
    assert other.case_id.endswith("percentile/channel")
    assert len(found) == 2


def test_a_missing_case_is_named_with_what_would_store_it(shelf, made):
    with pytest.raises(CannotMeasure, match="no baseline holds mamba-tiny/mse/1x1; pytest suites/ --qb-new-only"):
        shelf(made("percentile")).find("percentile", "mse")
    with pytest.raises(CannotMeasure, match="mamba-tiny/mse/1x1 nor mamba-tiny/kl/1x1"):
        shelf().find("mse", "percentile", "kl")


def test_a_case_that_does_not_exist_yet_is_said_so(shelf, made):
    with pytest.raises(CannotMeasure, match="there is no such case yet"):
        shelf(made("percentile")).find("percentile/per_row")


def test_two_that_are_compared_come_from_one_machine_class(shelf, made):
    shelf(made("percentile"), made("mse", kl=3.0), machine="cpu-other")
    both = shelf(made("percentile", kl=9.0))
    assert both.find("percentile")[0].metrics["kl"].value == pytest.approx(0.09)  # its own class's
    assert both.find("percentile", "mse")[0].metrics["kl"].value == pytest.approx(0.01)  # where both stand


def test_two_that_no_class_holds_together_are_not_compared(shelf, made):
    shelf(made("mse"), machine="cpu-other")
    with pytest.raises(CannotMeasure, match="together"):
        shelf(made("percentile")).find("percentile", "mse")


def test_two_that_are_compared_have_one_size_the_largest_that_both_have(shelf, made):
    found = shelf(
        made("percentile", kl=9.0),
        made("percentile", kl=1.0, protocol=QUICK),
        made("mse", kl=3.0, protocol=QUICK),
        made("kl"),
    )
    assert found.find("percentile")[0].metrics["kl"].value == pytest.approx(0.09)
    assert [r.metrics["kl"].value for r in found.find("percentile", "mse")] == pytest.approx([0.01, 0.03])
    with pytest.raises(CannotMeasure, match="of one size together"):
        found.find("mse", "kl")


def test_results_on_other_data_are_not_compared(shelf, made):
    found = shelf(made("percentile"), made("mse", digests={"evaluation_data": "x"}))
    with pytest.raises(CannotMeasure, match="another evaluation_data"):
        found.find("percentile", "mse")


def test_kl_by_hand(made):
    found = difference(KL, made("percentile"), made("mse", kl=UP))
    assert found.effect.estimate == pytest.approx(0.003)
    assert found.effect.low == pytest.approx(0.003 - REACH, rel=SIX_DECIMALS)
    assert found.effect.high == pytest.approx(0.003 + REACH, rel=SIX_DECIMALS)
    assert found.n == "8 documents"


def test_the_noise_floors_of_both_widen_the_interval(made):
    found = difference(KL, made("percentile", noise={"kl": 0.003}), made("mse", kl=UP, noise={"kl": 0.004}))
    assert found.effect.high - 0.003 == pytest.approx(math.hypot(REACH, 0.005), rel=SIX_DECIMALS)


def test_where_sign_flips_do_not_bear_the_t_test_out_the_interval_reaches_zero(made, monkeypatch):
    monkeypatch.setattr("quambench.gate.stats.sign_flip_p", lambda differences: (0.5, 0.01))
    found = difference(KL, made("percentile"), made("mse", kl=UP))
    assert (found.effect.low, found.effect.estimate) == (0.0, pytest.approx(0.003))


def test_items_by_hand(made):
    found = difference(ACCURACY, made("percentile", right=10), made("mse", right=13))
    assert found.effect.estimate == pytest.approx(3 / 20)
    centre, error = 3 / 22, math.sqrt(4 - 9 / 22) / 22  # half an item more in each cell: 3.5 gained, 0.5 lost of 22
    assert found.effect.low == pytest.approx(centre - 1.959964 * error, rel=SIX_DECIMALS)
    assert found.n == "20 items"


def test_items_without_a_flip_still_say_what_they_could_have_missed():
    same = torch.ones(160)
    found, n = flips(same, same)
    assert (found.estimate, n) == (0.0, 160)
    assert found.high == -found.low == pytest.approx(1.959964 / 162, rel=SIX_DECIMALS)


def test_what_was_not_asked_cannot_be_measured(made):
    record = made("percentile")
    bare = {k: v for k, v in record.evidence.items() if not k.startswith("items")}
    object.__setattr__(record, "evidence", bare)
    with pytest.raises(CannotMeasure):
        difference(ACCURACY, record, record)


def assert_decoding_kl_rose(made) -> None:
    found = difference(DECODE_KL, made("percentile", decode_kl=1.0), made("mse", decode_kl=UP))
    assert found.effect.low > 0


def test_the_sign_is_new_minus_old(made):
    assert_decoding_kl_rose(made)


def test_a_turned_sign_would_be_caught(made, monkeypatch):
    right_way = stored.paired
    monkeypatch.setattr(stored, "paired", lambda old, new, level: right_way(new, old, level))
    with pytest.raises(AssertionError):
        assert_decoding_kl_rose(made)
