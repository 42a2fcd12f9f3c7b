"""The rule of each array of evidence, and how far one moved."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from quambench.gate.arrays import REFERENCE_TOLERANCE, Rule, lost, most, moved, noisy_names, rule_of

NAN = float("nan")


def column(*values):
    return torch.tensor(values, dtype=torch.float64)


@pytest.mark.parametrize(
    ("name", "rule"),
    [
        ("prefill.document", Rule.EXACT),
        ("decode.tokens", Rule.EXACT),
        ("recall.copy.asked", Rule.EXACT),
        ("recall.copy.right_float", Rule.EXACT),
        ("recall.copy.right", Rule.NOISY),
        ("decode.nll_float", Rule.REFERENCE),
        ("decode.nll", Rule.NOISY),
        ("sites.signal", Rule.REFERENCE),
        ("sites.local_mse", Rule.ELSEWHERE),
        ("groups.channel_index", Rule.ELSEWHERE),
        ("decode.accumulated", Rule.ELSEWHERE),
        ("scales.values", Rule.ELSEWHERE),
        ("model.bytes", Rule.ELSEWHERE),
        ("prefill.kl_quantiles", Rule.QUANTILES),
        ("decode.kl_left_out", Rule.QUANTILES),
        ("task.lambada.value", Rule.NOISY),
        ("task.lambada.weight", Rule.EXACT),
        ("task.lambada.unit", Rule.EXACT),
        ("task.lambada.higher_is_better", Rule.EXACT),
        ("long.state_error", Rule.NOISY),
        ("something.new", Rule.NOISY),
    ],
)
def test_rules(name, rule):
    assert rule_of(name) is rule


def test_names_of_noisy_arrays_are_those_whose_repetitions_lie_apart():
    names = ("prefill.kl", "prefill.tokens", "prefill.kl_quantiles", "sites.clipped", "decode.nll_float")
    assert list(noisy_names(dict.fromkeys(names, column(1.0)))) == ["prefill.kl", "prefill.kl_quantiles"]


def test_an_array_moves_relative_to_its_size():
    old = column(*[2.0] * 7)  # of seven entries none may be lost to a tie
    assert moved("prefill.kl", old, old) == 0
    assert moved("prefill.kl", old, old * 1.1) == pytest.approx(0.1)
    one = old.clone()
    one[3] += 2.0
    assert moved("prefill.kl", old, one) == pytest.approx((1 / 7) ** 0.5)


def test_of_sixteen_entries_two_may_stand_across_a_tie():
    old = torch.ones(16, dtype=torch.float64)
    new = old.clone()
    new[[3, 9]] = 5.0
    assert moved("decode.kl", old, new) == 0
    new[12] = 5.0
    assert moved("decode.kl", old, new) == pytest.approx(4 / 14**0.5)


def test_right_and_wrong_move_by_more_than_ties_alone_where_sixteen_of_eighty_flip():
    old = torch.zeros(80, dtype=torch.uint8)
    old[:16] = 1
    assert moved("items.correct", old, torch.zeros_like(old)) > 0.5
    few = old.clone()
    few[:10] = 0
    assert moved("items.correct", old, few) == 0  # an eighth of eighty


def test_the_quantile_that_moved_most_counts():
    old = column(0.1, 1.0, 2.0)
    assert moved("prefill.kl_quantiles", old, column(0.1, 0.5, 2.2)) == pytest.approx(0.5)
    assert moved("prefill.kl_quantiles", old, column(0.1, 1.0, 3.5)) == pytest.approx(0.75)  # relative to each


def test_what_was_not_measured_is_no_window_that_may_be_lost():
    """One window of the eight that were measured may be lost, the farthest; nine that were not are no windows."""
    eight = [0.5, -0.75, 0.25, 0.125, 0.0, 0.5, 0.25, 0.5]
    assert most(column(*[NAN] * 9, *eight)).isnan().tolist() == [True] * 9 + [x == -0.75 for x in eight]
    assert most(column(*[NAN] * 9, *[0.0] * 8)).isnan().sum() == 10
    table = column(*eight, *eight[::-1]).view(2, 8)
    assert most(table).isnan().nonzero().tolist() == [[0, 1], [1, 6]]  # of each row


def test_what_was_never_measured_does_not_count_and_what_vanished_is_lost():
    assert moved("decode.kl_prefill", column(NAN, NAN), column(1.0, 2.0)) == 0
    assert moved("decode.kl_prefill", column(NAN, 1.0), column(7.0, 1.0)) == 0
    assert lost(column(NAN, 1.0, 1.0, 1.0), column(NAN, NAN, float("inf"), 2.0)).tolist() == [False, True, True, False]


@given(st.lists(st.floats(-100, 0, allow_subnormal=False), min_size=1, max_size=50), st.integers(0, 2**32 - 1))
def test_two_machines_references_lie_within_the_tolerance(log_probs, seed):
    """The sum of one-signed float64 numbers, each stored by way of float32, where float64 differs in its last bits."""
    exact = torch.tensor(log_probs, dtype=torch.float64)
    generator = torch.Generator().manual_seed(seed)
    other = exact * (1 + 1e-13 * (torch.rand(len(exact), generator=generator, dtype=torch.float64) - 0.5))
    a, b = (x.float().double().sum().item() for x in (exact, other))
    assert abs(a - b) <= REFERENCE_TOLERANCE * max(abs(a), abs(b))


def test_the_tolerance_in_figures():
    assert REFERENCE_TOLERANCE == 2**-22
