"""GPTQ against optimal brain quantization as it is defined, and faults that must fail the same checks."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from quambench.core.errors import BadParameter
from quambench.grids.grid import MIN_SCALE
from quambench.int8 import gptq as module
from quambench.int8.gptq import accumulate, gptq
from quambench.int8.w4 import GroupedWeight, round_to_nearest

EPS32, EPS64 = (torch.finfo(dtype).eps for dtype in (torch.float32, torch.float64))
LOW, HIGH = -8, 7
DRAWS = 40

seeds = st.integers(0, 10**6)


def normal(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def correlated(tokens, n, seed=0):
    """Inputs as of a hidden layer: few directions carry most, channels differ in size, a little noise in each."""
    directions = normal(max(1, n // 4), n, seed=seed + 1) * normal(n, seed=seed + 2).exp()
    return normal(tokens, len(directions), seed=seed + 3) @ directions + 0.1 * normal(tokens, n, seed=seed + 4)


def problem(out, n, tokens, dead=0, seed=0):
    """weight (out, n), and the Hessian (n, n) of correlated inputs of which `dead` are always 0."""
    x = correlated(tokens, n, seed)
    x[:, torch.randperm(n, generator=torch.Generator().manual_seed(seed))[:dead]] = 0
    return normal(out, n, seed=seed), x.T @ x


def optimal_brain(weight, hessian, group, damping, decided=None):
    """Optimal brain quantization in its textbook form: the inverse of what is left of H, anew for every column.

    `decided`: take its integers and steps, so that one tie taken the other way changes nothing after it.
    returns  what was rounded: q and steps, decided or own; the weights that stood there (out, in); their
             amax per group (out, n_groups); the error of all that in float64, (out, in)

    Error: entries of an inverse err by n cond EPS64 of its largest entry, at most cond times the corner
    that they are divided by; n columns add up.
    """
    dead = hessian.diagonal() == 0
    living = hessian.diagonal()[~dead]
    H = hessian + torch.diag(dead + damping * (living.mean() if len(living) else 0))
    W = weight.double() * ~dead
    n = W.shape[1]
    relative = (n * torch.linalg.cond(H)) ** 2 * EPS64
    q, stood, amax, steps, slack = torch.zeros_like(W), torch.zeros_like(W), [], [], torch.zeros_like(W)
    for j in range(n):
        if j % group == 0:
            amax.append(W[:, j : j + group].abs().amax(1))
            own = (2 * amax[-1] / 15).float().clamp(min=MIN_SCALE)
            steps.append(own if decided is None else decided.steps[:, j // group])
        step = steps[-1].double()
        q[:, j] = (W[:, j] / step).round().clamp(LOW, HIGH) if decided is None else decided.q[:, j]
        stood[:, j] = W[:, j]
        slack[:, j] = relative * W.abs().max()
        inverse = torch.linalg.inv(H[j:, j:])
        W[:, j:] -= ((W[:, j] - q[:, j] * step) / inverse[0, 0])[:, None] * inverse[0]
    return GroupedWeight(q.to(torch.int8), torch.stack(steps, 1), group), stood, torch.stack(amax, 1), slack


def assert_optimal_brain(found, weight, hessian, group, damping=0.01):
    """Every integer is the nearest to what is left of its weight after all the integers before it, and every
    step is that of its group's weights as they stood at its first column.

    Both to the oracle's error in float64; a step also to its rounding to float32 (EPS32 / 2, doubled).
    """
    _, stood, amax, slack = optimal_brain(weight, hessian, group, damping, decided=found)
    want = (2 * amax / 15).clamp(min=MIN_SCALE)
    assert found.steps.shape == want.shape
    assert found.group == group
    steps = found.steps.double()
    assert ((steps - want).abs() <= EPS32 * want + slack[:, ::group]).all(), "a step is not its group's"
    per_column = steps.repeat_interleave(group, 1)[:, : weight.shape[1]]
    error = ((stood / per_column).clamp(LOW, HIGH) - found.q).abs()
    assert (error <= 0.5 + slack / per_column).all(), f"error {error.max():.6f} steps; rounding allows 0.5"


def output_error(found, weight, hessian):
    """||(W - Ŵ) X||²."""
    difference = weight - found.dequantize().double()
    return ((difference @ hessian) * difference).sum().item()


def ratios_to_nearest():
    """The output error as a share of round-to-nearest's, of 40 random layers with correlated inputs."""
    found = []
    for seed in range(DRAWS):
        weight, hessian = problem(16, 64, tokens=256, seed=10 * seed)
        nearest = output_error(round_to_nearest(weight, 32), weight, hessian)
        found.append(output_error(gptq(weight, hessian, 32), weight, hessian) / nearest)
    return found


