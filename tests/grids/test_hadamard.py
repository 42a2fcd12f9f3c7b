"""Hadamard rotation: orthonormal, the right way round, and fast without changing its meaning.

Bounds: u = eps/2 is the unit roundoff; a dot product of n terms, in any order, errs by at most
n u sum|a_i b_i| to first order. Each bound takes eps for u, twice what is needed, which covers the
terms of second order.
"""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.linalg import hadamard as scipy_hadamard

from quambench.core.errors import BadParameter
from quambench.grids.hadamard import Rotation, _split, hadamard_matrix, rotate, supported

SIZES = [1, 2, 4, 12, 24, 40, 80, 160, 192, 384, 512, 768, 1536, 5120]
NOT_SYMMETRIC = [12, 24, 40, 80, 384]
EPS = torch.finfo(torch.float64).eps


def normal(*shape, dtype=torch.float64, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).to(dtype)


def assert_orthonormal(H):
    """Rows of H H^T: sum|h h| is 1, and an entry's own rounding adds 2u. All rows, or every 20th of a large matrix."""
    n = len(H)
    rows = torch.arange(0, n, 1 if n <= 1536 else 20)
    error = (H[rows] @ H.T - torch.eye(n, dtype=H.dtype)[rows]).abs().max().item()
    assert error <= (n + 2) * EPS, f"n {n}: H H^T differs from I by {error:.3g}"


def assert_rotated(y, x):
    """y against the whole matrix in float64.

    rotate sums b and then a terms, rounds a factor once and each stage's result once; the float64
    oracle sums n. Every |h| is 1/sqrt(n), so sum|h x| is |x|_1 / sqrt(n).
    """
    n = x.shape[-1]
    want = x.double() @ hadamard_matrix(n).T
    l1 = x.double().abs().sum(-1, keepdim=True) / math.sqrt(n)
    bound = ((sum(_split(n)) + 3) * torch.finfo(x.dtype).eps + n * EPS) * l1
    assert y.shape == x.shape
    assert y.dtype == x.dtype
    assert ((y.double() - want).abs() <= bound).all()


def assert_consumer_sees_no_change(weight, x, rotated_weight, rotated_x):
    """(W H^T)(H x) = W x within rounding.

    |H x| and |H w| are at most |x|_1 / sqrt(n) and |w|_1 / sqrt(n), each with a relative error of
    (a + b + 3) u of that; n such products, and two sums of n terms: (2 (a + b + 3) + 2 n) u |w|_1 |x|_1.
    """
    n = x.shape[-1]
    bound = (2 * (sum(_split(n)) + 3) + 2 * n) * EPS * x.abs().sum(-1)[:, None] * weight.abs().sum(-1)
    assert ((rotated_x @ rotated_weight.T - x @ weight.T).abs() <= bound).all(), "the layer's output changed"


def test_by_hand():
    h = 2**-0.5
    assert hadamard_matrix(2).tolist() == [[h, h], [h, -h]]
    assert hadamard_matrix(4).tolist() == [
        [0.5, 0.5, 0.5, 0.5],
        [0.5, -0.5, 0.5, -0.5],
        [0.5, 0.5, -0.5, -0.5],
        [0.5, -0.5, -0.5, 0.5],
    ]
    assert rotate(torch.tensor([1.0, 2.0, 3.0, 4.0])).tolist() == [5.0, -1.0, -2.0, 0.0]
    assert rotate(torch.tensor([8.0, 0.0, 0.0, 0.0])).tolist() == [4.0, 4.0, 4.0, 4.0]  # an outlier spread


@pytest.mark.parametrize("n", SIZES)
def test_orthonormal_with_entries_of_one_size(n):
    H = hadamard_matrix(n)
    assert H.shape == (n, n)
    assert supported(n)
    # n^-1/2 and 1/sqrt(n) are each within an ulp of the real number.
    assert torch.equal(H.abs(), H[0, 0].abs().expand(n, n))
    assert H[0, 0].abs().item() == pytest.approx(1 / math.sqrt(n), rel=2 * EPS, abs=0)
    assert_orthonormal(H)


@pytest.mark.parametrize("n", [2, 4, 64, 512, 1024])
def test_powers_of_two_are_sylvesters(n):
    signs = torch.from_numpy(scipy_hadamard(n)).double()
    assert torch.equal(hadamard_matrix(n).sign(), signs)


def test_the_other_bases_are_paleys():
    """Which Hadamard matrix it is shows in every stored scale behind a rotation, so it is pinned."""
    H12, H40 = hadamard_matrix(12).sign(), hadamard_matrix(40).sign()
    H20 = H40[:20, :20]
    assert torch.equal(H40, torch.kron(hadamard_matrix(2).sign(), H20))
    for H in (H12, H20):
        assert (H[0] == 1).all()
        assert torch.equal(H + H.T, 2 * torch.eye(len(H), dtype=H.dtype))
    # Row 1 by hand. q = 11: -1, then chi(-j), j from 0, with 1 for chi(0); squares 1 3 4 5 9.
    assert H12[1].tolist() == [-1, 1, -1, 1, -1, -1, -1, 1, 1, 1, -1, 1]
    # q = 19: squares 1 4 5 6 7 9 11 16 17.
    assert H20[1].tolist() == [-1, 1, -1, 1, 1, -1, -1, -1, -1, 1, -1, 1, -1, 1, 1, 1, 1, -1, -1, 1]


