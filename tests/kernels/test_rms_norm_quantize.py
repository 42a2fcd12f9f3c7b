"""rms_norm_quantize and its two relatives: against the formula in float64, ties by hand, and with faults planted."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from quambench_kernels import dispatch
from quambench_kernels.rms_norm_quantize import (
    add_rms_norm_quantize,
    gated_rms_norm_quantize,
    reference,
    rms_norm_quantize,
)
from quambench_kernels.rms_norm_quantize.reference import rms_norm_quantize_ref

OP = "rms_norm_quantize"


def formula(x, gain, eps, n_groups, z=None, norm_first=False):
    """One part at a time, in float64."""
    x = x.double()
    gate = 1 if z is None else z.double() * torch.sigmoid(z.double())
    x = x if norm_first else x * gate
    parts = [p / (p.square().mean(-1, keepdim=True) + eps).sqrt() for p in x.chunk(n_groups, dim=-1)]
    y = torch.cat(parts, dim=-1) * (1 if gain is None else gain.double())
    return y * gate if norm_first else y


def plainly(x, gain, eps, n_groups, z=None, norm_first=False, residual=None):
    return rms_norm_quantize_ref(x, residual, z, None, norm_first, gain, eps, n_groups, None, 127)[0]


SETTINGS = dict(
    lead=st.sampled_from([(1,), (3,), (2, 5), (0,)]),
    width=st.sampled_from([(1, 1), (8, 2), (33, 3), (768, 1), (100, 4)]),
    with_gain=st.booleans(),
    strided=st.booleans(),
    seed=st.integers(0, 2**32),
)


def drawn(judge, lead, n, with_gain, strided, seed):
    g = torch.Generator().manual_seed(seed)
    x, other, gain = torch.randn(*lead, n, generator=g), torch.randn(*lead, n, generator=g), torch.randn(n, generator=g)
    if strided:
        x, other = judge.inside(x), judge.inside(other)
    return x, other, gain if with_gain else None, judge.scales(g, about=0.03)


@settings(max_examples=30, deadline=None)
@given(**SETTINGS)
def test_plain(judge, impl, lead, width, with_gain, strided, seed):
    n, groups = width[0] - width[0] % width[1] or 1, width[1] if width[0] >= width[1] else 1
    x, _, gain, scale = drawn(judge, lead, n, with_gain, strided, seed)
    exact, usual = formula(x, gain, 1e-5, groups), plainly(x, gain, 1e-5, groups)
    judge.as_accurate(rms_norm_quantize(x, gain, 1e-5, None, n_groups=groups, impl=impl), usual, exact)
    judge.rounded(rms_norm_quantize(x, gain, 1e-5, scale, n_groups=groups, impl=impl), usual, exact, scale)


@settings(max_examples=30, deadline=None)
@given(**SETTINGS)
def test_after_adding(judge, impl, lead, width, with_gain, strided, seed):
    x, residual, gain, scale = drawn(judge, lead, width[0], with_gain, strided, seed)
    exact = formula(x.double() + residual.double(), gain, 1e-5, 1)
    usual = plainly(x, gain, 1e-5, 1, residual=residual)
    q, total = add_rms_norm_quantize(x, residual, gain, 1e-5, scale, impl=impl)
    judge.rounded(q, usual, exact, scale)
    assert torch.equal(total, residual + x)  # one rounding, the same everywhere
    y, total = add_rms_norm_quantize(x, residual, gain, 1e-5, None, impl=impl)
    judge.as_accurate(y, usual, exact)
    assert torch.equal(total, residual + x)


@settings(max_examples=30, deadline=None)
@given(norm_first=st.booleans(), integer_gate=st.booleans(), table=st.booleans(), **SETTINGS)
def test_gated(judge, impl, lead, width, with_gain, strided, seed, norm_first, integer_gate, table):
    n, groups = width[0] - width[0] % width[1] or 1, width[1] if width[0] >= width[1] else 1
    x, z, gain, scale = drawn(judge, lead, n, with_gain, strided, seed)
    z_scale = None
    if integer_gate:
        g = torch.Generator().manual_seed(seed)
        z_q, z_scale = judge.ints(g, *lead, n), judge.scales(g, *((n,) if table else ()), about=0.03)
        z_q = judge.inside(z_q) if strided else z_q
    z_float, kept = (z_q.float() * z_scale, z_q) if integer_gate else (z, z)
    exact = formula(x, gain, 1e-5, groups, z_float if not integer_gate else z_q.double() * z_scale.double(), norm_first)
    usual = plainly(x, gain, 1e-5, groups, z_float, norm_first)
    for step in (None, scale):
        got = gated_rms_norm_quantize(
            x, kept, z_scale, gain, 1e-5, step, n_groups=groups, norm_before_gate=norm_first, impl=impl
        )
        if step is None:
            judge.as_accurate(got, usual, exact)
        else:
            judge.rounded(got, usual, exact, step)


def test_by_hand(impl):
    # mean(x^2) = (9 + 16) / 2 = 12.5, eps 3.5: sqrt(16) = 4; gains 1 and 2
    y = rms_norm_quantize(torch.tensor([[3.0, 4.0]]), torch.tensor([1.0, 2.0]), 3.5, None, impl=impl)
    assert y.tolist() == [[0.75, 2.0]]


def test_ties_go_to_even(impl):
    # x = +-1 has norm 1: y = gain
    k = torch.arange(-20.0, 21.0)
    q = rms_norm_quantize(torch.ones(1, 41), k / 2, 0.0, torch.tensor(1.0), impl=impl)
    assert q.tolist() == [[round(v / 2) for v in range(-20, 21)]]


def test_ties_away_from_zero_are_noticed(half_away):
    with half_away(OP, reference, rms_norm_quantize_ref), pytest.raises(AssertionError):
        test_ties_go_to_even("auto")


def test_a_row_of_zeros_and_one_of_huge_values(judge, impl):
    x = torch.stack([torch.zeros(64), torch.full((64,), 1e18), torch.full((64,), 1e-18)])
    y = rms_norm_quantize(x, None, 1e-5, None, impl=impl)
    assert y[0].tolist() == [0.0] * 64
    judge.as_accurate(y[1:], plainly(x, None, 1e-5, 1)[1:], formula(x, None, 1e-5, 1)[1:])


# x, residual, z, z_scale, norm_before_gate, gain, eps, n_groups, scale, q_max
FAULTS = {
    "no eps": lambda run, *a: run(*a[:6], 0.0, *a[7:]),
    "one group": lambda run, *a: run(*a[:7], 1, *a[8:]),
    "gate on the other side": lambda run, *a: run(*a[:4], not a[4], *a[5:]),
    "no gain": lambda run, *a: run(*a[:5], None, *a[6:]),
    "truncated": lambda run, *a: (run(*a[:8], None, a[9])[0].div(a[8]).trunc().clamp(-128, 127).to(torch.int8), None),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_noticed(judge, fault):
    x, z, gain, scale = drawn(judge, (5,), 24, True, False, 0)
    usual, exact = plainly(x, gain, 0.1, 2, z), formula(x, gain, 0.1, 2, z)
    with dispatch.around(OP, FAULTS[fault]), pytest.raises(AssertionError):
        judge.rounded(gated_rms_norm_quantize(x, z, None, gain, 0.1, scale, n_groups=2), usual, exact, scale)


def test_a_residual_left_out_is_noticed(judge):
    x, residual, gain, scale = drawn(judge, (5,), 24, True, False, 0)
    usual, exact = plainly(x, gain, 0.1, 1, residual=residual), formula(x.double() + residual.double(), gain, 0.1, 1)
    with dispatch.around(OP, lambda run, *a: (*run(a[0], None, *a[2:])[:1], a[0])), pytest.raises(AssertionError):
        judge.rounded(add_rms_norm_quantize(x, residual, gain, 0.1, scale)[0], usual, exact, scale)


def test_gradients_after_adding_are_recorded():
    x, residual = (torch.randn(2, 6, dtype=torch.float64, requires_grad=True) for _ in range(2))
    gain = torch.randn(6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda *a: add_rms_norm_quantize(*a, 1e-5, None), (x, residual, gain))


def test_gradients_are_recorded():
    x, z, gain = (torch.randn(3, 8, dtype=torch.float64).requires_grad_() for _ in range(3))
    gain = gain[0].detach().requires_grad_()
    assert torch.autograd.gradcheck(lambda x, g: rms_norm_quantize(x, g, 0.1, None, n_groups=2), (x, gain))
    assert torch.autograd.gradcheck(lambda x, z, g: gated_rms_norm_quantize(x, z, None, g, 0.1, None), (x, z, gain))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: rms_norm_quantize(x, None, 1e-5, None, n_groups=3), "n_groups = 3 dividing n (got (2, 8))"),
        (lambda x: rms_norm_quantize(x, torch.ones(7), 1e-5, None), "gain must be (8)"),
        (lambda x: rms_norm_quantize(x, None, 1e-5, torch.ones(8)), "scale must be () float32"),
        (lambda x: rms_norm_quantize(x.int(), None, 1e-5, None), "x must be torch.float64 or"),
        (lambda x: add_rms_norm_quantize(x, x[:1], None, 1e-5, None), "residual must be (2, 8) (got (1, 8))"),
        (lambda x: gated_rms_norm_quantize(x, x, torch.tensor(1.0), None, 1e-5, None), "z must be torch.int8"),
    ],
)
def test_refuses_in_one_line(call, message):
    with pytest.raises(ValueError, match=r"^\w*rms_norm_quantize: ") as raised:
        call(torch.zeros(2, 8))
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)