def assert_better_than_nearest(ratios):
    assert len(ratios) == DRAWS
    assert max(ratios) < 1, f"{sum(r >= 1 for r in ratios)} of {DRAWS} draws are no better than rounding to nearest"


# By hand.


def test_two_columns_by_hand():
    # H^-1 = [[2, -1], [-1, 2]] / 3. Step 2*7.5/15 = 1. -7.5 becomes -8 (to even), an error of 0.5; fed
    # back it is -0.5 * (-1/3) / (2/3) = +0.25. So 2.375 becomes 2.625 and 3, not 2.
    weight, hessian = torch.tensor([[-7.5, 2.375]]), torch.tensor([[2.0, 1.0], [1.0, 2.0]]).double()
    assert gptq(weight, hessian, damping=0).q.tolist() == [[-8, 3]]
    assert round_to_nearest(weight).q.tolist() == [[-8, 2]]
    # The same Hessian by damping: [[1, 1], [1, 1]] with once its mean diagonal.
    assert gptq(weight, torch.ones(2, 2).double(), damping=1).q.tolist() == [[-8, 3]]


def test_the_next_groups_step_is_of_its_updated_weights_by_hand():
    # As above, but 2.375 has a group of its own: 2.625 stands there, and the step is 2*2.625/15 = 0.35.
    weight, hessian = torch.tensor([[-7.5, 2.375]]), torch.tensor([[2.0, 1.0], [1.0, 2.0]]).double()
    found = gptq(weight, hessian, group=1, damping=0)
    assert found.steps[0, 0] == 1
    assert found.steps[0, 1].item() == pytest.approx(0.35, rel=EPS32)


def test_a_dead_input_by_hand():
    # Its weight of 1000 neither survives nor widens the step; the others are as above.
    hessian = torch.tensor([[2.0, 0.0, 1.0], [0.0, 0.0, 0.0], [1.0, 0.0, 2.0]]).double()
    found = gptq(torch.tensor([[-7.5, 1000.0, 2.375]]), hessian, damping=0)
    assert found.q.tolist() == [[-8, 0, 3]]
    assert found.steps.tolist() == [[1.0]]


def test_accumulate_by_hand():
    start = torch.eye(2, dtype=torch.float64)
    x = torch.tensor([[[1.0, 2.0]], [[3.0, -1.0]]])  # (2, 1, 2)
    # 1 + 9, 2 - 3, 4 + 1, and the identity.
    assert accumulate(start, x).tolist() == [[11.0, -1.0], [-1.0, 6.0]]
    assert accumulate(start, x[0, 0]).tolist() == [[2.0, 2.0], [2.0, 5.0]]
    assert accumulate(start, x[:0]).tolist() == start.tolist() == [[1.0, 0.0], [0.0, 1.0]]


# Against the definition.


@settings(max_examples=150, deadline=None)
@given(
    seed=seeds,
    out=st.integers(1, 4),
    n=st.integers(1, 24),
    group=st.integers(1, 26),
    tokens=st.integers(1, 60),
    dead=st.integers(0, 3),
    damping=st.sampled_from([0.01, 0.1]),
)
def test_every_decision_is_optimal_brain_quantizations(seed, out, n, group, tokens, dead, damping):
    weight, hessian = problem(out, n, tokens, dead, seed)
    assert_optimal_brain(gptq(weight, hessian, group, damping), weight, hessian, group, damping)


@pytest.mark.parametrize("group", [1, 4, 7, 24, 128])
@pytest.mark.parametrize("seed", range(5))
def test_the_result_is_optimal_brain_quantizations(seed, group):
    """Left to decide alone the oracle comes to the same integers: no draw comes as near a tie as float64's error."""
    weight, hessian = problem(5, 24, tokens=60, dead=1, seed=seed)
    found, (own, *_) = gptq(weight, hessian, group), optimal_brain(weight, hessian, group, 0.01)
    assert torch.equal(found.q, own.q)
    assert torch.allclose(found.steps, own.steps, rtol=EPS32, atol=0)


