"""The contract that every observer meets, however many values share a scale."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

import pytest
import torch

from quambench.core.errors import BadParameter, NonFinite, SiteUnseen
from quambench.grids.grid import MIN_SCALE, fake_quantize
from quambench.observers import OBSERVERS, Observer, ObserverSpec
from quambench.observers.batch import Batch
from quambench.observers.histogram import MOST_DIGITS
from quambench.observers.running_max import RunningMax

EPS32 = torch.finfo(torch.float32).eps

# (B, L, C) -> (n_obs, *scale_shape, group): no axis of scales, one and two; few values in many observations, and
# many in one.
LAYOUTS = {
    "tensor": lambda x: x.flatten(0, 1),
    "channel": lambda x: x.flatten(0, 1)[..., None],
    "two_axes": lambda x: x.flatten(0, 1).unflatten(-1, (2 - x.shape[-1] % 2, -1))[..., None],
    "state": lambda x: x.movedim(1, -1).unflatten(1, (2 - x.shape[-1] % 2, -1)),
}


@dataclass
class FirstAndLargest(Observer):
    """From outside, by subclass: half-way between the first batch's maximum and the largest."""

    order_matters: ClassVar[bool] = True
    memory: ClassVar[tuple[str, ...]] = ("amax", "first")

    def observe(self, batch):
        newest = batch.amax.double()
        if self.amax is None:
            self.first = newest
            return newest
        return torch.maximum(self.amax, (self.first + newest) / 2)


class AverageMaximum:
    """From outside, by Quamba's interface: a moving average of maxima."""

    def __init__(self, n_bits, clip_ratio, sym, percentile_sigma=0.25):
        self.top, self.ratio, self.sigma = 2 ** (n_bits - 1) - 1, clip_ratio, percentile_sigma
        self.w_max = None
        self.has_statistic = False

    def update(self, w):
        self.has_statistic = True
        batch = w.abs_().amax().clamp(min=1e-5)  # in place: the batch is the observer's own
        self.w_max = batch if self.w_max is None else self.w_max + self.sigma * (batch - self.w_max)

    def get_quantization_parameters(self):
        assert self.has_statistic
        scales = self.w_max * self.ratio / self.top
        return scales, torch.zeros_like(scales)


OUTSIDE = [f"{__name__}:{kind.__name__}" for kind in (FirstAndLargest, AverageMaximum)]
PER_TENSOR_ONLY = OUTSIDE[-1]
NAMES = [*sorted(OBSERVERS), *OUTSIDE]
APPLICABLE = [(name, layout) for layout in LAYOUTS for name in NAMES if name != PER_TENSOR_ONLY or layout == "tensor"]


def pytest_generate_tests(metafunc):
    """Observers and layouts together where a test asks for both; one has one layout alone."""
    asked = [name for name in ("make", "lay_out") if name in metafunc.fixturenames]
    if asked == ["make", "lay_out"]:
        ids = [f"{name.removeprefix(f'{__name__}:')}-{layout}" for name, layout in APPLICABLE]
        metafunc.parametrize(asked, APPLICABLE, ids=ids, indirect=True)
    elif asked == ["make"]:
        metafunc.parametrize("make", NAMES, indirect=True)


@pytest.fixture
def make(request):
    return lambda bits=8, **parameters: ObserverSpec(request.param, tuple(sorted(parameters.items()))).build(bits)


@pytest.fixture
def lay_out(request):
    return LAYOUTS[request.param]


def test_what_makes_one_scale_refuses_to_make_more():
    observer = ObserverSpec(PER_TENSOR_ONLY).build()
    with pytest.raises(
        BadParameter, match=r"AverageMaximum makes one scale per tensor \(got a layout of \(6,\) scales\)"
    ):
        observer.update(LAYOUTS["channel"](stream(1)[0]))


def stream(n=6, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(1, 9, 6, generator=generator) * (1 + t) for t in range(n)]


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


def test_the_grids_end_is_told_in_double_precision(make, lay_out):
    observer = make()
    scale = run(observer, [lay_out(x) for x in stream()])
    assert observer.grid_end().dtype == torch.float64
    assert observer.grid_end().shape == scale.shape
    assert ((observer.grid_end() / 127 / scale - 1).abs() <= EPS32).all()


