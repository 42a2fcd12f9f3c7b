"""int8_selective_scan: against float64, ties and ends by hand, and with faults planted."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from quambench_kernels import dispatch
from quambench_kernels.int8_selective_scan import int8_selective_scan, reference
from quambench_kernels.int8_selective_scan.reference import floating, int8_selective_scan_ref
from quambench_kernels.selective_scan.reference import selective_scan_ref

OP = "int8_selective_scan"
NAMES = ("u_q", "u_scale", "dt_q", "dt_scale", "A", "B_q", "B_scale", "C_q", "C_scale", "D", "dt_bias", "z_q",
         "z_scale", "state_q", "state_scale")  # fmt: skip


def drawn(judge, batch=2, length=9, width=5, n=4, seed=0, tables=False, state_shape=()):
    g = torch.Generator().manual_seed(seed)
    table = (width,) if tables else ()
    A, D, dt_bias = -torch.randn(width, n, generator=g).exp(), torch.randn(width, generator=g), torch.randn(
        width, generator=g
    ) - 1  # fmt: skip

    def q(*shape):
        return judge.ints(g, *shape)

    def scale(*shape):
        return judge.scales(g, *shape)

    return [
        q(batch, length, width), scale(), q(batch, length, width), scale(*table), A, q(batch, length, n), scale(),
        q(batch, length, n), scale(), D, dt_bias, q(batch, length, width), scale(*table), q(batch, width, n),
        scale(*state_shape),
    ]  # fmt: skip


def assert_scans(judge, inputs, impl="auto", q_max=127):
    y, state = int8_selective_scan(*inputs, q_max=q_max, impl=impl)
    plain, exact = (selective_scan_ref(*floating(dtype, *inputs)) for dtype in (torch.float32, torch.float64))
    u, dt, A, B, C, D, h, dt_bias, z = floating(torch.float64, *inputs)
    magnitude, _ = selective_scan_ref(u.abs(), dt, A, B.abs(), C.abs(), D.abs(), h.abs(), dt_bias, None)
    judge.as_accurate(y, plain[0], exact[0], magnitude * torch.nn.functional.silu(z).abs())
    judge.rounded(state, plain[1], exact[1], inputs[-1], q_max)


@settings(max_examples=30, deadline=None)
@given(
    batch=st.sampled_from([1, 3]),
    length=st.sampled_from([1, 2, 17, 33]),
    width=st.sampled_from([1, 7, 64, 65, 130]),
    n=st.sampled_from([1, 5, 16]),
    tables=st.booleans(),
    kind=st.sampled_from(["tensor", "channel", "channel and n", "n"]),
    bits=st.integers(2, 8),
    strided=st.booleans(),
    seed=st.integers(0, 2**32),
)
def test_agrees_with_float64(judge, impl, batch, length, width, n, tables, kind, bits, strided, seed):
    shape = {"tensor": (), "channel": (width, 1), "channel and n": (width, n), "n": (n,)}[kind]
    inputs = drawn(judge, batch, length, width, n, seed, tables, shape)
    if strided:
        inputs = [judge.inside(x) if x.dtype == torch.int8 and x.shape[1] == length and i != 13 else x
                  for i, x in enumerate(inputs)]  # fmt: skip
    assert_scans(judge, inputs, impl, 2 ** (bits - 1) - 1)


@pytest.mark.parametrize("length", [511, 513])
def test_agrees_at_lengths_of_prefill(judge, impl, length):
    if impl == "reference":
        length = 129
    assert_scans(judge, drawn(judge, 1, length, 66, 16), impl)


@pytest.mark.parametrize("about", [1e-6, 1e3])
def test_a_state_that_saturates_and_one_that_reaches_no_step(judge, impl, about):
    *inputs, _ = drawn(judge, 2, 9, 40)
    assert_scans(judge, [*inputs, torch.tensor(about)], impl)


@pytest.mark.parametrize("layout", ["turned", "every second"])
def test_scales_of_the_state_by_any_strides(judge, impl, layout):
    inputs = drawn(judge, width=5, n=4, state_shape=(5, 4))
    whole = inputs[-1]
    inputs[-1] = whole.t().contiguous().t() if layout == "turned" else whole.repeat_interleave(2, dim=1)[:, ::2]
    assert torch.equal(inputs[-1], whole)
    assert not inputs[-1].is_contiguous()
    assert_scans(judge, inputs, impl)


def ties():
    """A = 0 keeps the state: h = q · 1 + Δ u B with softplus(Δ) = 32, exact beyond 20, u B = q / 64: q + k / 2."""
    k = torch.arange(-9, 10, dtype=torch.int8)
    width, one = len(k), torch.tensor(1.0)
    wide = k.view(1, 1, -1)
    ones = torch.ones(1, 1, 1, dtype=torch.int8)
    return [
        wide, torch.tensor(1 / 64), torch.ones_like(wide), one, torch.zeros(width, 1), ones, one, ones, one,
        torch.zeros(width), torch.full((width,), 31.0), wide, one, torch.arange(width, dtype=torch.int8).view(1, -1, 1),
        one,
    ]  # fmt: skip


def test_ties_of_the_state_go_to_even(impl):
    _, state = int8_selective_scan(*ties(), impl=impl)
    assert state.flatten().tolist() == [round(i + k / 2) for i, k in enumerate(range(-9, 10))]


def test_y_is_read_from_the_float_state(impl):
    """C = 1: y is the state before it is rounded, times SiLU(z)."""
    inputs = ties()
    inputs[11] = torch.full_like(inputs[11], 64)  # SiLU(64) = 64
    y, _ = int8_selective_scan(*inputs, impl=impl)
    assert y.flatten().tolist() == [64 * (i + k / 2) for i, k in enumerate(range(-9, 10))]


def test_ties_away_from_zero_are_noticed(half_away):
    with half_away(OP, reference, int8_selective_scan_ref), pytest.raises(AssertionError):
        test_ties_of_the_state_go_to_even("auto")


def test_prefill_quantizes_its_last_state_alone(judge, impl):
    """Its y is that of one scan; fed step by step through the INT8 state it is another, and no fault."""
    inputs = drawn(judge, 1, 6, 20, 4, state_shape=())
    y, state = int8_selective_scan(*inputs, impl=impl)
    steps, h = [], inputs[13]
    for t in range(6):
        here = [x[:, t : t + 1] if i in (0, 2, 5, 7, 11) else x for i, x in enumerate(inputs)]
        here[13] = h
        out, h = int8_selective_scan(*here, impl=impl)
        steps.append(out)
    assert torch.allclose(steps[0], y[:, :1], rtol=1e-5, atol=1e-6)
    assert not torch.allclose(torch.cat(steps, dim=1), y, rtol=1e-5, atol=1e-6)
    assert (h.int() - state.int()).abs().max() <= 40  # of the same size still


def test_the_same_numbers_twice(judge, impl):
    inputs = drawn(judge, 3, 33, 130, 16)
    first, again = (int8_selective_scan(*inputs, impl=impl) for _ in range(2))
    assert torch.equal(first[0], again[0])
    assert torch.equal(first[1], again[1])


FAULTS = {
    "stale state": lambda run, *a: run(*a[:13], torch.zeros_like(a[13]), *a[14:]),
    "state not kept": lambda run, *a: (run(*a)[0], a[13].clone()),
    "A per step": lambda run, *a: run(*a[:4], a[4] / 2, *a[5:]),
    "scale of another site": lambda run, *a: run(*a[:6], a[8], *a[7:]),
    "without the lowest integer": lambda run, *a: (run(*a)[0], run(*a)[1].clamp(min=-a[15])),
    "y from the rounded state": lambda run, *a: (run(*a)[0].bfloat16().float(), run(*a)[1]),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_noticed(judge, fault):
    inputs = drawn(judge, 2, 9, 40)
    inputs[-1] = torch.tensor(0.004)  # some values beyond either end
    with dispatch.around(OP, FAULTS[fault]), pytest.raises(AssertionError):
        assert_scans(judge, inputs)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("u_q", torch.zeros(2, 9, 5), "u_q must be torch.int8"),
        ("u_scale", torch.ones(5), "u_scale must be () float32 (got (5,) torch.float32)"),
        ("state_scale", torch.ones(4, 5), "state_scale must be float32 and broadcast to (5, 4)"),
        ("A", torch.zeros(5, 4).double(), "A must be torch.float32"),
        ("z_q", torch.zeros(2, 9, 4, dtype=torch.int8), "z_q must be (2, 9, 5)"),
        ("dt_scale", torch.ones((), device="meta"), "all must be on one device"),
    ],
)
def test_refuses_in_one_line(judge, name, value, message):
    arguments = dict(zip(NAMES, drawn(judge), strict=True)) | {name: value}
    with pytest.raises(ValueError, match=r"^int8_selective_scan: ") as raised:
        int8_selective_scan(**arguments)
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)