def test_a_layer_of_real_size_too():
    weight, hessian = problem(8, 200, tokens=400, dead=3)
    assert_optimal_brain(gptq(weight, hessian), weight, hessian, 128)


@settings(max_examples=150, deadline=None)
@given(seed=seeds, out=st.integers(1, 5), n=st.integers(1, 40), group=st.integers(1, 45), double=st.booleans())
def test_with_a_diagonal_hessian_it_is_rounding_to_nearest(seed, out, n, group, double):
    weight = normal(out, n, seed=seed).to(torch.float64 if double else torch.float32)
    found = gptq(weight, torch.diag(normal(n, seed=seed + 1).exp()), group)
    nearest = round_to_nearest(weight, group)
    assert torch.equal(found.q, nearest.q)
    assert torch.equal(found.steps, nearest.steps)


def test_the_output_is_nearer_than_rounding_to_nearest():
    assert_better_than_nearest(ratios_to_nearest())


@settings(max_examples=50, deadline=None)
@given(seed=seeds, n=st.integers(1, 24), group=st.integers(1, 26), dead=st.integers(0, 3), power=st.integers(-20, 20))
def test_the_hessians_unit_is_no_matter(seed, n, group, dead, power):
    """Powers of 4 have exact roots, so not one bit may change, whatever is dead."""
    weight, hessian = problem(3, n, 30, dead, seed)
    found, scaled = gptq(weight, hessian, group), gptq(weight, 4.0**power * hessian, group)
    assert torch.equal(found.q, scaled.q)
    assert torch.equal(found.steps, scaled.steps)


def test_inputs_that_were_all_dead_leave_zeros():
    found = gptq(normal(3, 5), torch.zeros(5, 5).double(), group=2)
    assert not found.q.any()
    assert not found.dequantize().any()


@settings(max_examples=50, deadline=None)
@given(seed=seeds, n=st.integers(1, 20), sizes=st.lists(st.integers(0, 9), max_size=4))
def test_batches_accumulate_to_their_tokens_hessian(seed, n, sizes):
    """Small integers: every sum is exact, in any order."""
    x = (10 * normal(sum(sizes), n, seed=seed)).round().float()
    hessian = torch.zeros(n, n, dtype=torch.float64)
    for batch in x.split(sizes):
        hessian = accumulate(hessian, batch[:, None])
    assert hessian.dtype == torch.float64
    assert torch.equal(hessian, x.double().T @ x.double())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_products_are_taken_in_float64(dtype):
    """The square of 1 + eps has twice the digits, and the square of the largest value is beyond the dtype."""
    info = torch.finfo(dtype)
    x = torch.tensor([[1 + info.eps], [info.max]], dtype=dtype)
    for row in x:
        found = accumulate(torch.zeros(1, 1, dtype=torch.float64), row).item()
        assert found == row.double().item() ** 2
        assert found != (row * row).double().item()


def test_arguments_are_left_alone():
    weight, hessian = problem(3, 12, 30, dead=2)
    x = correlated(4, 12)
    before = [t.clone() for t in (weight, hessian, x)]
    gptq(weight, hessian, 5)
    gptq(weight[:1], hessian, 5)  # one row: its transpose is contiguous as it is
    accumulate(hessian, x)
    assert all(torch.equal(a, b) for a, b in zip(before, (weight, hessian, x), strict=True))


# What is refused.