@pytest.mark.parametrize(("n", "m"), [(24, 12), (384, 12), (80, 40)])
def test_doubling_is_sylvesters(n, m):
    powers = torch.from_numpy(scipy_hadamard(n // m)).double()
    assert torch.equal(hadamard_matrix(n).sign(), torch.kron(hadamard_matrix(m).sign(), powers))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("n", SIZES)
def test_rotate_is_the_matrix_product(n, dtype):
    x = normal(5, n, dtype=dtype)
    x[0] = 0
    x[1, n // 2] = 1e4  # one outlier
    assert_rotated(rotate(x), x)


@settings(max_examples=60, deadline=None)
@given(
    n=st.sampled_from([1, 2, 8, 12, 40, 48, 80, 192, 384, 512]),
    lead=st.lists(st.integers(0, 4), max_size=3),
    layout=st.sampled_from(["whole", "slice", "turned"]),
    dtype=st.sampled_from([torch.float64, torch.float32]),
    exponent=st.integers(-20, 20),
    seed=st.integers(0, 2**32),
)
def test_rotate_keeps_the_norm_at_any_shape_stride_and_magnitude(n, lead, layout, dtype, exponent, seed):
    x = normal(*lead, n, dtype=dtype, seed=seed) * 2.0**exponent
    if layout == "slice":
        x = torch.cat((x, x, x), -1)[..., n : 2 * n]
    elif layout == "turned":
        x = x.movedim(-1, 0).contiguous().movedim(0, -1)
    before = x.clone()
    y = rotate(x)
    assert torch.equal(x, before), "the input was changed"
    assert_rotated(y, x)
    # The error's norm is at most (a + b + 3) u || |H| |x| ||, and || |H| || = sqrt(n).
    was, now = x.double().norm(dim=-1), y.double().norm(dim=-1)
    bound = ((sum(_split(n)) + 3) * torch.finfo(dtype).eps + n * EPS) * math.sqrt(n) * was
    assert ((now - was).abs() <= bound).all()


@pytest.mark.parametrize("n", SIZES[:-1])
def test_a_rotated_weight_undoes_a_rotated_activation(n):
    x, weight = normal(7, n, seed=1), normal(9, n, seed=2)
    assert_consumer_sees_no_change(weight, x, rotate(weight), rotate(x))


def test_rotation_module():
    module, x = Rotation(), normal(2, 3, 24)
    assert torch.equal(module(x), rotate(x))
    assert not list(module.parameters())
    assert not module.state_dict()


def test_gradient_passes_the_other_way_even_after_inference_mode():
    with torch.inference_mode():
        rotate(torch.zeros(320, dtype=torch.float64))  # may be the call that builds the factors
    x = normal(320).requires_grad_()
    rotate(x)[5].backward()
    H = hadamard_matrix(320)
    assert torch.allclose(x.grad, H[5], rtol=(sum(_split(320)) + 3) * EPS, atol=0)


def test_a_matrix_handed_out_is_the_callers_own():
    hadamard_matrix(12).zero_()
    rotate(normal(12)).zero_()
    assert_orthonormal(hadamard_matrix(12))
    assert_rotated(rotate(normal(12)), normal(12))


@pytest.mark.parametrize("n", [0, 3, 6, 20, 36, 100, 144])
def test_other_sizes_are_refused(n):
    assert not supported(n)
    for call in (hadamard_matrix, lambda n: rotate(torch.zeros(2, n))):
        with pytest.raises(BadParameter, match=rf"must be 2\^k, 12\*2\^k or 40\*2\^k \(got {n}\)"):
            call(n)


def test_negative_size_is_refused():
    assert not supported(-4)


def test_an_integer_grid_is_refused():
    with pytest.raises(BadParameter, match=r"floating tensors .* \(got torch.int8\)"):
        rotate(torch.zeros(4, dtype=torch.int8))


# Planted faults: the checks above must catch them.


@pytest.mark.parametrize("n", [2, 12, 40, 512])
def test_a_missing_normalisation_fails(n):
    signs = hadamard_matrix(n).sign()
    x, weight = normal(7, n, seed=1), normal(9, n, seed=2)
    with pytest.raises(AssertionError):
        assert_orthonormal(signs)
    with pytest.raises(AssertionError):
        assert_rotated(x @ signs.T, x)
    with pytest.raises(AssertionError):
        assert_consumer_sees_no_change(weight, x, weight @ signs.T, x @ signs.T)


@pytest.mark.parametrize("n", NOT_SYMMETRIC)
def test_the_transposed_matrix_fails_where_it_differs(n):
    H, x, weight = hadamard_matrix(n), normal(7, n, seed=1), normal(9, n, seed=2)
    assert not torch.equal(H, H.T)
    assert_consumer_sees_no_change(weight, x, weight @ H.T, x @ H.T)
    with pytest.raises(AssertionError):
        assert_consumer_sees_no_change(weight, x, weight @ H, x @ H.T)
    with pytest.raises(AssertionError):
        assert_rotated(x @ H, x)


@pytest.mark.parametrize("n", [2, 64, 512])
def test_the_transposed_matrix_is_no_fault_at_powers_of_two(n):
    assert torch.equal(hadamard_matrix(n), hadamard_matrix(n).T)


@pytest.mark.parametrize("n", [12, 40, 512])
def test_one_wrong_sign_fails(n):
    H = hadamard_matrix(n)
    H[n // 2, 1] *= -1
    with pytest.raises(AssertionError):
        assert_orthonormal(H)
    with pytest.raises(AssertionError):
        assert_rotated(normal(5, n) @ H.T, normal(5, n))
    with pytest.raises(AssertionError):
        assert_rotated((normal(5, n) @ H.T).float(), normal(5, n).float())
