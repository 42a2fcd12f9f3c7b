"""The contract that every observer meets, at every granularity."""

from __future__ import annotations

import math

import pytest
import torch

from quambench.errors import NonFinite, SiteUnseen
from quambench.observers import OBSERVERS, ObserverSpec
from quambench.quant.granularity import GRANULARITIES

EPS32 = torch.finfo(torch.float32).eps


@pytest.fixture(params=sorted(OBSERVERS))
def make(request):
    return lambda: ObserverSpec(request.param).build()


@pytest.fixture(params=sorted(GRANULARITIES))
def lay_out(request):
    return GRANULARITIES[request.param].lay_out


def stream(n=6, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(1, 9, 5, generator=generator) * (1 + t) for t in range(n)]


def run(observer, batches):
    for batch in batches:
        observer.update(batch)
    return observer.scale()


def test_shape_type_and_sign(make, lay_out):
    batches = [lay_out(x) for x in stream()]
    scale = run(make(), batches)
    assert scale.dtype == torch.float32
    assert scale.shape == batches[0].shape[1:-1]
    assert (scale > 0).all()


def test_deterministic_to_the_bit(make, lay_out):
    batches = [lay_out(x) for x in stream()]
    assert torch.equal(run(make(), batches), run(make(), batches))


def test_order_dependence_is_what_the_class_says(make, lay_out):
    batches = [lay_out(x) for x in stream()]
    same = torch.equal(run(make(), batches), run(make(), batches[::-1]))
    assert same != type(make()).order_matters


def test_an_observer_leaves_its_input_alone(make, lay_out):
    batch = lay_out(stream(1)[0]).clone()
    before = batch.clone()
    run(make(), [batch])
    assert torch.equal(batch, before)


def test_nothing_seen_is_an_error(make):
    with pytest.raises(SiteUnseen):
        make().scale()


def test_an_empty_batch_changes_nothing(make, lay_out):
    batches = [lay_out(x) for x in stream()]
    observer = make()
    scale = run(observer, batches)
    observer.update(batches[0][:0])
    assert torch.equal(observer.scale(), scale)


def test_a_constant_is_its_own_maximum(make):
    scale = run(make(), [torch.full((3, 4), -2.0)] * 3)
    assert abs(scale.item() * 127 - 2.0) <= 2 * 2.0 * EPS32


def test_one_element(make):
    assert abs(run(make(), [torch.tensor([[3.0]])]).item() * 127 - 3.0) <= 2 * 3.0 * EPS32


@pytest.mark.parametrize("size", [1e30, 1e-42])
def test_huge_and_subnormal_values_give_a_legal_scale(make, size):
    scale = run(make(), [torch.full((2, 3), size)] * 2).item()
    assert math.isfinite(scale)
    assert scale >= 1e-6 * (1 - EPS32)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_value_that_is_not_finite_is_refused_and_leaves_no_trace(make, bad):
    observer = make()
    scale = run(observer, [torch.ones(2, 3), torch.full((2, 3), 2.0)])
    with pytest.raises(NonFinite, match="1 of 6"):
        observer.update(torch.tensor([[1.0, 2.0, 3.0], [4.0, bad, 6.0]]))
    assert torch.equal(observer.scale(), scale)


def test_a_saved_state_goes_on_as_if_nothing_had_happened(make, lay_out):
    batches = [lay_out(x) for x in stream()]
    first, second = make(), make()
    run(first, batches[:3])
    second.load_state_dict(first.state_dict())
    assert torch.equal(run(first, batches[3:]), run(second, batches[3:]))


def test_doubling_the_data_doubles_the_scale(make, lay_out):
    batches = [lay_out(x) for x in stream()]
    assert torch.equal(run(make(), [2 * b for b in batches]), 2 * run(make(), batches))  # exact: a power of two


def test_twenty_million_elements(make):
    x = torch.linspace(-1, 1, 20_000_000).view(1, -1)
    # All but the last few order statistics of |x| lie below 1, all above α at the default α.
    assert 0.99 / 127 < run(make(), [x]).item() <= 1 / 127 * (1 + EPS32)


def test_views_with_strides_are_read_right(make):
    wide = torch.randn(4, 12, generator=torch.Generator().manual_seed(1))
    assert torch.equal(run(make(), [wide[:, ::2]]), run(make(), [wide[:, ::2].contiguous()]))