@pytest.mark.parametrize(
    ("weight", "hessian", "keywords", "message"),
    [
        (torch.ones(4), torch.eye(4), {}, r"must be \(out, in\), neither of them 0 \(got \(4,\)\)"),
        (torch.ones(2, 4), torch.eye(3), {}, r"of 4 inputs must be \(4, 4\) \(got \(3, 3\)\)"),
        (torch.ones(2, 4), torch.ones(4), {}, r"of 4 inputs must be \(4, 4\) \(got \(4,\)\)"),
        (torch.ones(2, 4), torch.eye(4), {"group": 0}, r"at least 1 input \(got 0\)"),
        (torch.ones(2, 2), torch.tensor([[1.0, torch.nan], [0, 1]]), {}, "must be finite"),
        (torch.ones(2, 2), torch.tensor([[torch.inf, 0], [0, 1]]), {}, "must be finite"),
        (torch.ones(2, 2), torch.eye(2), {"damping": -0.1}, r"at least 0 \(got -0.1\)"),
        (torch.ones(2, 2), torch.eye(2), {"damping": float("nan")}, r"at least 0 \(got nan\)"),
        (torch.ones(2, 2), torch.ones(2, 2), {"damping": 0}, "must be positive definite"),
        (torch.ones(2, 2), -torch.eye(2), {}, "must be positive definite"),
    ],
)
def test_what_does_not_fit_is_refused(weight, hessian, keywords, message):
    with pytest.raises(BadParameter, match=message) as refused:
        gptq(weight, hessian.double(), **keywords)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("x", [torch.ones(2, 3), torch.ones(()), torch.ones(3, 0)])
def test_inputs_of_another_width_are_refused(x):
    with pytest.raises(BadParameter, match=r"must be .* \(got \(4, 4\)\)"):
        accumulate(torch.zeros(4, 4).double(), x)


# Planted faults: the checks above must catch them. The first four are planted in the code itself.


def _without_feedback(U, group):
    return torch.diag(U.diagonal())


def _feedback_of_wrong_sign(U, group):
    return 2 * torch.diag(U.diagonal()) - U


def _feedback_kept_within_a_group(U, group):
    index = torch.arange(len(U)) // group
    return U * (index[:, None] == index)


def _factor_of_the_reversed_order(U, group):
    """R, upper triangular too, but R Rᵀ = H⁻¹ in place of Rᵀ R."""
    return torch.linalg.cholesky((U.T @ U).flip(0, 1)).flip(0, 1)


FAULTS = [_without_feedback, _feedback_of_wrong_sign, _feedback_kept_within_a_group, _factor_of_the_reversed_order]


@pytest.fixture
def plant(monkeypatch):
    def planting(fault, group):
        right = module._inverse_factor
        monkeypatch.setattr(module, "_inverse_factor", lambda hessian: fault(right(hessian), group))

    return planting


@pytest.mark.parametrize("fault", FAULTS)
def test_faulty_feedback_fails(fault, plant):
    weight, hessian = problem(4, 22, tokens=60)
    plant(fault, 12)
    with pytest.raises(AssertionError):
        assert_optimal_brain(gptq(weight, hessian, 12), weight, hessian, 12)


@pytest.mark.parametrize("fault", [_without_feedback, _feedback_of_wrong_sign])
def test_faulty_feedback_is_no_better_than_nearest(fault, plant):
    plant(fault, 32)
    with pytest.raises(AssertionError, match=f"{DRAWS} of {DRAWS} draws"):
        assert_better_than_nearest(ratios_to_nearest())


def test_steps_of_the_weights_as_they_were_at_first_fail():
    weight, hessian = problem(4, 22, tokens=60)
    found = replace(gptq(weight, hessian, 12), steps=round_to_nearest(weight, 12).steps)
    with pytest.raises(AssertionError, match="not its group's"):
        assert_optimal_brain(found, weight, hessian, 12)


@pytest.mark.parametrize("off", [-1, 1])
def test_a_group_off_by_one_fails(off):
    weight, hessian = problem(4, 22, tokens=60)
    found = replace(gptq(weight, hessian, 12 + off), group=12)
    with pytest.raises(AssertionError, match="not its group's"):
        assert_optimal_brain(found, weight, hessian, 12)


def test_another_damping_fails():
    weight, hessian = problem(4, 22, tokens=60)
    with pytest.raises(AssertionError):
        assert_optimal_brain(gptq(weight, hessian, 12, damping=0.02), weight, hessian, 12)


def test_one_integer_off_by_one_fails():
    weight, hessian = problem(4, 22, tokens=60)
    found = gptq(weight, hessian, 12)
    q = found.q.clone()
    q[2, 21] += 1 if q[2, 21] < HIGH else -1
    with pytest.raises(AssertionError, match="rounding allows"):
        assert_optimal_brain(replace(found, q=q), weight, hessian, 12)
