"""4-bit weights in groups: worked examples, half a step at most, and faults that must fail the same checks."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from quambench.core.errors import BadParameter
from quambench.grids.grid import MIN_SCALE
from quambench.int8.w4 import GroupedWeight, group_amax, round_to_nearest, spread, to_int8
from quambench.int8.weights import quantize_tensor

EPS32 = torch.finfo(torch.float32).eps
LOW, HIGH = -8, 7
REACH = 7.5  # steps from zero to amax

shapes = {"out": st.integers(1, 4), "columns": st.integers(1, 40), "group": st.integers(1, 45)}
seeds = st.integers(0, 10**6)


def normal(*shape, seed=0):
    """Values of float32, held in float64, of very different size from row to row."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(*shape, generator=generator) * 10.0 ** torch.randint(-3, 3, (shape[0], 1), generator=generator)
    return x.double()


def steps_of(found):
    """(out, in) float64."""
    return spread(found.steps, found.group, found.q.shape[1]).double()


def assert_half_step(weight, found):
    """Inside its group's reach a weight is at most half a step away, beyond it on the grid's end.

    A step is rounded to float32, so the largest quotient is 7.5 (1 + EPS32 / 2); the grid ends at 7.
    EPS32 in place of its half covers the roundings in float64.
    """
    quotients = weight.double() / steps_of(found)
    inside = quotients.abs() <= REACH * (1 + EPS32)
    error = (quotients - found.q).abs()[inside]
    assert (error <= 0.5 + REACH * EPS32).all(), f"error {error.max():.6f} steps; rounding allows 0.5"
    assert (found.q[~inside] == torch.where(quotients > 0, HIGH, LOW)[~inside]).all(), "clipped, but not to the end"


def assert_reaches(amax, found):
    """A step is amax / 7.5 to one rounding to float32 (EPS32 / 2, and as much for float64's), or the floor."""
    want = (amax.double() / REACH).clamp(min=MIN_SCALE)
    assert ((found.steps.double() - want).abs() <= EPS32 * want).all(), "a step is not that of its group's amax"


def assert_second_level(grouped, found):
    """On the INT8 grid within half a step of the 4-bit values, with one scale per row, no larger than need be.

    A float32 quotient of at most 127 can cross a tie by 127 EPS32 / 2; as much for the scale's own rounding.
    """
    scale = found.scale.double()
    assert found.scale.shape == (len(grouped.q), 1)
    assert found.q.dtype == torch.int8
    error = (grouped.dequantize().double() - found.q.double() * scale).abs() / scale
    assert (error <= 0.5 + 127 * EPS32).all(), f"error {error.max():.6f} steps; rounding allows 0.5"
    # 8 of the row's largest steps are the most that 127 INT8 steps have to span.
    most = (8 / 127 * grouped.steps.double().amax(dim=1, keepdim=True)).clamp(min=MIN_SCALE)
    assert (scale <= (1 + EPS32) * most).all(), "a scale wider than its row"


def group_by_group(weight, group):
    """Every group quantized alone, with no notion of columns before or after it."""
    parts = [round_to_nearest(part, part.shape[1]) for part in weight.split(group, dim=1)]
    return torch.cat([p.q for p in parts], dim=1), torch.cat([p.steps for p in parts], dim=1)


def test_by_hand():
    found = round_to_nearest(torch.tensor([[7.5, -7.5, 2.5, 3.5, -0.6, 15.0, 3.0], [0.0] * 5 + [-30.0, 10.0]]), group=5)
    # Steps 15/15 = 1 and 30/15 = 2; the second group has two columns. 7.5 would be 8, which the grid
    # does not have; -8 it has. 2.5, 3.5 and 3/2 are ties: to even.
    assert found.q[0].tolist() == [7, -8, 2, 4, -1, 7, 2]
    assert found.q[1].tolist() == [0, 0, 0, 0, 0, -8, 2]  # step 4: -7.5 and 2.5
    assert found.steps.tolist() == [[1.0, 2.0], [torch.tensor(MIN_SCALE).item(), 4.0]]
    assert found.dequantize()[0].tolist() == [7.0, -8.0, 2.0, 4.0, -1.0, 14.0, 4.0]
    assert found.q.dtype == torch.int8
    assert found.steps.dtype == found.dequantize().dtype == torch.float32


def test_a_threshold_by_hand():
    threshold = torch.tensor([[7.5, 3.75]])
    found = round_to_nearest(torch.tensor([[30.0, -30.0, 1.4, 7.5, -1.0]]), group=3, threshold=threshold)
    assert found.steps.tolist() == [[1.0, 0.5]]
    assert found.q.tolist() == [[7, -8, 1, 7, -2]]


