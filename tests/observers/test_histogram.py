"""The histogram: by hand, a function of the multiset alone, exact in every bin; and with planted faults."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from quambench.observers import histogram as module
from quambench.observers.histogram import MAX_BINS, OCTAVES, Histogram, beyond, digits

finite = st.floats(-(2.0**100), 2.0**100, width=32) | st.floats(-4, 4, width=32) | st.just(0.0)


def of(values) -> Histogram:
    return Histogram.of(torch.tensor(values, dtype=torch.float32).view(1, -1))


def equal(one: Histogram, other: Histogram) -> bool:
    return all(torch.equal(getattr(one, name), getattr(other, name)) for name in ("amax", "top", "counts", "underflow"))


def oracle(values, k):
    """Where each value belongs, by logarithms in float64: amax, the window's foot, counts, underflow."""
    x = np.asarray(values, dtype=np.float32).astype(np.float64)
    lowest = module.LOWEST_TOP - module.BIAS
    top = max(math.frexp(np.abs(x).max())[1] - 1, lowest) if x.any() else lowest
    counts, underflow = np.zeros((2, OCTAVES << k), dtype=np.int64), 0
    for v in x:
        mantissa, exponent = math.frexp(abs(v))  # mantissa in [0.5, 1)
        octave = exponent - 1 - (top - OCTAVES + 1)
        if v == 0 or octave < 0:
            underflow += 1
        else:
            counts[int(v < 0), (octave << k) + int((2 * mantissa - 1) * 2**k)] += 1
    return np.abs(x).max(), top, counts, underflow


def assert_is_the_oracle(values, made=None):
    found = made or of(values)
    amax, top, counts, underflow = oracle(values, found.k)
    assert found.amax.item() == amax
    assert math.log2(found.unit.item()) == top
    assert np.array_equal(found.counts[0].numpy(), counts)
    assert found.underflow.item() == underflow


def test_by_hand():
    h = of([1.5, -1.0, 0.75, -0.75, 0.0, 2.0**-15, 2.0**-16, -(2.0**-20)])
    assert h.k == 11
    assert h.unit.item() == 1.0  # the top octave is [1, 2)
    assert h.amax.item() == 1.5
    bins = {(sign, i): h.counts[0, sign, i].item() for sign, i in h.counts[0].nonzero().tolist()}
    octave = 2**11
    # 1.5 and 0.75 lie half-way through the first and the second octave from the top.
    where = {(0, 15.5): 1, (1, 15.0): 1, (0, 14.5): 1, (1, 14.5): 1, (0, 0.0): 1}
    assert bins == {(sign, int(i * octave)): n for (sign, i), n in where.items()}
    assert h.underflow.item() == 3  # 0 and what is below 2^-15
    assert h.n_values.item() == 8


def test_centres_and_half_widths_by_hand():
    h = of([1.0])
    assert h.centres[0].item() == 2.0**-15 * (1 + 2.0**-12)
    assert h.centres[-1].item() == 2 - 2.0**-12
    assert h.half_widths[-1].item() == 2.0**-12
    assert h.half_widths[0].item() == 2.0**-27
    # Bins meet: each one's end is the next one's foot.
    assert torch.equal((h.centres + h.half_widths)[:-1], (h.centres - h.half_widths)[1:])


@given(st.lists(finite, min_size=1, max_size=50))
def test_every_value_is_where_logarithms_put_it(values):
    assert_is_the_oracle(values)


@given(st.lists(finite, min_size=1, max_size=50))
def test_no_value_is_further_from_its_centre_than_half_a_width(values):
    h = of(values)
    x = torch.tensor(values, dtype=torch.float32).double()
    for v in x.tolist():
        one = Histogram(h.amax, h.top, *module._count(torch.tensor([[v]]), ((h.top - 15) << h.k).int(), h.k))
        if one.underflow.item():
            assert abs(v) < h.unit.item() * 2.0 ** (1 - OCTAVES)
            continue
        sign, i = one.counts[0].nonzero()[0].tolist()
        assert sign == (v < 0)
        assert abs(abs(v) / h.unit.item() - h.centres[i].item()) <= h.half_widths[i].item()