def test_deterministic_to_the_bit(make, lay_out):
    batches = [lay_out(x) for x in stream()]
    assert torch.equal(run(make(), batches), run(make(), batches))


def test_order_dependence_is_what_the_class_says(make, lay_out):
    batches = [lay_out(x) for x in stream()]
    same = torch.equal(run(make(), batches), run(make(), batches[::-1]))
    kind = type(make())
    assert same != kind.order_matters, (
        f"{kind.__name__} says order_matters = {kind.order_matters}, and the same batches in reverse order gave "
        f"{'the same scale' if same else 'another scale (a sum in another order suffices)'}: "
        f"set order_matters: ClassVar[bool] = {not kind.order_matters}"
    )


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


def assert_a_constant_is_kept(observer, size):
    """Exactly, where the threshold is one of the data's own; else within what is known of the data."""
    scale = observer.scale().double()
    off = (fake_quantize(torch.full_like(scale, size), scale) / size - 1).abs()
    if observer.exceeds_data:
        assert (off <= scale / abs(size) / 2 * (1 + EPS32)).all()  # somewhere on the grid: half a step
    elif observer.follows_grid:
        # By a histogram's bins, 2^-k wide, known to half of that each time that two errors are compared; and the
        # scale is a float32.
        assert (off <= 2.0**-MOST_DIGITS + EPS32).all()
    else:
        assert ((scale * 127 / abs(size) - 1).abs() <= 2 * EPS32).all()


def test_a_constant_is_kept(make, lay_out):
    observer = make()
    run(observer, [lay_out(torch.full((1, 3, 4), -2.0))] * 3)
    assert_a_constant_is_kept(observer, -2.0)


def test_one_element(make, lay_out):
    observer = make()
    run(observer, [lay_out(torch.tensor([[[3.0]]]))])
    assert_a_constant_is_kept(observer, 3.0)


@pytest.mark.parametrize("size", [1e30, 1e-42, 0.0])
def test_huge_subnormal_and_no_values_give_a_legal_scale(make, lay_out, size):
    observer = make()
    scale = run(observer, [lay_out(torch.full((1, 2, 3), size))] * 2)
    assert scale.isfinite().all()
    assert (scale >= MIN_SCALE * (1 - EPS32)).all()
    if size > 1:
        assert_a_constant_is_kept(observer, size)


def test_the_grid_ends_within_the_data_unless_the_class_says_otherwise(make, lay_out):
    batches = [lay_out(x) for x in stream()]
    observer = make()
    run(observer, batches)
    largest = torch.stack([x.abs().amax(dim=(0, -1)) for x in batches]).amax(0).double()
    within = observer.grid_end() <= largest * (1 + EPS32)
    assert within.all() or observer.exceeds_data, (
        f"{type(observer).__name__}'s grid ends beyond the largest |x| that it saw: a threshold above the data wastes "
        "the grid; clamp it, or set exceeds_data = True where that is meant"
    )
    constant = make()
    run(constant, [lay_out(torch.full((1, 3, 4), 2.0))])
    beyond = bool((constant.grid_end() > 2 * (1 + EPS32)).all())
    assert beyond == observer.exceeds_data, (
        f"{type(observer).__name__} says exceeds_data = {observer.exceeds_data}, and of values that are all 2 its grid "
        f"ends at {constant.grid_end().flatten()[0]:.6g}: set exceeds_data = {beyond}, or clip at the data"
    )


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


@pytest.mark.parametrize("bits", [2, 4])
def test_bits_divide_the_same_threshold_unless_the_class_says_otherwise(make, lay_out, bits):
    batches = [lay_out(x) for x in stream()]
    few, eight = make(bits), make()
    scale, of_eight = run(few, batches), run(eight, batches)
    top = 2 ** (bits - 1) - 1
    same = (scale * top / (of_eight * 127) - 1).abs() <= 4 * EPS32  # two roundings to float32 each side
    assert same.all() or few.follows_grid, (
        f"{type(few).__name__}'s threshold differs between {bits} and 8 bits: set follows_grid = True where "
        "it searches the grid, else do not let it depend on bits"
    )