def test_the_second_level_by_hand():
    grouped = GroupedWeight(torch.tensor([[7, -3, -8, 1]], dtype=torch.int8), torch.tensor([[1.0, 2.0]]), group=2)
    assert grouped.dequantize().tolist() == [[7.0, -3.0, -16.0, 2.0]]
    found = to_int8(grouped)
    assert found.scale.tolist() == [[torch.tensor(16 / 127).item()]]
    assert found.q.tolist() == [[56, -24, -127, 16]]  # 55.5625, -23.8125, -127, 15.875


def test_bytes_by_hand():
    # 15 integers in 8 bytes; 3 groups in each of 3 rows, 4 bytes each.
    assert round_to_nearest(torch.ones(3, 5), group=2).n_bytes == 8 + 9 * 4
    # At Quamba2's group of 128: 4 bits, and 32/128 for the step.
    assert round_to_nearest(torch.ones(16, 256)).n_bytes * 8 == 16 * 256 * (4 + 0.25)


@settings(max_examples=200, deadline=None)
@given(seed=seeds, **shapes)
def test_rounding_is_within_half_a_step(seed, out, columns, group):
    weight = normal(out, columns, seed=seed)
    weight[seed % out] *= seed % 3  # a row of zeros now and then
    found = round_to_nearest(weight, group)
    assert_half_step(weight, found)
    assert_reaches(group_amax(weight, group), found)
    # Nothing but the rounding of a step can put a weight beyond its own amax.
    assert ((weight / steps_of(found)).abs() <= REACH * (1 + EPS32)).all()


@settings(max_examples=200, deadline=None)
@given(seed=seeds, ratio=st.floats(0, 2), **shapes)
def test_a_threshold_stands_in_place_of_amax(seed, ratio, out, columns, group):
    weight = normal(out, columns, seed=seed)
    threshold = ratio * group_amax(weight, group)
    found = round_to_nearest(weight, group, threshold)
    assert_half_step(weight, found)
    assert_reaches(threshold, found)


