"""int8_ssd: against float64, ties and ends by hand, and with faults planted."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from quambench_kernels import dispatch
from quambench_kernels.int8_ssd import int8_ssd, reference
from quambench_kernels.int8_ssd.reference import floating, int8_ssd_ref
from quambench_kernels.ssd.reference import ssd_ref

OP = "int8_ssd"
NAMES = ("x_q", "x_scale", "dt_q", "dt_scale", "A", "B_q", "B_scale", "C_q", "C_scale", "D", "dt_bias", "state_q",
         "state_scale")  # fmt: skip
FREE = (0.0, math.inf)


def drawn(judge, batch=2, length=9, heads=6, head_dim=3, groups=2, n=4, seed=0, tables=False, state_shape=(),
          d_per_channel=False):  # fmt: skip
    g = torch.Generator().manual_seed(seed)

    def q(*shape):
        return judge.ints(g, *shape)

    def scale(*shape):
        return judge.scales(g, *shape)

    def table(size):
        return (size,) if tables else ()

    return [
        q(batch, length, heads, head_dim), scale(*table(heads * head_dim)), q(batch, length, heads),
        scale(*table(heads)), -torch.randn(heads, generator=g).exp(), q(batch, length, groups, n),
        scale(*table(groups * n)), q(batch, length, groups, n), scale(*table(groups * n)),
        torch.randn((heads, head_dim) if d_per_channel else (heads,), generator=g),
        torch.randn(heads, generator=g) - 1, q(batch, heads, head_dim, n), scale(*state_shape),
    ]  # fmt: skip


def assert_scans(judge, inputs, impl="auto", q_max=127, limits=FREE):
    y, state = int8_ssd(*inputs, dt_min=limits[0], dt_max=limits[1], chunk=8, q_max=q_max, impl=impl)
    plain, exact = (ssd_ref(*floating(dtype, *inputs), *limits, 8) for dtype in (torch.float32, torch.float64))
    x, dt, A, B, C, D, h, dt_bias = floating(torch.float64, *inputs)
    magnitude, _ = ssd_ref(x.abs(), dt, A, B.abs(), C.abs(), D.abs(), h.abs(), dt_bias, *limits, 8)
    judge.as_accurate(y, plain[0], exact[0], magnitude)
    judge.rounded(state, plain[1], exact[1], inputs[-1], q_max)


@settings(max_examples=30, deadline=None)
@given(
    batch=st.sampled_from([1, 3]),
    length=st.sampled_from([1, 2, 4, 5, 33]),
    heads=st.sampled_from([(1, 1), (6, 2), (6, 1)]),
    head_dim=st.sampled_from([1, 7, 16, 20, 40]),
    n=st.sampled_from([1, 5, 16]),
    tables=st.booleans(),
    kind=st.sampled_from(["tensor", "head", "channel", "channel and n", "n"]),
    d_per_channel=st.booleans(),
    bits=st.integers(2, 8),
    strided=st.booleans(),
    seed=st.integers(0, 2**32),
)
def test_agrees_with_float64(
    judge, impl, batch, length, heads, head_dim, n, tables, kind, d_per_channel, bits, strided, seed
):
    h, g = heads
    shape = {"tensor": (), "head": (h, 1, 1), "channel": (h, head_dim, 1), "channel and n": (h, head_dim, n), "n": (n,)}
    inputs = drawn(judge, batch, length, h, head_dim, g, n, seed, tables, shape[kind], d_per_channel)
    if strided:
        for i in (0, 5, 7):
            inputs[i] = judge.inside(inputs[i].flatten(2)).unflatten(2, inputs[i].shape[2:])
        inputs[2] = judge.inside(inputs[2])
    assert_scans(judge, inputs, impl, 2 ** (bits - 1) - 1)


@pytest.mark.parametrize("length", [255, 257, 513])
def test_agrees_at_lengths_of_prefill(judge, impl, length):
    if impl == "reference":
        length = length // 4 + 1
    assert_scans(judge, drawn(judge, 1, length, 4, 24, 2, 16), impl)


def test_step_sizes_have_limits(judge, impl):
    assert_scans(judge, drawn(judge, length=33), impl, limits=(0.2, 0.6))


@pytest.mark.parametrize("about", [1e-6, 1e3])
def test_a_state_that_saturates_and_one_that_reaches_no_step(judge, impl, about):
    *inputs, _ = drawn(judge, 2, 9)
    assert_scans(judge, [*inputs, torch.tensor(about)], impl)


@pytest.mark.parametrize("layout", ["turned", "every second"])
def test_scales_of_the_state_by_any_strides(judge, impl, layout):
    inputs = drawn(judge, state_shape=(6, 3, 4))
    whole = inputs[-1]
    turned = whole.transpose(0, 2).contiguous().transpose(0, 2)
    inputs[-1] = turned if layout == "turned" else whole.repeat_interleave(2, dim=2)[..., ::2]
    assert torch.equal(inputs[-1], whole)
    assert not inputs[-1].is_contiguous()
    assert_scans(judge, inputs, impl)


def ties():
    """A = 0 keeps the state, limits make Δ = 1: h = q + k B / 2 with B = 1, one head of 19 channels."""
    k = torch.arange(-9, 10, dtype=torch.int8)
    one, ones = torch.tensor(1.0), torch.ones(1, 1, 1, 1, dtype=torch.int8)
    return [
        k.view(1, 1, 1, -1), torch.tensor(0.5), torch.zeros(1, 1, 1, dtype=torch.int8), one, torch.zeros(1), ones, one,
        ones, one, torch.zeros(1), torch.zeros(1), torch.arange(19, dtype=torch.int8).view(1, 1, 19, 1), one,
    ]  # fmt: skip


EXACT = {"dt_min": 1.0, "dt_max": 1.0}
HALVES = [i + k / 2 for i, k in enumerate(range(-9, 10))]


@pytest.mark.parametrize("length", [1, 6])  # a step and a prefill are different code
def test_ties_of_the_state_go_to_even(impl, length):
    inputs = ties()
    for i in (0, 2, 5, 7):  # what comes first adds nothing
        blank = torch.zeros_like(inputs[i]).expand(-1, length - 1, *inputs[i].shape[2:])
        inputs[i] = torch.cat([blank, inputs[i]], dim=1)
    _, state = int8_ssd(*inputs, **EXACT, impl=impl)
    assert state.flatten().tolist() == [round(h) for h in HALVES]


def test_y_is_read_from_the_float_state(impl):
    y, _ = int8_ssd(*ties(), **EXACT, impl=impl)
    assert y.flatten().tolist() == HALVES


def test_ties_away_from_zero_are_noticed(half_away):
    with half_away(OP, reference, int8_ssd_ref), pytest.raises(AssertionError):
        test_ties_of_the_state_go_to_even("auto", 1)


def test_the_same_numbers_twice(judge, impl):
    inputs = drawn(judge, 3, 33, 6, 40, 2, 16)
    first, again = (int8_ssd(*inputs, impl=impl) for _ in range(2))
    assert torch.equal(first[0], again[0])
    assert torch.equal(first[1], again[1])


FAULTS = {
    "stale state": lambda run, *a: run(*a[:11], torch.zeros_like(a[11]), *a[12:]),
    "state not kept": lambda run, *a: (run(*a)[0], a[11].clone()),
    "groups exchanged": lambda run, *a: run(*a[:5], a[5].flip(2), *a[6:]),
    "scale of another site": lambda run, *a: run(*a[:6], a[8], *a[7:]),
    "without the lowest integer": lambda run, *a: (run(*a)[0], run(*a)[1].clamp(min=-a[16])),
    "limits left out": lambda run, *a: run(*a[:13], *FREE, *a[15:]),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_noticed(judge, fault):
    inputs = drawn(judge, 2, 9, 6, 20)
    inputs[-1] = torch.tensor(0.004)  # some values beyond either end
    with dispatch.around(OP, FAULTS[fault]), pytest.raises(AssertionError):
        assert_scans(judge, inputs, limits=(0.2, 0.6))


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("x_q", torch.zeros(2, 9, 6, 3), "x_q must be torch.int8"),
        ("x_scale", torch.ones(6), "x_scale must be () or (18,) float32 (got (6,) torch.float32)"),
        ("state_scale", torch.ones(6, 1), "state_scale must be float32 and broadcast to (6, 3, 4)"),
        ("dt_bias", torch.zeros(5), "dt_bias must be (6) (got (5,))"),
        ("D", torch.zeros(6).double(), "D must be torch.float32"),
    ],
)
def test_refuses_in_one_line(judge, name, value, message):
    with pytest.raises(ValueError, match=r"^int8_ssd: ") as raised:
        int8_ssd(**dict(zip(NAMES, drawn(judge), strict=True)) | {name: value})
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)