def absorbed(whole, values):
    whole.absorb(of(values))


def added(whole, values):
    whole.add(torch.tensor(values, dtype=torch.float32)[:, None])


def in_batches(values, cuts, take=absorbed):
    ends = sorted({min(c, len(values)) for c in cuts} | {0, len(values)})
    merged = None
    for first, end in pairwise(ends):
        if merged is None:
            merged = of(values[first:end])
        else:
            take(merged, values[first:end])
    return merged


@given(st.lists(finite, min_size=1, max_size=40), st.randoms(), st.lists(st.integers(1, 40), max_size=6))
@settings(max_examples=200)
@pytest.mark.parametrize("take", [absorbed, added])
def test_the_state_depends_on_the_multiset_alone(take, values, chance, cuts):
    shuffled = list(values)
    chance.shuffle(shuffled)
    found = in_batches(shuffled, cuts, take)
    assert equal(found, of(values))
    assert_is_the_oracle(values, found)


def test_values_of_many_scales_are_added_as_absorbed():
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        first, second = (
            torch.randn(4, 5, 3, 7, generator=generator) * 10 ** torch.randn(5, 3, 1, generator=generator)
            for _ in range(2)
        )
        one, other = Histogram.of(first), Histogram.of(first)
        one.absorb(Histogram.of(second))
        other.add(second)
        assert equal(one, other)


def test_a_value_added_one_bin_off_is_noticed(monkeypatch):
    right = module._lowest
    monkeypatch.setattr(module, "_lowest", lambda top, k: right(top, k) + 1)
    with pytest.raises(AssertionError):
        assert_is_the_oracle([1.5, -2.25, 0.125], in_batches([1.5, -2.25, 0.125], [2], added))


def test_a_rise_by_any_number_of_octaves():
    first = [1.0, -1.75, 0.25, 3.0e-5]
    for octaves in range(20):
        for take in (absorbed, added):
            for second in ([2.0**octaves], [1.5 * 2.0**-octaves]):
                assert equal(in_batches(first + second, [4], take), of(first + second))
                assert equal(in_batches(second + first, [1], take), of(first + second))


def test_absorbing_leaves_the_other_alone():
    for small, large in ((1.0, 8.0), (8.0, 1.0), (1.0, 1.0)):
        one, other = of([small]), of([large, 0.5])
        one.absorb(other)
        assert equal(other, of([large, 0.5]))


def test_each_scale_has_its_own_window():
    generator = torch.Generator().manual_seed(0)
    sizes = torch.tensor([1e-3, 1.0, 700.0]).view(3, 1)
    first, second = (torch.randn(50, 3, 2, generator=generator) * sizes * grown for grown in (1, 5))
    both = Histogram.of(first)
    both.absorb(Histogram.of(second))
    assert equal(both, Histogram.of(torch.cat([first, second])))
    for i in range(3):
        alone = Histogram(both.amax[i], both.top[i : i + 1], both.counts[i : i + 1], both.underflow[i : i + 1])
        assert_is_the_oracle(torch.cat([first, second])[:, i].flatten().tolist(), alone)


@pytest.mark.parametrize("chunk", [1, 7, 64, 10**6])
def test_how_many_are_counted_at_a_time_changes_nothing(monkeypatch, chunk):
    x = torch.randn(9, 4, 3, 5, generator=torch.Generator().manual_seed(0))
    whole = Histogram.of(x)
    monkeypatch.setattr(module, "_CHUNK", chunk)
    assert equal(Histogram.of(x), whole)


def test_strided_double_and_half_input():
    x = torch.randn(8, 12, generator=torch.Generator().manual_seed(0)).half()
    whole = Histogram.of(x.float())
    assert equal(Histogram.of(x), whole)
    assert equal(Histogram.of(x.double()), whole)
    wide = torch.stack([x.float(), x.float() * 9], dim=-1)
    assert equal(Histogram.of(wide[..., 0]), whole)


