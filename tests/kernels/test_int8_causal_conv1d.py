"""int8_causal_conv1d: against float64, by hand, by table and by walking, and with faults planted."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from quambench_kernels import dispatch
from quambench_kernels.int8_causal_conv1d import int8_causal_conv1d, int8_causal_conv1d_walking, reference
from quambench_kernels.int8_causal_conv1d.reference import convolved, int8_causal_conv1d_ref, table_of

OP = "int8_causal_conv1d"


def drawn(judge, batch, length, channels, width=4, seed=0, tables=(False, False)):
    """x_q, x_scale, weight, bias, history_q, out_scale."""
    g = torch.Generator().manual_seed(seed)
    x_scale, out_scale = (judge.scales(g, *((channels,) if table else ())) for table in tables)
    weight, bias = torch.randn(channels, width, generator=g), torch.randn(channels, generator=g) / 4
    x, history = judge.ints(g, batch, length, channels), judge.ints(g, batch, width - 1, channels)
    return x, x_scale, weight, bias, history, out_scale


def assert_convolves(judge, x, x_scale, weight, bias, history, out_scale, q_max=127, impl="auto"):
    q, after = int8_causal_conv1d(x, x_scale, weight, bias, history, out_scale, q_max=q_max, impl=impl)
    plain, exact = (convolved(x, x_scale, weight, bias, history, dtype) for dtype in (torch.float32, torch.float64))
    judge.rounded(q, plain, exact, out_scale, q_max)
    assert torch.equal(after, torch.cat([history, x], dim=1)[:, x.shape[1] :])


@settings(max_examples=40, deadline=None)
@given(
    batch=st.sampled_from([1, 3]),
    length=st.sampled_from([1, 2, 3, 4, 5, 16, 17, 40]),
    channels=st.integers(1, 70),
    width=st.integers(1, 5),
    tables=st.tuples(st.booleans(), st.booleans()),
    bits=st.integers(2, 8),
    strided=st.booleans(),
    seed=st.integers(0, 2**32),
)
def test_agrees_with_float64(judge, impl, batch, length, channels, width, tables, bits, strided, seed):
    x, *rest = drawn(judge, batch, length, channels, width, seed, tables)
    x = judge.inside(x) if strided else x
    assert_convolves(judge, x, *rest, q_max=2 ** (bits - 1) - 1, impl=impl)


@pytest.mark.parametrize("length", [511, 512, 513, 2049])
def test_agrees_with_float64_at_lengths_of_prefill(judge, impl, length):
    assert_convolves(judge, *drawn(judge, 1, length, 33, tables=(False, True)), impl=impl)


@pytest.mark.parametrize("about", [1e-6, 1e-3, 10.0])
def test_agrees_with_float64_when_all_saturates_and_when_nothing_reaches_a_step(judge, impl, about):
    *inputs, _ = drawn(judge, 2, 9, 40)
    assert_convolves(judge, *inputs, torch.tensor(about), impl=impl)


def ties():
    """SiLU(v) = v in float32 from v = 18 on: 1 + e^-18 rounds to 1. So q 32 / 64 = q / 2 is a tie for odd q."""
    x = torch.arange(1, 40).to(torch.int8).view(1, -1, 1)
    return x, torch.tensor(32.0), torch.ones(1, 1), None, torch.zeros(1, 0, 1, dtype=torch.int8), torch.tensor(64.0)


def test_ties_go_to_even(impl):
    q, _ = int8_causal_conv1d(*ties(), impl=impl)
    assert q.flatten().tolist() == [round(v / 2) for v in range(1, 40)]  # Python rounds ties to even


def test_ties_away_from_zero_are_noticed(half_away):
    with half_away(OP, reference, int8_causal_conv1d_ref), pytest.raises(AssertionError):
        test_ties_go_to_even("auto")


def test_both_ends_of_the_grid(impl):
    x, x_scale, weight, bias, history, _ = ties()
    q, _ = int8_causal_conv1d(x, x_scale, -weight, bias, history, torch.tensor(1.0), impl=impl)
    assert q.max() == 0  # SiLU has no large negative values
    q, _ = int8_causal_conv1d(x, x_scale, weight, bias, history, torch.tensor(1.0), q_max=7, impl=impl)
    assert set(q.flatten().tolist()) == {7}


@pytest.mark.parametrize("pieces", [[1] * 9, [2, 7], [3, 1, 5]])
def test_pieces_equal_the_whole(judge, impl, pieces):
    x, x_scale, weight, bias, history, out_scale = drawn(judge, 2, 9, 37)
    _, end = int8_causal_conv1d(x, x_scale, weight, bias, history, out_scale, impl=impl)
    plain, exact = (convolved(x, x_scale, weight, bias, history, dtype) for dtype in (torch.float32, torch.float64))
    found = []
    for piece in x.split(pieces, dim=1):
        q, history = int8_causal_conv1d(piece, x_scale, weight, bias, history, out_scale, impl=impl)
        found.append(q)
    judge.rounded(torch.cat(found, dim=1), plain, exact, out_scale)
    assert torch.equal(history, end)


@pytest.mark.parametrize(
    "fault",
    [
        lambda run, x, s, w, *rest: run(x, s, w.roll(1, 1), *rest),
        lambda run, x, s, w, b, h, o, q: run(x, s, w, b, torch.zeros_like(h), o, q),
        lambda run, x, s, w, b, h, o, q: run(x, s, w, b, h, o * 1.01, q),
        lambda run, x, s, w, b, h, o, q: run(x, s, w, b, h, o, q).clamp(min=-q),  # without the lowest integer
        lambda run, x, s, w, b, h, o, q: run(x.clamp(min=-127), s, w, b, h, o, q),
    ],
)
def test_a_fault_is_noticed(judge, fault):
    inputs = drawn(judge, 2, 33, 40)
    inputs = (*inputs[:-1], torch.tensor(0.002))  # SiLU's least value, -0.278, is -139 steps
    with dispatch.around(OP, fault), pytest.raises(AssertionError):
        assert_convolves(judge, *inputs)


GROUPED = [((1, 1), (1, 1)), ((2, 4), (3, 5)), ((3, 8), (4, 8)), ((2, 2), (8, 8))]


def runs(generator, total, count):
    """Lengths of count runs that add up to total, each at least 1."""
    cuts = torch.randperm(total - 1, generator=generator)[: count - 1].sort().values + 1
    return torch.diff(torch.cat([torch.tensor([0]), cuts, torch.tensor([total])]))


def grouped(seed, head_groups, heads, dim_groups, head_dim, n_groups=2):
    g = torch.Generator().manual_seed(seed)
    head_sizes = torch.stack([runs(g, heads, head_groups) for _ in range(n_groups)])
    dim_sizes = torch.stack(
        [torch.stack([runs(g, head_dim, dim_groups) for _ in range(head_groups)]) for _ in range(n_groups)]
    )
    return head_sizes, dim_sizes, 0.01 * 4 ** (torch.rand(dim_sizes.shape, generator=g) - 0.5)


@pytest.mark.parametrize(("heads", "dims"), GROUPED)
@pytest.mark.parametrize("walk", ["auto", "native", "reference"])
def test_walking_the_ranges_equals_the_table(judge, walk, heads, dims):
    """To the bit, and the table is Groups' own."""
    from quambench.grouping.groups import Groups

    if walk == "native" and (reason := dispatch._known["int8_causal_conv1d_walking"]["native"].why_not()):
        pytest.skip(reason)
    head_sizes, dim_sizes, scale = grouped(3, heads[0], heads[1], dims[0], dims[1])
    channels = 2 * heads[1] * dims[1]
    groups = Groups(torch.arange(2 * heads[1]), torch.arange(channels), head_sizes, dim_sizes)
    table = groups.per_channel(scale)
    assert torch.equal(table_of(head_sizes, dim_sizes, scale, dims[1]), table)
    x, x_scale, weight, bias, history, _ = drawn(judge, 2, 17, channels)
    by_table, _ = int8_causal_conv1d(x, x_scale, weight, bias, history, table)
    walked, _ = int8_causal_conv1d_walking(x, x_scale, weight, bias, history, head_sizes, dim_sizes, scale, impl=walk)
    if walk == "reference":
        by_table, _ = int8_causal_conv1d(x, x_scale, weight, bias, history, table, impl="reference")
    assert torch.equal(walked, by_table)


