"""int8_embedding is exact, in every implementation."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from quambench_kernels import dispatch
from quambench_kernels.int8_embedding import int8_embedding

OP = "int8_embedding"


def assert_looks_up(tokens, table, scale, impl="auto"):
    got = int8_embedding(tokens, table, scale, impl=impl)
    rows = [table[t].float() * scale[t] for t in tokens.flatten().tolist()]
    want = torch.stack(rows) if rows else torch.empty(0, table.shape[1])
    assert torch.equal(got, want.view(*tokens.shape, table.shape[1]))


@settings(max_examples=40, deadline=None)
@given(
    lead=st.sampled_from([(), (1,), (3, 7), (0,), (2, 0)]),
    rows=st.integers(1, 50),
    n=st.sampled_from([1, 15, 64, 769]),
    seed=st.integers(0, 2**32),
)
def test_is_the_row_times_its_scale(judge, impl, lead, rows, n, seed):
    g = torch.Generator().manual_seed(seed)
    tokens = torch.randint(rows, lead, generator=g)
    assert_looks_up(tokens, judge.ints(g, rows, n), judge.scales(g, rows), impl)


@pytest.mark.parametrize("strided", [lambda t: t.T, lambda t: t[:, ::2], lambda t: t.expand(2, 3, 4)])
def test_any_strides(judge, impl, strided):
    g = torch.Generator().manual_seed(0)
    assert_looks_up(strided(torch.randint(9, (3, 4), generator=g)), judge.ints(g, 9, 5), judge.scales(g, 9), impl)


@pytest.mark.parametrize("token", [-10, -1, 9])
def test_a_token_outside_the_table_is_refused(judge, impl, token):
    g = torch.Generator().manual_seed(0)
    with pytest.raises(IndexError):
        int8_embedding(torch.tensor([0, token]), judge.ints(g, 9, 5), judge.scales(g, 9), impl=impl)


FAULTS = {
    "scale of the next row": lambda run, t, q, s: run(t, q, s.roll(1)),
    "unsigned": lambda run, t, q, s: run(t, q.abs(), s),
    "half precision": lambda run, t, q, s: run(t, q, s.half().float()),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_noticed(judge, fault):
    g = torch.Generator().manual_seed(0)
    with dispatch.around(OP, FAULTS[fault]), pytest.raises(AssertionError):
        assert_looks_up(torch.arange(9), judge.ints(g, 9, 5), judge.scales(g, 9))


def test_refuses_in_one_line(judge):
    g = torch.Generator().manual_seed(0)
    table, scale = judge.ints(g, 9, 5), judge.scales(g, 9)
    for arguments, message in (
        ((torch.zeros(2), table, scale), "tokens must be torch.int64"),
        ((torch.arange(2), table.float(), scale), "table_q must be torch.int8"),
        ((torch.arange(2), table, scale[:8]), "scale must be (9) (got (8,))"),
    ):
        with pytest.raises(ValueError, match=r"^int8_embedding: ") as raised:
            int8_embedding(*arguments)
        assert message in str(raised.value)