def test_a_double_keeps_its_exact_maximum():
    x = torch.tensor([[2 - 2.0**-40, 0.5]], dtype=torch.float64)  # rounds to 2 in float32
    h = Histogram.of(x)
    assert h.amax.item() == 2 - 2.0**-40
    assert h.unit.item() == 2.0
    assert h.n_values.item() == 2


@pytest.mark.parametrize("values", [[0.0, -0.0], [1e-45, -1e-40], [3.4e38, -3.4e38, 1.0]])
def test_zeros_subnormals_and_the_largest_are_legal(values):
    h = of(values)
    assert h.n_values.item() == len(values)
    assert h.linear().sum().item() == len(values)
    assert h.amax.item() == torch.tensor(values).abs().max().item()


@given(st.lists(st.floats(0, 2, width=32), min_size=1, max_size=30))
def test_position_is_the_first_centre_that_is_not_less(t):
    h = of([1.0])
    at = torch.tensor([*t, 0.0, 5.0, 2.0**-15, *h.centres[[0, 1, 777, -1]].tolist()], dtype=torch.float64)
    assert torch.equal(h.position(at), torch.searchsorted(h.centres, at))


def test_beyond_by_hand():
    assert beyond(torch.tensor([[1, 0, 2, 4]])).tolist() == [[7, 6, 6, 4, 0]]


def assert_linear_is_exact(linear_of):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(4000, generator=generator) * torch.logspace(-6, 0, 4000)
    h = Histogram.of(x.view(1, -1))
    n_bins = 2 ** (h.k + 1)
    # A power of two divides exactly: no value can cross a bin's end by rounding.
    there = (x.abs().double() / h.unit / 2 * n_bins).long()
    assert torch.equal(linear_of(h)[0], torch.bincount(there, minlength=n_bins))
    up_to_amax = linear_of(h)[0].nonzero().max().item() + 1
    assert 2048 <= up_to_amax <= 4096
    assert n_bins == 4096


def test_linear_bins_are_exact():
    assert_linear_is_exact(Histogram.linear)


def test_a_value_counted_one_bin_off_is_caught():
    with pytest.raises(AssertionError):
        assert_linear_is_exact(lambda h: h.linear().roll(1, dims=-1))


@pytest.mark.parametrize("fault", ["what falls out is dropped", "moved by an octave too many", "signs pooled"])
def test_the_checks_catch(monkeypatch, fault):
    right = module._lowered

    def lowered(counts, by):
        if fault == "moved by an octave too many":
            return right(counts, by + 1)
        kept, lost = right(counts, by)
        if fault == "signs pooled":
            return torch.stack([kept.sum(1), 0 * kept[:, 1]], dim=1), lost
        return kept, 0 * lost

    monkeypatch.setattr(module, "_lowered", lowered)
    first, second = [1.0, -1.75, -0.3, 3.1e-5], [5.0, -2.0]  # 3.1e-5 is just above 2^-15
    with pytest.raises(AssertionError):
        assert_is_the_oracle(first + second, in_batches(first + second, [4]))


@pytest.mark.parametrize(("n_scales", "k"), [(1, 11), (64, 11), (65, 10), (512, 8), (16384, 3), (100_000, 3)])
def test_the_number_of_digits_keeps_the_promised_size(n_scales, k):
    assert digits(n_scales) == k
    bins = n_scales * 2 * OCTAVES * 2**k
    assert bins <= MAX_BINS or k == module.FEWEST_DIGITS
    assert 2 * bins > MAX_BINS or k == module.MOST_DIGITS


def test_counting_costs_a_few_passes_over_the_data(best_of):
    x = torch.randn(8192, 512, generator=torch.Generator().manual_seed(0))
    one_pass = best_of(lambda: x.abs().amax())
    assert best_of(lambda: Histogram.of(x)) < 30 * one_pass
