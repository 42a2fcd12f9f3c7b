"""The largest values: exactly those that sorting everything finds."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from quambench.observers import tail
from quambench.observers.batch import Batch
from quambench.observers.tail import largest


def by_sorting(x, n):
    return x.sort(dim=-1).values[..., x.shape[-1] - n :]


@given(st.lists(st.floats(0, 1e6, width=32), min_size=1, max_size=80), st.data())
def test_few_values(values, data):
    x = torch.tensor(values)
    n = data.draw(st.integers(1, len(values)))
    assert torch.equal(largest(x, n), by_sorting(x, n))


KINDS = {
    "random": lambda g, *shape: torch.rand(*shape, generator=g),
    "tied": lambda g, *shape: torch.randint(4, shape, generator=g).float(),
    "constant": lambda g, *shape: torch.full(shape, 3.0),
    "zeros": lambda g, *shape: torch.zeros(shape),
    "rising": lambda g, *shape: torch.arange(float(torch.Size(shape).numel())).view(shape),
    "falling": lambda g, *shape: -torch.arange(float(torch.Size(shape).numel())).view(shape),
    "all large ones in one block": lambda g, *shape: torch.rand(*shape, generator=g) + (torch.arange(shape[-1]) < 20),
    "double": lambda g, *shape: torch.rand(*shape, generator=g, dtype=torch.float64),
}


@given(
    st.sampled_from(sorted(KINDS)), st.integers(0, 2**32), st.integers(1, 3), st.integers(1, 5000), st.integers(1, 60)
)
def test_blocks(kind, seed, rows, n, n_largest):
    """n from one block to many, whole ones or not."""
    x = KINDS[kind](torch.Generator().manual_seed(seed), rows, n)
    n_largest = min(n_largest, n)
    assert torch.equal(largest(x, n_largest), by_sorting(x, n_largest))


@given(st.integers(0, 2**32), st.integers(1, 40), st.booleans())
def test_strides(seed, n_largest, transposed):
    wide = torch.rand(3000, 4, 2, generator=torch.Generator().manual_seed(seed))
    x = wide.permute(2, 1, 0) if transposed else wide[::2, :, 0].T
    assert not x.is_contiguous()
    assert torch.equal(largest(x, n_largest), by_sorting(x, n_largest))


def test_blocks_are_in_fact_used():
    assert tail._block_length(4000, 1) > 0
    assert tail._block_length(4_000_000, 2000) > 0
    assert tail._block_length(100, 50) == 0


def test_the_checks_catch_a_lost_block(monkeypatch):
    right = torch.Tensor.topk
    monkeypatch.setattr(torch.Tensor, "topk", lambda x, n, dim, sorted: right(x, max(n - 1, 1), dim, sorted=sorted))
    x = torch.zeros(2, 5000)
    x[:, ::100] = torch.arange(1.0, 51.0)  # each of the largest in a block of its own
    assert not torch.equal(largest(x, 40), by_sorting(x, 40))


def test_the_checks_catch_a_forgotten_rest(monkeypatch):
    monkeypatch.setattr(torch, "cat", lambda parts, dim: parts[0])
    x = KINDS["rising"](None, 1, 5001)  # the largest come last, after the last whole block
    assert tail._block_length(5001, 3) > 1
    assert 5001 % tail._block_length(5001, 3) > 0
    assert not torch.equal(largest(x, 3), by_sorting(x, 3))


@pytest.mark.parametrize("shape", [(6, 5), (2, 3, 4), (3, 2, 2, 2)])
def test_a_batch_keeps_the_longest_tail(monkeypatch, shape):
    x = torch.randn(*shape, generator=torch.Generator().manual_seed(0))
    rows = x.abs().movedim(0, -2).flatten(-2)
    calls, batch = [], Batch(x)
    monkeypatch.setattr("quambench.observers.batch.largest", lambda x, n: calls.append(n) or largest(x, n))
    for asked, made in ((2, [2]), (4, [2, 4]), (1, [2, 4])):
        assert torch.equal(batch.tail(asked)[..., -asked:], by_sorting(rows, asked))
        assert calls == made