def test_a_class_that_follows_the_grid_does(make):
    heavy = torch.randn(1, 20_000, generator=torch.Generator().manual_seed(0)) ** 3
    ends = [run(make(bits), [heavy]) * (2 ** (bits - 1) - 1) for bits in (2, 8)]
    moves = bool(((ends[0] / ends[1] - 1).abs() > 4 * EPS32).item())
    assert moves == make().follows_grid, (
        f"{type(make()).__name__} says follows_grid = {make().follows_grid}, and between 2 and 8 bits its threshold "
        f"{'moves' if moves else 'stays'}: set follows_grid = {moves}"
    )


def test_halves_can_be_merged_where_the_class_says_so(make, lay_out):
    batches = [lay_out(x) for x in stream()]
    for halves in ((batches[:3], batches[3:]), (batches[3:], batches[:3])):
        whole, first, second = make(), make(), make()
        run(whole, batches)
        run(first, halves[0])
        run(second, halves[1])
        before = second.state_dict()
        if not whole.mergeable:
            with pytest.raises(BadParameter, match="halves cannot be merged") as caught:
                first.absorb(second)
            assert "\n" not in str(caught.value)
            continue
        first.absorb(second)
        assert torch.equal(first.scale(), whole.scale())
        assert first.n_batches == whole.n_batches
        run(first, batches)  # and it goes on, by itself
        assert same_state(second.state_dict(), before)


def test_a_half_that_saw_nothing_changes_nothing(make, lay_out):
    seen, unseen = make(), make()
    run(seen, [lay_out(x) for x in stream()])
    before = seen.state_dict()
    seen.absorb(unseen)
    assert same_state(seen.state_dict(), before)
    unseen.absorb(seen)
    assert same_state(unseen.state_dict(), before)
    run(unseen, [lay_out(x) for x in stream()])
    assert same_state(seen.state_dict(), before)


def test_merging_and_order_are_claimed_together(make):
    assert not (make().mergeable and make().order_matters), (
        f"{type(make()).__name__} says mergeable and order_matters: halves that can be merged have no order"
    )


def test_a_clip_ratio_shortens_the_grid_by_as_much(make, lay_out):
    batches = [lay_out(x) for x in stream()]
    whole, half = make(), make(clip_ratio=0.5)
    run(whole, batches)
    run(half, batches)
    assert torch.equal(half.grid_end() * 2, whole.grid_end())  # exact: a power of two
    assert torch.equal(half.scale() * 2, whole.scale())


@pytest.mark.parametrize("ratio", [0.0, -0.5, 1.0000001, math.inf, math.nan])
def test_a_clip_ratio_outside_its_range_is_refused(make, ratio):
    with pytest.raises(BadParameter, match=r"clip_ratio must be in \(0, 1\]") as caught:
        make(clip_ratio=ratio)
    assert "\n" not in str(caught.value)


def test_no_longer_tail_is_asked_for_than_announced(make, lay_out):
    class Listening(Batch):
        asked = 0

        def tail(self, n):
            self.asked = max(self.asked, n)
            return super().tail(n)

    for length in (1, 9, 400):
        batch, observer = Listening(lay_out(torch.rand(1, length, 6))), make()
        observer.update(batch)
        assert batch.asked == observer.tail_length(batch.values_per_scale)


def test_observers_share_a_batch(make, lay_out):
    one, other, alone = make(), make(), make()
    for x in stream():
        batch = Batch(lay_out(x))
        one.update(batch)
        other.update(batch)
        alone.update(lay_out(x))
    assert same_state(one.state_dict(), alone.state_dict())
    assert same_state(other.state_dict(), alone.state_dict())


def test_the_same_values_in_double_precision(make, lay_out):
    batches = [lay_out(x) for x in stream()]
    single, double = run(make(), batches), run(make(), [x.double() for x in batches])
    assert ((double / single - 1).abs() <= 2 * EPS32).all()