@settings(max_examples=200, deadline=None)
@given(seed=seeds, **shapes)
def test_groups_are_their_columns_quantized_alone_and_the_last_may_be_short(seed, out, columns, group):
    weight = normal(out, columns, seed=seed)
    found = round_to_nearest(weight, group)
    q, steps = group_by_group(weight, group)
    assert torch.equal(found.q, q)
    assert torch.equal(found.steps, steps)
    assert found.steps.shape == (out, -(-columns // group))


@settings(max_examples=200, deadline=None)
@given(seed=seeds, **shapes)
def test_what_is_on_the_grid_stays(seed, out, columns, group):
    found = round_to_nearest(normal(out, columns, seed=seed), group)
    again = round_to_nearest(found.dequantize(), group, REACH * found.steps.double())
    assert torch.equal(again.steps, found.steps)
    assert torch.equal(again.q, found.q)
    assert torch.equal(again.dequantize(), found.dequantize())


@settings(max_examples=100, deadline=None)
@given(seed=seeds, dtype=st.sampled_from([torch.float16, torch.bfloat16, torch.float32]), **shapes)
def test_the_weights_precision_is_no_matter(seed, dtype, out, columns, group):
    """The same numbers in fewer bits and in float64, near ties too, give the same integers."""
    weight = normal(out, columns, seed=seed).to(dtype)
    narrow, double = round_to_nearest(weight, group), round_to_nearest(weight.double(), group)
    assert torch.equal(narrow.q, double.q)
    assert torch.equal(narrow.steps, double.steps)


@settings(max_examples=100, deadline=None)
@given(seed=seeds, **shapes)
def test_the_second_level_is_within_half_a_step_of_the_first(seed, out, columns, group):
    grouped = round_to_nearest(normal(out, columns, seed=seed), group)
    assert_second_level(grouped, to_int8(grouped))


def test_the_weight_is_left_alone():
    weight = normal(3, 7)
    before = weight.clone()
    round_to_nearest(weight, 3, group_amax(weight, 3) / 2)
    assert torch.equal(weight, before)


@pytest.mark.parametrize(
    ("shape", "group", "threshold", "message"),
    [
        ((4,), 2, None, r"must be \(out, in\), neither of them 0 \(got \(4,\)\)"),
        ((2, 0), 2, None, r"neither of them 0 \(got \(2, 0\)\)"),
        ((2, 4), 0, None, r"a group must have at least 1 input \(got 0\)"),
        ((2, 5), 2, torch.ones(2, 2), r"one per row and group, \(2, 3\) \(got \(2, 2\)\)"),
        ((1, 2), 2, torch.tensor([[-1.0]]), "finite and at least 0"),
        ((1, 2), 2, torch.tensor([[torch.nan]]), "finite and at least 0"),
        ((1, 2), 2, torch.tensor([[torch.inf]]), "finite and at least 0"),
    ],
)
def test_what_does_not_fit_is_refused(shape, group, threshold, message):
    with pytest.raises(BadParameter, match=message) as refused:
        round_to_nearest(torch.ones(shape), group, threshold)
    assert "\n" not in str(refused.value)


# Planted faults: the checks above must catch them.


@pytest.fixture
def weight():
    return normal(4, 40)


def test_truncation_fails(weight):
    found = round_to_nearest(weight, 16)
    with pytest.raises(AssertionError, match="rounding allows"):
        assert_half_step(weight, replace(found, q=(weight / steps_of(found)).trunc().to(torch.int8)))


def test_fifteen_levels_fail(weight):
    """The 8-bit rule carried over, amax / 7: half a step is kept, but the reach is not."""
    by_seven = round_to_nearest(weight, 16, REACH / HIGH * group_amax(weight, 16))
    assert_half_step(weight, by_seven)
    with pytest.raises(AssertionError, match="not that of its group's amax"):
        assert_reaches(group_amax(weight, 16), by_seven)


def test_a_grid_without_its_lowest_level_fails(weight):
    found = round_to_nearest(weight, 16, 0.5 * group_amax(weight, 16))
    with pytest.raises(AssertionError):
        assert_half_step(weight, replace(found, q=found.q.clamp(min=-HIGH)))


def test_wrapping_in_place_of_clipping_fails(weight):
    found = round_to_nearest(weight, 16, 0.5 * group_amax(weight, 16))
    wrapped = ((weight / steps_of(found)).round() + 8) % 16 - 8
    with pytest.raises(AssertionError, match="not to the end"):
        assert_half_step(weight, replace(found, q=wrapped.to(torch.int8)))


@pytest.mark.parametrize("off", [-1, 1])
def test_a_group_off_by_one_fails(weight, off):
    found = round_to_nearest(weight, 16 + off)
    assert found.steps.shape == round_to_nearest(weight, 16).steps.shape
    with pytest.raises(AssertionError):
        assert_half_step(weight, replace(found, group=16))
    with pytest.raises(AssertionError):
        assert_reaches(group_amax(weight, 16), found)


def test_one_step_per_row_fails_where_groups_differ(weight):
    per_row = weight.abs().amax(dim=1, keepdim=True).expand(-1, 3)
    with pytest.raises(AssertionError, match="not that of its group's amax"):
        assert_reaches(group_amax(weight, 16), round_to_nearest(weight, 16, per_row))


def test_rounding_in_float32_would_meet_ties_that_are_none():
    """Why the quotient is taken in float64: here float32 rounds it onto the tie, and the tie to even."""
    weight = torch.tensor([[0.1, 0.0]])
    step = round_to_nearest(weight, 2).steps.item()
    # 0.5, 1.5, ... 6.5 steps to the nearest float32, which is a little beside.
    candidates = torch.tensor([(k + 0.5) * step for k in range(7)], dtype=torch.float64).float()
    weight = torch.cat([weight[0, :1], candidates])[None]
    found = round_to_nearest(weight, weight.shape[1])
    assert found.steps.item() == step
    exact = weight.double() / found.steps.double()
    assert torch.equal(found.q.double(), exact.round().clamp(LOW, HIGH))
    assert not torch.equal(found.q.float(), (weight / found.steps).round().clamp(LOW, HIGH))


def test_a_second_level_by_the_whole_tensors_scale_fails(weight):
    grouped = round_to_nearest(weight, 16)
    whole = quantize_tensor(grouped.dequantize())
    assert_second_level(grouped, to_int8(grouped))
    with pytest.raises(AssertionError, match="wider than its row"):
        assert_second_level(grouped, replace(whole, scale=whole.scale.expand(len(weight), 1)))


def test_a_second_level_that_truncates_fails(weight):
    grouped = round_to_nearest(weight, 16)
    found = to_int8(grouped)
    with pytest.raises(AssertionError, match="rounding allows"):
        assert_second_level(grouped, replace(found, q=(grouped.dequantize() / found.scale).trunc().to(torch.int8)))
