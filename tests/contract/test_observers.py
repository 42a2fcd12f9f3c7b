"""The contract that every observer meets, at every granularity."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch

from quambench.errors import BadParameter, NonFinite, SiteUnseen
from quambench.observers import OBSERVERS, Observer, ObserverSpec
from quambench.quant.granularity import GRANULARITIES

EPS32 = torch.finfo(torch.float32).eps


@dataclass
class FirstAndLargest(Observer):
    """From outside, by subclass: half-way between the first batch's maximum and the largest."""

    order_matters: ClassVar[bool] = True

    def __post_init__(self):
        super().__post_init__()
        self.first = None

    def observe(self, x):
        batch = x.amax(dim=(0, -1)).double()
        if self.amax is None:
            self.first = batch
            return batch
        return torch.maximum(self.amax, (self.first + batch) / 2)

    def state_dict(self):
        return super().state_dict() | ({} if self.first is None else {"first": self.first.clone()})

    def load_state_dict(self, state):
        super().load_state_dict(state)
        self.first = state["first"].clone() if "first" in state else None


class AverageMaximum:
    """From outside, by Quamba's interface: a moving average of maxima."""

    def __init__(self, n_bits, clip_ratio, sym, percentile_sigma=0.25):
        self.top, self.sigma = 2 ** (n_bits - 1) - 1, percentile_sigma
        self.w_max = None
        self.has_statistic = False

    def update(self, w):
        self.has_statistic = True
        batch = w.abs_().amax().clamp(min=1e-5)  # in place: the batch is the observer's own
        self.w_max = batch if self.w_max is None else self.w_max + self.sigma * (batch - self.w_max)

    def get_quantization_parameters(self):
        assert self.has_statistic
        scales = self.w_max / self.top
        return scales, torch.zeros_like(scales)


OUTSIDE = [f"{__name__}:{kind.__name__}" for kind in (FirstAndLargest, AverageMaximum)]
PER_TENSOR_ONLY = OUTSIDE[-1]
EVERYWHERE = [(name, g) for name in [*sorted(OBSERVERS), *OUTSIDE] for g in sorted(GRANULARITIES)]
APPLICABLE = [(name, g) for name, g in EVERYWHERE if name != PER_TENSOR_ONLY or g == "tensor"]


def pytest_generate_tests(metafunc):
    """Observers and granularities together where a test asks for both; one has one granularity alone."""
    asked = [name for name in ("make", "lay_out") if name in metafunc.fixturenames]
    if asked == ["make", "lay_out"]:
        ids = [f"{name.removeprefix(f'{__name__}:')}-{g}" for name, g in APPLICABLE]
        metafunc.parametrize(asked, APPLICABLE, ids=ids, indirect=True)
    elif asked == ["make"]:
        metafunc.parametrize("make", [*sorted(OBSERVERS), *OUTSIDE], indirect=True)


@pytest.fixture
def make(request):
    return lambda bits=8: ObserverSpec(request.param).build(bits)


@pytest.fixture
def lay_out(request):
    return GRANULARITIES[request.param].lay_out


def test_what_makes_one_scale_refuses_to_make_more():
    observer = ObserverSpec(PER_TENSOR_ONLY).build()
    with pytest.raises(
        BadParameter, match=r"AverageMaximum makes one scale per tensor \(got a layout of \(5,\) scales\)"
    ):
        observer.update(GRANULARITIES["channel"].lay_out(stream(1)[0]))


def stream(n=6, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(1, 9, 5, generator=generator) * (1 + t) for t in range(n)]


def run(observer, batches):
    for batch in batches:
        observer.update(batch)
    return observer.scale()