def test_a_range_off_by_one_is_noticed(judge):
    head_sizes, dim_sizes, scale = grouped(3, 2, 4, 3, 5)
    x, x_scale, weight, bias, history, _ = drawn(judge, 2, 17, 40)
    right, _ = int8_causal_conv1d_walking(x, x_scale, weight, bias, history, head_sizes, dim_sizes, scale)
    moved = dim_sizes + torch.tensor([1, 0, -1]) * (dim_sizes[..., 2:] > 1)
    assert (moved != dim_sizes).any()
    wrong, _ = int8_causal_conv1d_walking(x, x_scale, weight, bias, history, head_sizes, moved, scale)
    assert not torch.equal(right, wrong)


def test_walking_refuses_runs_that_do_not_add_up(judge):
    head_sizes, dim_sizes, scale = grouped(3, 2, 4, 3, 5)
    x, x_scale, weight, bias, history, _ = drawn(judge, 1, 3, 40)
    with pytest.raises(ValueError, match=r"^int8_causal_conv1d_walking: the runs .* must add up to 40 channels$"):
        int8_causal_conv1d_walking(x, x_scale, weight, bias, history, head_sizes + 1, dim_sizes, scale)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x_q": torch.zeros(2, 3, 6)}, "x_q must be torch.int8 (got torch.float32)"),
        ({"x_scale": torch.ones(5)}, "x_scale must be () or (6,) float32 (got (5,) torch.float32)"),
        ({"out_scale": torch.ones(()).double()}, "out_scale must be () or (6,) float32 (got () torch.float64)"),
        ({"q_max": 128}, "q_max must be from 1 to 127 (got 128)"),
        ({"impl": "gpu"}, "no implementation named 'gpu'"),
    ],
)
def test_refuses_in_one_line(judge, change, message):
    names = ("x_q", "x_scale", "weight", "bias", "history_q", "out_scale")
    arguments = dict(zip(names, drawn(judge, 2, 3, 6), strict=True)) | change
    with pytest.raises(ValueError, match=r"^int8_causal_conv1d: ") as raised:
        int8_causal_conv1d(**arguments)
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)
