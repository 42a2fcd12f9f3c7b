"""selective_scan: its definition by hand, the others against it, gradients, and with faults planted."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from quambench_kernels import dispatch
from quambench_kernels.selective_scan import differentiable as with_backward
from quambench_kernels.selective_scan import in_place as evaluation
from quambench_kernels.selective_scan import selective_scan
from quambench_kernels.selective_scan.reference import selective_scan_ref

OP = "selective_scan"
EPS64 = torch.finfo(torch.float64).eps


def drawn(batch=2, length=9, width=5, n=4, seed=0, dtype=torch.float32):
    """u, dt, A, B, C, D, state, dt_bias, z: as the reference takes them; drawn in float32."""
    g = torch.Generator().manual_seed(seed)
    made = [torch.randn(batch, length, width, generator=g) for _ in range(2)]
    made += [-torch.randn(width, n, generator=g).exp()]
    made += [torch.randn(batch, length, n, generator=g) for _ in range(2)]
    made += [torch.randn(width, generator=g), torch.randn(batch, width, n, generator=g)]
    made += [torch.randn(width, generator=g) - 1, torch.randn(batch, length, width, generator=g)]
    return [x.to(dtype) for x in made]


def scan(inputs, impl="auto"):
    *inputs, dt_bias, z = inputs
    return selective_scan(*inputs, dt_bias=dt_bias, z=z, impl=impl)


def all_positive(u, dt, A, B, C, D, state, dt_bias, z):
    """The scan with every term positive, in float64: what its terms add up to, gate included."""
    gate = 1 if z is None else torch.nn.functional.silu(z).abs()
    u, B, C, D, state = (x.abs() for x in (u, B, C, D, state))
    y, h = selective_scan_ref(u, dt, A, B, C, D, state, dt_bias, None)
    return y * gate, h


def assert_scans(judge, inputs, impl="auto"):
    plain, in_float64 = selective_scan_ref(*inputs), [x if x is None else x.double() for x in inputs]
    exact, magnitude = selective_scan_ref(*in_float64), all_positive(*in_float64)
    for got, usual, right, size in zip(scan(inputs, impl), plain, exact, magnitude, strict=True):
        judge.as_accurate(got, usual, right, size)


@settings(max_examples=30, deadline=None)
@given(
    batch=st.sampled_from([1, 3]),
    length=st.sampled_from([1, 2, 31, 32, 33]),
    width=st.sampled_from([1, 7, 63, 64, 65, 130]),
    n=st.sampled_from([1, 5, 16]),
    biased=st.booleans(),
    gated=st.booleans(),
    strided=st.booleans(),
    seed=st.integers(0, 2**32),
)
def test_agrees_with_the_recurrence_in_float64(judge, impl, batch, length, width, n, biased, gated, strided, seed):
    u, dt, A, B, C, D, state, dt_bias, z = drawn(batch, length, width, n, seed)
    if strided:
        u, dt, B, C, z = (judge.inside(x) for x in (u, dt, B, C, z))
    if not biased:
        dt, dt_bias = dt.exp() / 4, None
    assert_scans(judge, (u, dt, A, B, C, D, state, dt_bias, z if gated else None), impl)


@pytest.mark.parametrize("length", [511, 513, 2049])
def test_agrees_at_lengths_of_prefill(judge, impl, length):
    if impl == "reference":
        length = length // 4 + 1  # it keeps every state
    assert_scans(judge, drawn(1, length, 66, 16), impl)


@pytest.mark.parametrize("recorded", [False, True])
@pytest.mark.parametrize("length", [1, 31, 32, 33, 100])
def test_in_float64_all_differ_by_rounding_alone(assert_only_rounding, length, recorded):
    def pair(dtype):
        inputs = [x.requires_grad_(recorded) for x in drawn(length=length, dtype=dtype)]
        y, state = scan(inputs)
        assert y.requires_grad == recorded
        return flat((y, state)).detach(), flat(selective_scan_ref(*inputs)).detach()

    assert_only_rounding(pair)


def flat(result):
    return torch.cat([part.flatten() for part in result])


@pytest.mark.parametrize("form", ["definition", "in_place", "differentiable"])
def test_by_hand(form):
    # One channel, two states, two tokens. Δ = ln 2 and A = (-1, -2) make the decays 1/2 and 1/4;
    # B carries a factor 1 / ln 2, so that Δ B = (2, 1), then (4, 0).
    #   h_0 = (4, 8)
    #   h_1 = (4/2 + 2·1, 8/4 + 1·1) = (4, 3)       y_1 = 1·4 + 2·3 + 100·1 = 110
    #   h_2 = (4/2 + 4·3, 3/4 + 0·3) = (14, 0.75)   y_2 = 10·14 + 4·0.75 + 100·3 = 443
    scans = {
        "definition": selective_scan_ref,
        "in_place": evaluation.in_place,
        "differentiable": with_backward.differentiable,
    }
    ln2 = math.log(2)
    u, B, C = [[[1.0], [3.0]]], [[[2 / ln2, 1 / ln2], [4 / ln2, 0.0]]], [[[1.0, 2.0], [10.0, 4.0]]]
    inputs = u, [[[ln2], [ln2]]], [[-1.0, -2.0]], B, C, [100.0], [[[4.0, 8.0]]]
    y, state = scans[form](*(torch.tensor(x, dtype=torch.float64) for x in inputs), None, None)
    # All terms are positive, so relative errors add along the longest path, which has 20 roundings:
    # per token Δ A, exp, decay · h, Δ u, B, the product and the sum; then C, its sum and D's.
    for found, expected in ((y, [[[110.0], [443.0]]]), (state, [[[14.0, 0.75]]])):
        torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), rtol=20 * EPS64, atol=0)


def test_step_sizes_and_gate_are_their_formulas(impl):
    """Δ = log(1 + e^(dt + bias)), y SiLU(z), with A = -1, D = 0, B = C = 1 and no state: y = Δ u SiLU(z)."""
    dt = torch.tensor([-80.0, -20.0, -3.0, 0.0, 2.0, 19.0, 21.0, 50.0])
    z = torch.tensor([-80.0, -20.0, -3.0, 0.5, 2.0, 19.0, 21.0, 50.0])
    ones = torch.ones(1, 1, 1)
    y, _ = selective_scan(
        torch.ones(1, 1, 8), dt.view(1, 1, -1) - 1, -torch.ones(8, 1), ones, ones, torch.zeros(8), torch.zeros(1, 8, 1),
        dt_bias=torch.ones(8), z=z.view(1, 1, -1), impl=impl,
    )  # fmt: skip
    exact = [math.log1p(math.exp(a)) * b / (1 + math.exp(-b)) for a, b in zip(dt.tolist(), z.tolist(), strict=True)]
    # Some ten roundings, and exp and log1p to a few each.
    torch.testing.assert_close(y.flatten().double(), torch.tensor(exact).double(), rtol=2e-6, atol=0)


@pytest.mark.parametrize("pieces", [[1] * 12, [5, 7]])
def test_pieces_equal_the_whole(judge, impl, pieces):
    u, dt, A, B, C, D, state, dt_bias, z = drawn(length=12, width=70)
    exact = selective_scan_ref(*(x.double() for x in (u, dt, A, B, C, D, state, dt_bias, z)))
    whole = scan((u, dt, A, B, C, D, state, dt_bias, z), impl)
    ys, h = [], state
    for parts in zip(*(x.split(pieces, dim=1) for x in (u, dt, B, C, z)), strict=True):
        pu, pdt, pB, pC, pz = parts
        y, h = scan((pu, pdt, A, pB, pC, D, h, dt_bias, pz), impl)
        ys.append(y)
    judge.as_accurate(torch.cat(ys, dim=1), whole[0], exact[0])
    judge.as_accurate(h, whole[1], exact[1])


def test_the_same_numbers_twice(impl):
    inputs = drawn(3, 65, 130, 16)
    first, again = flat(scan(inputs, impl)), flat(scan(inputs, impl))
    assert torch.equal(first, again)


@pytest.mark.parametrize("block", [1, 300, 1 << 20])  # exponentials of one step, of a few, of all
def test_in_place_does_not_depend_on_its_block(monkeypatch, block):
    inputs = drawn(length=33)
    whole = flat(scan(inputs, "in_place"))
    monkeypatch.setattr(evaluation, "BLOCK", block)
    assert torch.equal(flat(scan(inputs, "in_place")), whole)


def test_inputs_are_left_alone(impl):
    inputs = drawn(length=5)
    before = [x.clone() for x in inputs]
    _, state = scan(inputs, impl)
    scan([*inputs[:6], state, *inputs[7:]], impl)  # a state as it comes out serves as it is
    assert all(torch.equal(x, y) for x, y in zip(inputs, before, strict=True))


FAULTS = {
    "no decay": lambda run, u, dt, A, *rest: run(u, dt, 0 * A, *rest),
    "no initial state": lambda run, u, dt, A, B, C, D, h, *rest: run(u, dt, A, B, C, D, 0 * h, *rest),
    "no skip": lambda run, u, dt, A, B, C, D, *rest: run(u, dt, A, B, C, 0 * D, *rest),
    "no gate": lambda run, *args: run(*args[:-1], None),
    "B and C exchanged": lambda run, u, dt, A, B, C, *rest: run(u, dt, A, C, B, *rest),
    "half precision": lambda run, *args: tuple(x.half().to(x.dtype) for x in run(*args)),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_noticed(judge, fault):
    with dispatch.around(OP, FAULTS[fault]), pytest.raises(AssertionError, match="the plain expression's is"):
        assert_scans(judge, drawn(length=33))


def test_gradients_by_finite_differences(monkeypatch):
    monkeypatch.setattr(with_backward, "CHUNK", 3)  # several chunks, the last one short, at a length that is quick
    inputs = [x.requires_grad_() for x in drawn(length=7, width=3, dtype=torch.float64)]
    assert torch.autograd.gradcheck(lambda *a: scan(a), inputs)  # its own tolerances: those of a central difference


@pytest.mark.parametrize("length", [1, 33])
def test_gradients_are_those_of_the_definition(assert_only_rounding, length):
    def gradients(form, dtype):
        inputs = [x.requires_grad_() for x in drawn(length=length, dtype=dtype)]
        result = flat(form(inputs))
        weights = torch.randn(result.shape, generator=torch.Generator().manual_seed(2)).to(dtype)
        return torch.cat([g.flatten() for g in torch.autograd.grad((result * weights).sum(), inputs)])

    assert_only_rounding(
        lambda dtype: (gradients(scan, dtype), gradients(lambda inputs: selective_scan_ref(*inputs), dtype))
    )


def test_a_named_kernel_refuses_to_record():
    inputs = [x.requires_grad_() for x in drawn()]
    with pytest.raises(ValueError, match="'in_place' has no backward; call it under torch"):
        scan(inputs, "in_place")


@settings(derandomize=True, deadline=None, max_examples=20)
@given(length=st.integers(1, 70), seed=st.integers(0, 2**31))
def test_it_is_linear_in_its_input(assert_only_rounding, length, seed):
    def pair(dtype):
        u, *fixed, state, dt_bias, z = drawn(length=length, seed=seed, dtype=dtype)
        other, *_, other_state, _, _ = drawn(length=length, seed=seed + 1, dtype=dtype)
        one, two, both = (
            flat(scan((x, *fixed, h, dt_bias, z)))
            for x, h in ((u, state), (other, other_state), (u + 2 * other, state + 2 * other_state))
        )
        return both, one + 2 * two

    assert_only_rounding(pair)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("u", torch.zeros(2, 3), "u must be (any, any, any)"),
        ("dt", torch.zeros(2, 9, 4), "dt must be (2, 9, 5) (got (2, 9, 4))"),
        ("C", torch.zeros(2, 9, 3), "C must be (2, 9, 4)"),
        ("state", torch.zeros(2, 5, 5), "state must be (2, 5, 4)"),
        ("D", torch.zeros(5).double(), "all must be of one floating dtype"),
        ("z", torch.zeros(2, 9, 5).int(), "all must be of one floating dtype"),
    ],
)
def test_refuses_in_one_line(name, value, message):
    names = ("u", "dt", "A", "B", "C", "D", "state", "dt_bias", "z")
    arguments = dict(zip(names, drawn(), strict=True)) | {name: value}
    with pytest.raises(ValueError, match=r"^selective_scan: ") as raised:
        selective_scan(**arguments)
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)