def same_state(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


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
    before = observer.state_dict()
    observer.update(batches[0][:0])
    assert torch.equal(observer.scale(), scale)
    assert same_state(before, observer.state_dict())


def test_a_constant_is_its_own_maximum(make, lay_out):
    scale = run(make(), [lay_out(torch.full((1, 3, 4), -2.0))] * 3)
    assert ((scale * 127 - 2.0).abs() <= 2 * 2.0 * EPS32).all()


def test_one_element(make, lay_out):
    scale = run(make(), [lay_out(torch.tensor([[[3.0]]]))])
    assert ((scale * 127 - 3.0).abs() <= 2 * 3.0 * EPS32).all()


@pytest.mark.parametrize("size", [1e30, 1e-42])
def test_huge_and_subnormal_values_give_a_legal_scale(make, lay_out, size):
    scale = run(make(), [lay_out(torch.full((1, 2, 3), size))] * 2)
    floor = 1e-6 * (1 - EPS32)
    assert scale.isfinite().all() and (scale >= floor).all()
    if size > 1:
        assert ((scale * 127 / size - 1).abs() <= 2 * EPS32).all()


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_value_that_is_not_finite_is_refused_and_leaves_no_trace(make, lay_out, bad):
    observer = make()
    run(observer, [lay_out(torch.ones(1, 2, 3)), lay_out(torch.full((1, 2, 3), 2.0))])
    before = observer.state_dict()
    with pytest.raises(NonFinite, match="1 of 6"):
        observer.update(lay_out(torch.tensor([[[1.0, 2.0, 3.0], [4.0, bad, 6.0]]])))
    assert same_state(before, observer.state_dict())


def test_a_first_batch_that_is_refused_leaves_the_observer_fresh(make, lay_out):
    observer = make()
    with pytest.raises(NonFinite):
        observer.update(lay_out(torch.full((1, 2, 3), math.nan)))
    assert same_state(observer.state_dict(), make().state_dict())
    with pytest.raises(SiteUnseen):
        observer.scale()


def test_batches_are_counted(make, lay_out):
    observer = make()
    run(observer, [lay_out(x) for x in stream(4)])
    assert observer.n_batches == 4


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_bits_divide_the_same_amax(make, lay_out, bits):
    scale = run(make(bits), [lay_out(x) for x in stream()])
    eight = run(make(), [lay_out(x) for x in stream()])
    top = 2 ** (bits - 1) - 1
    assert ((scale * top / (eight * 127) - 1).abs() <= 4 * EPS32).all()  # two roundings to float32 each side


def test_a_saved_state_goes_on_as_if_nothing_had_happened(make, lay_out):
    batches = [lay_out(x) for x in stream()]
    first, second = make(), make()
    run(first, batches[:3])
    saved = first.state_dict()
    second.load_state_dict(saved)
    assert torch.equal(run(first, batches[3:]), run(second, batches[3:]))
    assert same_state(first.state_dict(), second.state_dict())
    assert second.n_batches == first.n_batches
    third = make()
    third.load_state_dict(saved)  # what was saved did not move with the observers
    assert torch.equal(run(third, batches[3:]), first.scale())


def test_the_state_of_a_fresh_observer_is_saved_too(make):
    used = make()
    run(used, [torch.ones(2, 3)])
    used.load_state_dict(make().state_dict())
    assert used.n_batches == 0
    with pytest.raises(SiteUnseen):
        used.scale()


def test_doubling_the_data_doubles_the_scale(make, lay_out):
    batches = [lay_out(x) for x in stream()]
    assert torch.equal(run(make(), [2 * b for b in batches]), 2 * run(make(), batches))  # exact: a power of two


def test_twenty_million_elements(make, lay_out):
    x = torch.linspace(-1, 1, 20_000_000).view(1, -1, 4)
    # All but the last few order statistics of |x| lie below 1, all above α at the default α.
    scale = run(make(), [lay_out(x)])
    assert (scale > 0.99 / 127).all()
    assert (scale <= 1 / 127 * (1 + EPS32)).all()


def test_views_with_strides_are_read_right(make):
    wide = torch.randn(4, 12, generator=torch.Generator().manual_seed(1))
    assert torch.equal(run(make(), [wide[:, ::2]]), run(make(), [wide[:, ::2].contiguous()]))
