"""hadamard_quantize: against the matrix in float64, ties by hand, and with faults planted."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from quambench_kernels import dispatch
from quambench_kernels.hadamard_quantize import hadamard_quantize, reference
from quambench_kernels.hadamard_quantize.reference import hadamard_quantize_ref, rotated

from quambench.grids.hadamard import base_signs, hadamard_matrix

OP = "hadamard_quantize"
SIZES = [1, 2, 4, 8, 16, 32, 64, 128, 512, 12, 24, 96, 192, 768, 1536, 40, 80, 320, 640]


def assert_rotates(judge, x, scale, q_max=127, impl="auto"):
    q = hadamard_quantize(x, scale, base_signs(x.shape[-1]), q_max=q_max, impl=impl)
    exact = x.double() @ hadamard_matrix(x.shape[-1]).T  # the whole matrix: no factors, no butterflies
    judge.rounded(q, rotated(x, base_signs(x.shape[-1])), exact, scale, q_max)


@settings(max_examples=40, deadline=None)
@given(
    n=st.sampled_from(SIZES),
    lead=st.sampled_from([(), (1,), (3,), (2, 5), (0,)]),
    bits=st.integers(2, 8),
    strided=st.booleans(),
    seed=st.integers(0, 2**32),
)
def test_agrees_with_the_matrix_in_float64(judge, impl, n, lead, bits, strided, seed):
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(*lead, n, generator=g)
    x = judge.inside(x) if strided else x
    assert_rotates(judge, x, judge.scales(g, about=0.03), 2 ** (bits - 1) - 1, impl)


def test_ties_go_to_even(impl):
    # n = 4: H x = (1, 1, 1, 1) sum / 2 in its first row; x = (k, 0, 0, 0) gives k / 2 or its negative everywhere.
    k = torch.arange(-20, 21)
    x = torch.zeros(41, 4)
    x[:, 0] = k
    q = hadamard_quantize(x, torch.tensor(1.0), base_signs(4), impl=impl)
    assert q[:, 0].tolist() == [round(v / 2) for v in range(-20, 21)]


def test_ties_away_from_zero_are_noticed(half_away):
    with half_away(OP, reference, hadamard_quantize_ref), pytest.raises(AssertionError):
        test_ties_go_to_even("auto")


def test_an_outlier_is_spread(impl):
    x = torch.zeros(1, 64)
    x[0, 3] = 8.0
    q = hadamard_quantize(x, torch.tensor(1 / 127), base_signs(64), impl=impl)
    assert set(q.abs().flatten().tolist()) == {127}


def test_both_ends(impl):
    x = torch.tensor([[1e6], [-1e6]])
    assert hadamard_quantize(x, torch.tensor(1.0), base_signs(1), impl=impl).tolist() == [[127], [-128]]


FAULTS = {
    "not normed": lambda run, x, scale, base, q: run(x * x.shape[-1] ** 0.5, scale, base, q),
    "base turned": lambda run, x, scale, base, q: run(x, scale, base.T, q),
    "without the lowest integer": lambda run, x, scale, base, q: run(x, scale, base, q).clamp(min=-q),
    "one butterfly left out": lambda run, x, scale, base, q: run(x.roll(1, -1), scale, base, q),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_noticed(judge, fault):
    x = torch.randn(50, 24, generator=torch.Generator().manual_seed(0))
    with dispatch.around(OP, FAULTS[fault]), pytest.raises(AssertionError):
        assert_rotates(judge, x, torch.tensor(0.01))


@pytest.mark.parametrize(
    ("x", "base", "message"),
    [
        (torch.zeros(3, 36), base_signs(12), "x must be (..., 12 * 2^k) (got (3, 36))"),
        (torch.zeros(3, 6), base_signs(1), "x must be (..., 1 * 2^k) (got (3, 6))"),
        (torch.zeros(3, 8).int(), base_signs(1), "x must be torch.float64 or torch.float32"),
        (torch.zeros(3, 8), torch.ones(1, 1).double(), "base must be torch.float32"),
    ],
)
def test_refuses_in_one_line(x, base, message):
    with pytest.raises(ValueError, match=r"^hadamard_quantize: ") as raised:
        hadamard_quantize(x, torch.tensor(1.0), base)
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)
