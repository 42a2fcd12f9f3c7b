"""The integer grid: worked examples, half-step property, and faults that must fail the same check."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from quambench.core.errors import BadParameter
from quambench.grids import grid

EPS32 = torch.finfo(torch.float32).eps


def assert_half_step(x, q, scale, bits=8):
    """Inside the range an integer is at most half a step away.

    The float32 quotient is at most q_max with relative error EPS32 / 2, so it can cross a rounding
    tie by q_max * EPS32 / 2; the rest is done in float64.
    """
    top = 2 ** (bits - 1) - 1
    error = ((x.double() - q.double() * scale.double()).abs() / scale.double()).max().item()
    assert error <= 0.5 + top * EPS32 / 2, f"error {error:.6f} steps; rounding allows 0.5"


def assert_uses_the_whole_range(scale, amax, bits=8):
    """amax lies exactly q_max steps from zero, to one rounding of the division."""
    assert abs(amax / scale.item() - (2 ** (bits - 1) - 1)) <= 2 ** (bits - 1) * EPS32


def test_by_hand():
    scale = torch.tensor(1.0)
    x = torch.tensor([0.5, 1.5, 2.5, -0.5, -1.5, 126.5, 127.5, 400.0, -128.4, -400.0])
    # Ties to even; 127.5 would be 128, which the grid does not have; -128 it has.
    assert grid.quantize(x, scale).tolist() == [0, 2, 2, 0, -2, 126, 127, 127, -128, -128]
    assert grid.symmetric_scale(torch.tensor(254.0)).item() == 2.0
    assert grid.fake_quantize(torch.tensor([3.1, -5.2]), torch.tensor(2.0)).tolist() == [4.0, -6.0]
    clipped = grid.clipped(torch.tensor([0.0, 127.4, 127.6, -128.4, -129.0]), scale)
    assert clipped.double().mean().item() == pytest.approx(2 / 5)


def test_a_tensor_of_zeros_has_a_legal_scale():
    assert grid.symmetric_scale(torch.tensor(0.0)).item() == pytest.approx(1e-6, rel=EPS32)


@pytest.mark.parametrize("bits", range(2, 9))
def test_every_integer_of_the_grid_is_reached_and_none_beyond(bits):
    low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    q = grid.quantize(torch.arange(low - 5.0, high + 6.0), torch.tensor(1.0), bits)
    assert q.unique().tolist() == list(range(low, high + 1))


@pytest.mark.parametrize("bits", [0, 1, 9, 16])
def test_other_widths_are_refused(bits):
    with pytest.raises(BadParameter, match=f"got {bits}"):
        grid.q_max(bits)


values = st.lists(st.floats(-1e4, 1e4, width=32), min_size=1, max_size=50)


@given(values, st.integers(2, 8))
def test_round_trip_is_within_half_a_step(xs, bits):
    x = torch.tensor(xs)
    scale = grid.symmetric_scale(x.abs().max(), bits)
    assert_half_step(x, grid.quantize(x, scale, bits), scale, bits)


@given(values, st.integers(2, 8))
def test_fake_quantization_is_within_half_a_step_and_one_rounding(xs, bits):
    x = torch.tensor(xs)
    scale = grid.symmetric_scale(x.abs().max(), bits)
    error = (x.double() - grid.fake_quantize(x, scale, bits).double()).abs().max().item()
    # Beside the half step: the quotient's rounding, and the product's; both of at most q_max steps.
    assert error <= scale.item() * (0.5 + grid.q_max(bits) * EPS32)


@given(values, st.integers(2, 8))
def test_quantizing_twice_changes_nothing(xs, bits):
    x = torch.tensor(xs)
    scale = grid.symmetric_scale(x.abs().max(), bits)
    q = grid.quantize(x, scale, bits)
    assert torch.equal(grid.quantize(grid.dequantize(q, scale), scale, bits), q)
    once = grid.fake_quantize(x, scale, bits)
    assert torch.equal(grid.fake_quantize(once, scale, bits), once)


@given(values, st.floats(2**-10, 100.0, width=32))
def test_beyond_the_range_the_ends_are_taken(xs, step):
    x, scale = torch.tensor(xs), torch.tensor(step)
    q = grid.quantize(x, scale)
    assert (q[x > 128 * scale] == 127).all()
    assert (q[x < -129 * scale] == -128).all()


def test_a_float64_value_keeps_its_precision():
    # 0.5 + 2^-40 steps is no tie in float64, and one in float32.
    x = torch.tensor([0.5 + 2**-40], dtype=torch.float64)
    assert grid.quantize(x, torch.tensor(1.0, dtype=torch.float64)).tolist() == [1]
    assert grid.fake_quantize(x, torch.tensor(1.0)).dtype == torch.float64


def test_the_named_roundings_differ_on_ties_alone_or_truncate():
    x = torch.tensor([0.5, 2.5, -2.5, 1.4, 1.6, -1.6])
    assert grid.quantize(x, torch.tensor(1.0), rounding="half_away").tolist() == [1, 3, -3, 1, 2, -2]
    assert grid.quantize(x, torch.tensor(1.0), rounding="truncate").tolist() == [0, 2, -2, 1, 1, -1]


def test_the_check_catches_truncation():
    x = torch.linspace(-3, 3, 101)
    scale = grid.symmetric_scale(x.abs().max())
    with pytest.raises(AssertionError):
        assert_half_step(x, grid.quantize(x, scale, rounding="truncate"), scale)


@pytest.mark.parametrize("wrong", [126, 128])
def test_the_check_catches_another_q_max(wrong, monkeypatch):
    assert_uses_the_whole_range(grid.symmetric_scale(torch.tensor(3.0)), 3.0)
    monkeypatch.setattr(grid, "q_max", lambda bits: wrong)
    with pytest.raises(AssertionError):
        assert_uses_the_whole_range(grid.symmetric_scale(torch.tensor(3.0)), 3.0)
