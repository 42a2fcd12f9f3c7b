"""The verdict's rule, at its boundaries."""

from __future__ import annotations

import math

import pytest
import torch

from quambench.claims.base import (
    DECREASE,
    INCREASE,
    CannotMeasure,
    Claim,
    Gain,
    InRange,
    Interval,
    Measured,
    NoGain,
    Unit,
    Verdict,
    as_written,
    cannot,
    row,
)

YES, OPEN, NO = Verdict.CONFIRMED, Verdict.NOT_CONFIRMED, Verdict.CONTRADICTED


def between(low: float, high: float) -> Interval:
    return Interval((low + high) / 2, low, high)


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [
        (1.2, 1.8, YES),
        (0.1, 1.0, YES),  # meets the claim's end, and excludes 0
        (0.0, 1.5, OPEN),  # does not exclude 0
        (-0.1, 1.5, OPEN),
        (0.1, 0.999, NO),  # a gain, but significantly less than claimed
        (-1.5, -1.2, NO),
        (-0.5, 0.5, NO),  # cannot be as much as claimed
        (2.0, 3.0, YES),
        (2.001, 3.0, OPEN),  # more than claimed
        (-5.0, 5.0, OPEN),
    ],
)
def test_a_gain_between_one_and_two(low, high, verdict):
    assert Gain(1, 2).verdict(between(low, high)) is verdict
    assert Gain(-2, -1).verdict(between(-high, -low)) is verdict  # a claimed loss is its mirror image


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [(0.1, 9.0, YES), (0.0, 1.0, OPEN), (-1.0, 0.0, OPEN), (-2.0, -1.0, NO), (-1e-9, 1e-9, OPEN), (0, 0, OPEN)],
)
def test_a_gain_without_a_figure_is_judged_by_its_sign(low, high, verdict):
    assert INCREASE.verdict(between(low, high)) is verdict
    assert DECREASE.verdict(between(-high, -low)) is verdict


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [
        (2.0, 5.0, YES),
        (2.1, 3.0, YES),
        (1.9, 3.0, OPEN),
        (1.0, 9.0, OPEN),
        (0.0, 1.9, NO),
        (5.1, 6.0, NO),
        (5.0, 6.0, OPEN),
    ],
)
def test_a_share_or_ratio_between_two_and_five(low, high, verdict):
    assert InRange(2, 5).verdict(between(low, high)) is verdict


def test_a_count_is_equal_or_not():
    assert InRange(128, 128).verdict(Interval.exactly(128)) is YES
    assert InRange(128, 128).verdict(Interval.exactly(16)) is NO


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [(-2.0, -1.0, YES), (-1.0, 0.0, YES), (0, 0, YES), (-1.0, 0.1, OPEN), (0.0, 1.0, OPEN), (0.1, 1.0, NO)],
)
def test_no_gain(low, high, verdict):
    assert NoGain(higher=True).verdict(between(low, high)) is verdict
    assert NoGain(higher=False).verdict(between(-high, -low)) is verdict


@pytest.mark.parametrize("expects", [Gain(1, 2), INCREASE, DECREASE, InRange(0, 1), NoGain(higher=True)])
def test_nothing_follows_without_an_interval(expects):
    assert expects.verdict(Interval.of(1.5, math.nan, 1)) is OPEN


def test_a_figure_stands_for_what_rounds_to_it():
    assert as_written("0.5") == pytest.approx((0.45, 0.55))
    assert as_written("-0.4", 0.01) == pytest.approx((-0.0045, -0.0035))
    assert as_written("20") == (15, 25)
    assert as_written("100") == (50, 150)
    assert as_written("1") == (0.5, 1.5)


def test_intervals_by_hand():
    found = Interval.of_mean(torch.tensor([1.0, 2.0, 3.0]))
    assert (found.estimate, found.low) == pytest.approx((2.0, 2 - 4.302653 / math.sqrt(3)))  # t(0.975, 2) = 4.302653
    ratios = Interval.of_ratio(torch.tensor([1.0, 4.0]))
    assert ratios.estimate == pytest.approx(2.0)
    assert ratios.low * ratios.high == pytest.approx(4.0)
    assert Interval.of_ratio(torch.tensor([1e-300, 1e300], dtype=torch.float64)).high == math.inf
    assert Interval.of_ratio(torch.tensor([2.0])) == Interval(pytest.approx(2.0), 0.0, math.inf)
    assert Interval(1.0, -2.0, 5.0).widened(4.0) == Interval(1.0, -4.0, 1 + math.sqrt(32))


def test_a_row_says_why_it_cannot_be_measured():
    def measure() -> Measured:
        raise CannotMeasure("no such thing")

    found = row(Claim(words="w", expects=INCREASE), "m", measure)
    assert (found.verdict, found.why) == (Verdict.CANNOT, "no such thing")
    assert cannot("w", "f", "why").verdict is Verdict.CANNOT


def test_a_row_with_the_sign_turned_round_is_no_longer_confirmed():
    measured = Measured(effect=between(1, 3), unit=Unit(""), n="", data="")
    claim = Claim(words="w", expects=INCREASE)
    assert row(claim, "m", lambda: measured).verdict is YES
    turned = Measured(effect=between(-3, -1), unit=Unit(""), n="", data="")
    assert row(claim, "m", lambda: turned).verdict is NO
