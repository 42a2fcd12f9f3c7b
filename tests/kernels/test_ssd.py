"""ssd: its definition by hand, the others against it, gradients, and with faults planted."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from quambench_kernels import dispatch
from quambench_kernels.ssd import ssd
from quambench_kernels.ssd.chunked import chunked
from quambench_kernels.ssd.reference import ssd_ref

OP = "ssd"
EPS64 = torch.finfo(torch.float64).eps
CHUNK = 32
FREE = (0.0, math.inf, CHUNK)


def drawn(batch=2, length=9, heads=6, head_dim=3, groups=2, n=4, seed=0, dtype=torch.float32, d_per_channel=False):
    """x, dt, A, B, C, D, state, dt_bias: as the reference takes them; drawn in float32."""
    g = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(shape, generator=g)

    made = [
        draw(batch, length, heads, head_dim), draw(batch, length, heads), -draw(heads).exp(),
        draw(batch, length, groups, n), draw(batch, length, groups, n),
        draw(*((heads, head_dim) if d_per_channel else (heads,))), draw(batch, heads, head_dim, n), draw(heads) - 1,
    ]  # fmt: skip
    return [m.to(dtype) for m in made]


def run(inputs, limits=FREE, impl="auto"):
    *inputs, dt_bias = inputs
    low, high, chunk = limits
    return ssd(*inputs, dt_bias=dt_bias, dt_min=low, dt_max=high, chunk=chunk, impl=impl)


def flat(result):
    return torch.cat([part.flatten() for part in result])


def all_positive(x, dt, A, B, C, D, state, dt_bias):
    return [x.abs(), dt, A, B.abs(), C.abs(), None if D is None else D.abs(), state.abs(), dt_bias]


def assert_scans(judge, inputs, limits=FREE, impl="auto"):
    in_float64 = [m if m is None else m.double() for m in inputs]
    plain, exact = ssd_ref(*inputs, *limits), ssd_ref(*in_float64, *limits)
    magnitude = ssd_ref(*all_positive(*in_float64), *limits)
    for got, usual, right, size in zip(run(inputs, limits, impl), plain, exact, magnitude, strict=True):
        judge.as_accurate(got, usual, right, size)


@settings(max_examples=30, deadline=None)
@given(
    batch=st.sampled_from([1, 3]),
    length=st.sampled_from([1, 2, 3, 4, 5, 31, 32, 33]),
    heads=st.sampled_from([(1, 1), (6, 2), (4, 4), (6, 1)]),
    head_dim=st.sampled_from([1, 7, 8, 16, 20, 40]),
    n=st.sampled_from([1, 5, 16]),
    d=st.sampled_from(["none", "head", "channel"]),
    biased=st.booleans(),
    strided=st.booleans(),
    seed=st.integers(0, 2**32),
)
def test_agrees_with_the_recurrence_in_float64(
    judge, impl, batch, length, heads, head_dim, n, d, biased, strided, seed
):
    x, dt, A, B, C, D, h, dt_bias = drawn(
        batch, length, heads[0], head_dim, heads[1], n, seed, d_per_channel=d == "channel"
    )
    if strided:
        x, B, C = (judge.inside(m.flatten(2)).unflatten(2, m.shape[2:]) for m in (x, B, C))
        dt = judge.inside(dt)
    if not biased:
        dt, dt_bias = dt.exp() / 4, None
    assert_scans(judge, (x, dt, A, B, C, None if d == "none" else D, h, dt_bias), impl=impl)


@pytest.mark.parametrize("length", [255, 257, 511, 513, 2049])
def test_agrees_at_lengths_of_prefill(judge, impl, length):
    if impl == "reference":
        length = length // 4 + 1
    assert_scans(judge, drawn(1, length, 4, 24, 2, 16), impl=impl)


@pytest.mark.parametrize("limits", [(0.2, 0.6, CHUNK), (0.0, 0.3, CHUNK), (0.7, math.inf, CHUNK)])
def test_step_sizes_have_limits(judge, impl, limits):
    inputs = drawn(length=33)
    step = torch.nn.functional.softplus(inputs[1] + inputs[-1])
    assert any(((step < limits[0]).any(), (step > limits[1]).any()))
    assert_scans(judge, inputs, limits, impl)
    with pytest.raises(AssertionError):
        for got, right in zip(run(inputs, FREE, impl), ssd_ref(*inputs, *limits), strict=True):
            judge.as_accurate(got, right, right.double())


@pytest.mark.parametrize("length", [1, 31, 32, 33, 100])
def test_in_float64_all_differ_by_rounding_alone(assert_only_rounding, length):
    def pair(dtype):
        inputs = drawn(length=length, dtype=dtype)
        return flat(run(inputs, impl="chunked")), flat(ssd_ref(*inputs, *FREE))

    assert_only_rounding(pair)


def lost_between_chunks(run, x, dt, A, B, C, D, h, *rest):
    head, _ = run(x[:, :CHUNK], dt[:, :CHUNK], A, B[:, :CHUNK], C[:, :CHUNK], D, h, *rest)
    tail, h = run(x[:, CHUNK:], dt[:, CHUNK:], A, B[:, CHUNK:], C[:, CHUNK:], D, 0 * h, *rest)
    return torch.cat([head, tail], dim=1), h


FAULTS = {
    "no decay": lambda run, x, dt, A, *rest: run(x, dt, 0 * A, *rest),
    "no initial state": lambda run, *a: run(*a[:6], 0 * a[6], *a[7:]),
    "state lost between chunks": lost_between_chunks,
    "groups exchanged": lambda run, x, dt, A, B, *rest: run(x, dt, A, B.flip(2), *rest),
    "no skip": lambda run, *a: run(*a[:5], None, *a[6:]),
    "half precision": lambda run, *a: tuple(m.half().to(m.dtype) for m in run(*a)),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_noticed(judge, fault):
    with dispatch.around(OP, FAULTS[fault]), pytest.raises(AssertionError, match="the plain expression's is"):
        assert_scans(judge, drawn(length=33))


@pytest.mark.parametrize("form", ["definition", "chunked", "chunks of one"])
def test_by_hand(form):
    # One head of two channels (rows), two states (columns), two tokens. Δ = ln 2 and A = -1 make the
    # decay 1/2; x carries a factor 1 / ln 2, so that Δ x = (1, 2), then (3, 0).
    #   h_0 = [2 4]   h_1 = [1 2] + [1 0] = [2 2]   h_2 = [1 1] + [3 3] = [4 4]
    #         [0 0]         [0 0]   [2 0]   [2 0]         [1 0]   [0 0]   [1 0]
    #   y_1 = h_1 (1, 1) = (4, 2)                   y_2 = h_2 (1, 2) = (12, 1)
    ln2 = math.log(2)
    x, dt = [[[[1 / ln2, 2 / ln2]], [[3 / ln2, 0.0]]]], [[[ln2], [ln2]]]
    B, C, state = [[[[1.0, 0.0]], [[1.0, 1.0]]]], [[[[1.0, 1.0]], [[1.0, 2.0]]]], [[[[2.0, 4.0], [0.0, 0.0]]]]
    x, dt, A, B, C, state = (torch.tensor(t, dtype=torch.float64) for t in (x, dt, [-1.0], B, C, state))
    if form == "definition":
        y, after = ssd_ref(x, dt, A, B, C, None, state, None, *FREE)
    else:
        y, after = chunked(x, dt, A, B, C, state, CHUNK if form == "chunked" else 1)
    # No term is negative, so relative errors add along the longest path, which has 20 roundings: per
    # token Δ A, its sum, a difference of sums, exp, decay · h, Δ x, B and the sum; then C and its sum.
    for found, expected in ((y, [[[[4.0, 2.0]], [[12.0, 1.0]]]]), (after, [[[[4.0, 4.0], [1.0, 0.0]]]])):
        torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), rtol=20 * EPS64, atol=0)


@pytest.mark.parametrize("pieces", [[1] * 12, [5, 7], [1, 11]])
def test_pieces_equal_the_whole(judge, impl, pieces):
    x, dt, A, B, C, D, h, dt_bias = inputs = drawn(length=12, head_dim=20)
    whole, exact = run(inputs, impl=impl), ssd_ref(*(m.double() for m in inputs), *FREE)
    magnitude = ssd_ref(*all_positive(*(m.double() for m in inputs)), *FREE)
    ys = []
    for px, pdt, pB, pC in zip(*(m.split(pieces, dim=1) for m in (x, dt, B, C)), strict=True):
        y, h = run((px, pdt, A, pB, pC, D, h, dt_bias), impl=impl)
        ys.append(y)
    judge.as_accurate(torch.cat(ys, dim=1), whole[0], exact[0], magnitude[0])
    judge.as_accurate(h, whole[1], exact[1], magnitude[1])


def test_the_same_numbers_twice(impl):
    inputs = drawn(3, 65, 6, 40, 2, 16)
    assert torch.equal(flat(run(inputs, impl=impl)), flat(run(inputs, impl=impl)))


@pytest.mark.parametrize("length", [1, 33])
def test_gradients_are_those_of_the_definition(assert_only_rounding, length):
    def gradients(form, dtype):
        inputs = [m.requires_grad_() for m in drawn(length=length, dtype=dtype)]
        result = flat(form(inputs))
        weights = torch.randn(result.shape, generator=torch.Generator().manual_seed(2)).to(dtype)
        return torch.cat([g.flatten() for g in torch.autograd.grad((result * weights).sum(), inputs)])

    assert_only_rounding(lambda dtype: (gradients(run, dtype), gradients(lambda i: ssd_ref(*i, *FREE), dtype)))


@settings(derandomize=True, deadline=None, max_examples=20)
@given(length=st.integers(1, 70), chunk=st.integers(1, 80), seed=st.integers(0, 2**31))
def test_the_chunk_changes_nothing(assert_only_rounding, length, chunk, seed):
    def pair(dtype):
        inputs = drawn(length=length, seed=seed, dtype=dtype)
        return tuple(flat(run(inputs, (0.0, math.inf, c), "chunked")) for c in (chunk, length))

    assert_only_rounding(pair)


@settings(derandomize=True, deadline=None, max_examples=20)
@given(length=st.integers(1, 70), seed=st.integers(0, 2**31))
def test_it_is_linear_in_its_input(assert_only_rounding, length, seed):
    def pair(dtype):
        x, *fixed, h, dt_bias = drawn(length=length, seed=seed, dtype=dtype)
        other, *_, other_h, _ = drawn(length=length, seed=seed + 1, dtype=dtype)
        sums = ((x, h), (other, other_h), (x + 2 * other, h + 2 * other_h))
        one, two, both = (flat(run((m, *fixed, state, dt_bias))) for m, state in sums)
        return both, one + 2 * two

    assert_only_rounding(pair)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("x", torch.zeros(2, 9, 6), "x must be (any, any, any, any)"),
        ("B", torch.zeros(2, 9, 4, 4), "6 heads cannot be shared among 4 SSD groups"),
        ("C", torch.zeros(2, 9, 2, 5), "C must be (2, 9, 2, 4)"),
        ("D", torch.zeros(6, 2), "D must be (6, 3)"),
        ("state", torch.zeros(2, 6, 3, 5), "state must be (2, 6, 3, 4)"),
        ("A", torch.zeros(6).double(), "all must be of one floating dtype"),
    ],
)
def test_refuses_in_one_line(name, value, message):
    names = ("x", "dt", "A", "B", "C", "D", "state", "dt_bias")
    with pytest.raises(ValueError, match=r"^ssd: ") as raised:
        ssd(**dict(zip(names, drawn(), strict=True)) | {name: value})
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)