def test_a_saved_state_goes_on_as_if_nothing_had_happened(make, lay_out):
    batches = [lay_out(x) for x in stream()[::-1]]  # the largest first: what is lost shows
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


@lru_cache(maxsize=1)
def twenty_million(lay_out):
    """One batch for all observers of a layout, as in calibration: what they share is made once."""
    return Batch(lay_out(torch.linspace(-1, 1, 20_000_000).view(1, -1, 4)))


def test_twenty_million_elements(make, lay_out):
    observer = make()
    observer.update(twenty_million(lay_out))
    # All but the last few order statistics of |x| lie below 1, all above α at the default α. And nothing is
    # gained by clipping an even distribution further than by the half step that rounding lends to each end.
    assert (observer.scale() > 0.99 / 127).all()
    assert (observer.scale() <= 1 / 127 * (1 + EPS32)).all() or observer.exceeds_data


def test_views_with_strides_are_read_right(make):
    wide = torch.randn(4, 12, generator=torch.Generator().manual_seed(1))
    assert torch.equal(run(make(), [wide[:, ::2]]), run(make(), [wide[:, ::2].contiguous()]))


# -- and what the contract catches --------------------------------------------------------------------


@dataclass
class SaysOrderMatters(RunningMax):
    order_matters: ClassVar[bool] = True


@dataclass
class SaysItExceeds(RunningMax):
    exceeds_data: ClassVar[bool] = True


@dataclass
class Exceeds(RunningMax):
    def threshold(self):
        return 1.5 * super().threshold()


@dataclass
class SaysItFollows(RunningMax):
    follows_grid: ClassVar[bool] = True


@dataclass
class Follows(RunningMax):
    def threshold(self):
        return super().threshold() * (1 - 2.0**-self.bits)


@dataclass
class WritesToItsInput(RunningMax):
    def take(self, batch):
        batch.x.abs_()
        super().take(batch)


@dataclass
class MergesNothing(RunningMax):
    def join(self, other):
        pass


@dataclass
class TakesOverWhatItMerges(RunningMax):
    def join(self, other):
        self.amax = other.amax = torch.maximum(self.amax, other.amax)


@dataclass
class RemembersInSecret(RunningMax):
    def observe(self, batch):
        self.secret = 1 + getattr(self, "secret", 0)
        return self.secret * batch.amax.double()


@dataclass
class ForgetsTheClipRatio(RunningMax):
    def grid_end(self):
        return self.threshold()


@dataclass
class AsksForAll(RunningMax):
    def take(self, batch):
        batch.tail(batch.values_per_scale)
        super().take(batch)


@dataclass
class Float32(RunningMax):
    def grid_end(self):
        return super().grid_end().float()


@pytest.mark.parametrize(
    ("fault", "caught_by"),
    [
        (SaysOrderMatters, test_order_dependence_is_what_the_class_says),
        (SaysItExceeds, test_the_grid_ends_within_the_data_unless_the_class_says_otherwise),
        (Exceeds, test_the_grid_ends_within_the_data_unless_the_class_says_otherwise),
        (SaysItFollows, test_a_class_that_follows_the_grid_does),
        (Follows, test_a_class_that_follows_the_grid_does),
        (WritesToItsInput, test_an_observer_leaves_its_input_alone),
        (MergesNothing, test_halves_can_be_merged_where_the_class_says_so),
        (TakesOverWhatItMerges, test_halves_can_be_merged_where_the_class_says_so),
        (RemembersInSecret, test_a_saved_state_goes_on_as_if_nothing_had_happened),
        (ForgetsTheClipRatio, test_a_clip_ratio_shortens_the_grid_by_as_much),
        (AsksForAll, test_no_longer_tail_is_asked_for_than_announced),
        (Float32, test_the_grids_end_is_told_in_double_precision),
    ],
)
def test_the_contract_catches(fault, caught_by):
    layout = {"lay_out": LAYOUTS["tensor"]} if "lay_out" in caught_by.__code__.co_varnames else {}
    with pytest.raises(AssertionError):
        caught_by(lambda bits=8, **parameters: fault(bits=bits, **parameters), **layout)
