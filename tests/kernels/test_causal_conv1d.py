"""causal_conv1d: against float64, by hand, and with faults planted."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from quambench_kernels import dispatch
from quambench_kernels.causal_conv1d import causal_conv1d, next_history
from quambench_kernels.causal_conv1d.reference import causal_conv1d_ref

OP = "causal_conv1d"


def drawn(batch, length, channels, width, seed=0, dtype=torch.float32):
    """x, weight, bias, history."""
    g = torch.Generator().manual_seed(seed)
    shapes = (batch, length, channels), (channels, width), (channels,), (batch, width - 1, channels)
    return [torch.randn(shape, generator=g).to(dtype) for shape in shapes]


def oracle(x, weight, bias, history, silu):
    """torch's own grouped convolution in float64, which shares no code with ours."""
    x, weight, history = x.double(), weight.double(), history.double()
    padded = torch.cat([history, x], dim=1).transpose(1, 2)
    y = F.conv1d(padded, weight[:, None], None if bias is None else bias.double(), groups=len(weight)).transpose(1, 2)
    return y * torch.sigmoid(y) if silu else y


def assert_convolves(judge, impl, x, weight, bias, history, silu):
    y, after = causal_conv1d(x, weight, bias, history, silu=silu, impl=impl)
    exact = oracle(x, weight, bias, history, silu)
    judge.as_accurate(y, causal_conv1d_ref(x, weight, bias, history, silu), exact)
    assert torch.equal(after, torch.cat([history, x], dim=1)[:, x.shape[1] :])


@settings(max_examples=40, deadline=None)
@given(
    batch=st.sampled_from([1, 3]),
    length=st.sampled_from([1, 2, 3, 4, 5, 15, 16, 17, 33]),
    channels=st.integers(1, 70),
    width=st.integers(1, 5),
    biased=st.booleans(),
    silu=st.booleans(),
    strided=st.booleans(),
    seed=st.integers(0, 2**32),
)
def test_agrees_with_torch_in_float64(judge, impl, batch, length, channels, width, biased, silu, strided, seed):
    x, weight, bias, history = drawn(batch, length, channels, width, seed)
    x = judge.inside(x) if strided else x
    assert_convolves(judge, impl, x, weight, bias if biased else None, history, silu)


def test_by_hand(impl):
    # Width 2, weights (10, 1): y_t = 10 x_{t-1} + x_t + 0.5; before the first, x was 3.
    x, weight, bias, history = [[[1.0], [2.0]]], [[10.0, 1.0]], [0.5], [[[3.0]]]
    y, after = causal_conv1d(*(torch.tensor(v) for v in (x, weight, bias, history)), impl=impl)
    assert y.tolist() == [[[31.5], [12.5]]]
    assert after.tolist() == [[[2.0]]]


@pytest.mark.parametrize("pieces", [[1] * 9, [2, 7], [3, 1, 5], [4, 4, 1]])
def test_pieces_equal_the_whole(judge, impl, pieces):
    x, weight, bias, history = drawn(2, 9, 37, 4)
    whole, end = causal_conv1d(x, weight, bias, history, silu=True, impl=impl)
    exact, found = oracle(x, weight, bias, history, True), []
    for piece in x.split(pieces, dim=1):
        y, history = causal_conv1d(piece, weight, bias, history, silu=True, impl=impl)
        found.append(y)
    judge.as_accurate(torch.cat(found, dim=1), whole, exact)
    assert torch.equal(history, end)


def test_the_same_numbers_twice(impl):
    inputs = drawn(3, 65, 130, 4)
    first, again = (causal_conv1d(*inputs, silu=True, impl=impl)[0] for _ in range(2))
    assert torch.equal(first, again)


def test_silu_where_its_exponential_over_and_underflows(judge, impl):
    x = torch.tensor([-1e4, -200.0, -88.0, -87.0, -30.0, -0.0, 0.0, 30.0, 88.0, 200.0, 1e4]).view(1, -1, 1)
    weight, history = torch.ones(1, 1), torch.zeros(1, 0, 1)
    y, _ = causal_conv1d(x, weight, None, history, silu=True, impl=impl)
    exact = x.double() * torch.sigmoid(x.double())
    # Three roundings and e^-x to 2 of them; where e^x < 2^-126 what is left is below any float32 but those few.
    assert ((y.double() - exact).abs() <= 5 * torch.finfo(torch.float32).eps * exact.abs() + 1e-32).all()


def test_a_nan_stays(impl):
    x, weight, bias, history = drawn(1, 5, 20, 4)
    x[0, 2, 7] = torch.nan
    y, _ = causal_conv1d(x, weight, bias, history, silu=True, impl=impl)
    assert y.isnan().nonzero().tolist() == [[0, t, 7] for t in (2, 3, 4)]


@pytest.mark.parametrize(
    "fault",
    [
        lambda run, x, w, *rest: run(x, w.roll(1, 1), *rest),  # one tap off
        lambda run, x, w, b, h, silu: run(x, w, b, torch.zeros_like(h), silu),  # history lost
        lambda run, x, w, b, h, silu: run(x, w, None, h, silu),
        lambda run, x, w, b, h, silu: run(x, w, b, h, False),
    ],
)
def test_a_fault_is_noticed(judge, fault):
    with dispatch.around(OP, fault), pytest.raises(AssertionError):
        assert_convolves(judge, "auto", *drawn(2, 9, 20, 4), True)


def test_gradients_are_recorded_and_a_named_kernel_refuses_to(judge):
    inputs = [t.requires_grad_() for t in drawn(2, 5, 3, 4, dtype=torch.float64)]
    assert torch.autograd.gradcheck(lambda *a: causal_conv1d(*a, silu=True), inputs)
    with pytest.raises(ValueError, match="'native' has no backward; call it under torch"):
        causal_conv1d(*inputs, impl="native")


def test_next_history_is_its_own_tensor():
    x, history = torch.zeros(1, 5, 2), torch.zeros(1, 3, 2)
    for piece in (x, x[:, :1]):
        after = next_history(piece, history)
        after += 1
        assert not x.any()
        assert not history.any()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": torch.zeros(2, 3)}, "x must be (any, any, any) (got (2, 3))"),
        ({"weight": torch.zeros(5, 4)}, "weight must be (6, any) (got (5, 4))"),
        ({"history": torch.zeros(2, 2, 6)}, "history must be (2, 3, 6) (got (2, 2, 6))"),
        ({"bias": torch.zeros(5)}, "bias must be (6) (got (5,))"),
        ({"bias": torch.zeros(6).double()}, "all must be of one floating dtype"),
        ({"weight": torch.zeros(6, 4, device="meta")}, "all must be on one device"),
    ],
)
def test_refuses_in_one_line(change, message):
    x, weight, bias, history = drawn(2, 3, 6, 4)
    arguments = {"x": x, "weight": weight, "bias": bias, "history": history} | change
    with pytest.raises(ValueError, match=r"^causal_conv1d: ") as raised:
        causal_conv1d(**arguments)
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)
