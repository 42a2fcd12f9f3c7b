"""Grids of sites: symmetric, asymmetric, none; each against float64 arithmetic written out here."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from quambench.grids.grid import asymmetric_scale, dequantize_asymmetric, quantize_asymmetric
from quambench.int8.site_grid import AsymmetricGrid, SymmetricGrid, Unquantized
from quambench.int8.weights import QuantizedTensor

EPS32 = torch.finfo(torch.float32).eps
WEIGHT = QuantizedTensor(torch.tensor([[1, -2, 3], [-128, 127, 0]]).to(torch.int8), torch.tensor([[0.5], [2.0]]))


def test_the_asymmetric_step_and_zero_point_by_hand():
    scale, zero = asymmetric_scale(torch.tensor(-1.0).double(), torch.tensor(4.0).double())
    assert scale.item() == pytest.approx(5 / 255, rel=EPS32)
    assert zero.item() == 51 - 128  # 1 / (5 / 255) = 51 steps from the lowest integer
    scale, zero = asymmetric_scale(torch.tensor(0.0).double(), torch.tensor(7.5).double(), bits=4)
    assert (scale.item(), zero.item()) == (0.5, -8)


def test_zero_data_give_a_legal_grid():
    scale, zero = asymmetric_scale(torch.tensor(0.0).double(), torch.tensor(0.0).double())
    assert scale.item() == torch.tensor(1e-6).item()
    assert zero.item() == -128


@given(st.floats(-1e4, 0), st.floats(0, 1e4), st.integers(2, 8), st.lists(st.floats(0, 1), min_size=1, max_size=20))
def test_within_its_range_the_asymmetric_grid_errs_by_one_step_at_most(low, high, bits, places):
    """Half a step by rounding x, half a step by rounding the zero point, and the float32 quotient's own rounding."""
    scale, zero = asymmetric_scale(torch.tensor(low).double(), torch.tensor(high).double(), bits)
    x = torch.tensor(places).double() * (high - low) + low
    back = dequantize_asymmetric(quantize_asymmetric(x, scale.double(), zero.double(), bits), scale.double(), zero)
    assert ((back - x).abs() <= (1 + 2**bits * EPS32) * scale.double()).all()


@given(st.floats(-1e4, -1e-3), st.floats(1e-3, 1e4), st.integers(2, 8))
def test_zero_itself_is_on_the_grid(low, high, bits):
    scale, zero = asymmetric_scale(torch.tensor(low).double(), torch.tensor(high).double(), bits)
    q = quantize_asymmetric(torch.zeros(1), scale, zero, bits)
    assert dequantize_asymmetric(q, scale, zero).item() == 0.0


def test_one_sided_data_get_twice_the_resolution():
    x = torch.linspace(0, 1, 1001).double()
    scale, zero = asymmetric_scale(torch.tensor(0.0).double(), torch.tensor(1.0).double())
    fine = AsymmetricGrid(scale, zero, 8).double()
    coarse = SymmetricGrid(torch.tensor(1 / 127), 8).double()
    worst = [(g.dequantize(g.quantize(x)) - x).abs().max().item() for g in (fine, coarse)]
    assert worst[0] <= 0.5 * (1 + 256 * EPS32) / 255
    assert worst[1] > 0.49 / 127


@pytest.mark.parametrize(
    "grid",
    [SymmetricGrid(torch.tensor(0.25), 8), AsymmetricGrid(torch.tensor(0.25), torch.tensor(-77.0), 8), Unquantized()],
    ids=["symmetric", "asymmetric", "float"],
)
def test_a_product_is_that_of_what_the_integers_stand_for(grid):
    x = torch.tensor([[1.0, 2.5, -3.75], [20.0, 0.0, 8.25]])
    q = grid.quantize(x)
    expected = grid.dequantize(q).double() @ WEIGHT.dequantize().double().T
    error = (grid.product(q, WEIGHT).double() - expected).abs()
    assert (error <= 3 * EPS32 * expected.abs()).all()  # integers are exact; the scales' product is rounded thrice


def test_a_zero_point_left_out_of_the_product_would_show():
    grid = AsymmetricGrid(torch.tensor(0.25), torch.tensor(-77.0), 8)
    q = grid.quantize(torch.tensor([[1.0, 2.5, -3.75]]))
    forgetful = SymmetricGrid(grid.scale, 8).product(q, WEIGHT)
    assert ((forgetful - grid.product(q, WEIGHT)).abs() > 1).any()


def test_channels_are_those_asked_for():
    grid = AsymmetricGrid(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([0.0, 5.0, 6.0]), 8)
    assert (grid.channels(1, 2).scale.tolist(), grid.channels(1, 2).zero.tolist()) == ([2.0, 3.0], [5.0, 6.0])
    assert grid.channels(2, 1).scale.shape == ()
    assert SymmetricGrid(torch.tensor(4.0), 8).channels(2, 1).scale.item() == 4.0


def test_positions_reach_from_end_to_end():
    symmetric = SymmetricGrid(torch.tensor(0.5), 8)
    assert symmetric.position(torch.tensor([63.5, -63.5, 0.0])).tolist() == [1.0, -1.0, 0.0]
    scale, zero = asymmetric_scale(torch.tensor(-1.0).double(), torch.tensor(4.0).double())
    ends = AsymmetricGrid(scale, zero, 8).position(torch.tensor([-1.0, 4.0]))
    assert ends.tolist() == pytest.approx([-1.0, 1.0], abs=256 * EPS32)


def test_what_is_cut_is_told():
    assert SymmetricGrid(torch.tensor(1.0), 8).clipped(torch.tensor([127.4, 127.6, -128.4, -128.6])).tolist() == [
        False, True, False, True,
    ]  # fmt: skip
    shifted = AsymmetricGrid(torch.tensor(1.0), torch.tensor(-128.0), 8)
    assert shifted.clipped(torch.tensor([-0.4, -0.6, 255.4, 255.6])).tolist() == [False, True, False, True]
    assert not Unquantized().clipped(torch.tensor([1e30])).any()
