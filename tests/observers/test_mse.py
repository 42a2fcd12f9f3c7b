"""The least squared error: by hand, against fake quantization of the values themselves, and with faults."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from quambench.core.errors import BadParameter
from quambench.grids.grid import fake_quantize, q_max
from quambench.observers import ObserverSpec, mse
from quambench.observers.histogram import OCTAVES, Histogram
from quambench.observers.mse import COARSE, ROUNDS, SPLIT, LeastSquares, in_equal_ratios, mean_squared_error

EPS64 = torch.finfo(torch.float64).eps
U = 1 + 2.0**-12  # times a power of two: the middle of a bin


def exact_error(x, thresholds, bits):
    """(n, group) values per scale, thresholds (n, m) -> (n, m), by the runtime's grid in float64."""
    x, step = x.double()[:, None], (thresholds / q_max(bits))[..., None]
    return (x - fake_quantize(x, step, bits)).square().mean(-1)


def rounding(x):
    """Of `mean_squared_error`, per scale: sums over bins of terms of which none is above 3 x²."""
    return 3 * OCTAVES * 2**12 * EPS64 * x.double().square().mean(-1, keepdim=True)


def half_width(x):
    """(n): b of the docstring, from the bins' definition alone: 2^-(k+1) of the octave's foot, or all below
    the window. x (n, group)"""
    h = Histogram.of(x[None])
    octave = torch.exp2(x.double().abs().log2().floor())
    below = x.double().abs() < (h.unit * 2.0 ** (1 - OCTAVES))[:, None]
    return torch.where(below, x.double().abs(), octave / 2 ** (h.k + 1)).square().mean(-1).sqrt()


def test_by_hand():
    # Two bits: -2, -1, 0 and 1 steps. Four values of 2, 1, -2 and -1/2 U.
    h = Histogram.of(torch.tensor([[2.0, 1.0, -2.0, -0.5]]) * U)
    found = mean_squared_error(h, torch.tensor([[1.0, 1.5, 2.0]], dtype=torch.float64) * U, bits=2)[0] / U**2
    # Step 1: 2 is clipped to 1, -2 is not, 1/2 is lost. Step 3/2: to 3/2, 3/2, -3/2, 0. Step 2: to 2, 0 or 2, -2, 0.
    by_hand = [(1 + 0 + 0 + 0.25) / 4, 4 * 0.25 / 4, (0 + 1 + 0 + 0.25) / 4]
    assert found.tolist() == pytest.approx(by_hand, rel=16 * EPS64)


def test_the_observer_by_hand():
    observer = LeastSquares(bits=2, low=0.5, high=1.0, steps=3)
    observer.update(torch.tensor([[2.0, 1.0], [-2.0, -0.5]]) * U)
    assert observer.threshold().item() == 1.5 * U


def assert_is_fake_quantization(at_centres, error_of):
    generator = torch.Generator().manual_seed(0)
    x = at_centres(torch.randn(400, 3, 2, generator=generator) * torch.tensor([1e-3, 1.0, 50.0]).view(3, 1))
    h, rows = Histogram.of(x), x.movedim(1, 0).flatten(1)
    thresholds = h.amax[:, None] * torch.linspace(0.02, 1.1, 60, dtype=torch.float64)
    for bits in (2, 3, 4, 8):
        off = (error_of(h, thresholds, bits) - exact_error(rows, thresholds, bits)).abs()
        assert (off <= rounding(rows)).all(), (bits, (off / rounding(rows)).max())


def test_is_fake_quantization(at_centres):
    assert_is_fake_quantization(at_centres, mean_squared_error)


FAULTS = {
    "a step of T / 2^(b-1)": lambda h, t, bits: mean_squared_error(h, t * q_max(bits) / (q_max(bits) + 1), bits),
    "the negative end as short": lambda h, t, bits: mean_squared_error(
        replace(h, counts=torch.stack([h.counts.sum(1), 0 * h.counts[:, 1]], dim=1)), t, bits
    ),
    "one bin off": lambda h, t, bits: mean_squared_error(replace(h, counts=h.counts.roll(1, dims=-1)), t, bits),
    "one value too many": lambda h, t, bits: mean_squared_error(replace(h, underflow=h.underflow + 1), t, bits),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_the_check_catches(at_centres, fault):
    with pytest.raises(AssertionError):
        assert_is_fake_quantization(at_centres, FAULTS[fault])


@given(
    st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=40),
    st.floats(0.02, 1.5),
    st.sampled_from([2, 3, 4, 8]),
)
def test_the_histograms_error_is_within_its_bound(values, part, bits):
    x = torch.tensor([values])
    assume(x.abs().max() > 0)
    thresholds = x.abs().max().double().view(1, 1) * part
    found = mean_squared_error(Histogram.of(x), thresholds, bits)
    # Rounding of the mean square becomes at most its root.
    slack = rounding(x).sqrt() + EPS64 * x.abs().max()
    assert (found.sqrt() - exact_error(x, thresholds, bits).sqrt()).abs() <= half_width(x) + slack


DISTRIBUTIONS = {
    "normal": lambda g: torch.randn(6000, generator=g),
    "heavy": lambda g: torch.randn(6000, generator=g) ** 3,
    "skewed": lambda g: torch.randn(6000, generator=g).exp(),
    "uniform": lambda g: torch.rand(6000, generator=g),
    "spiky": lambda g: torch.cat([torch.randn(6000, generator=g), torch.tensor([300.0, -200.0])]),
}


@pytest.mark.parametrize("name", DISTRIBUTIONS)
@pytest.mark.parametrize("bits", [3, 4, 8])
def test_the_full_search_finds_what_a_dense_one_would(name, bits):
    x = DISTRIBUTIONS[name](torch.Generator().manual_seed(0))
    observer = LeastSquares(bits=bits)
    for batch in x.split(1000):
        observer.update(batch.view(1, -1))
    found = observer.threshold()
    dense = in_equal_ratios(0.02, 1.0, 2000) * observer.amax
    ours, best = (exact_error(x[None], t, bits).sqrt().min() for t in (found.view(1, 1), dense[None]))
    # A threshold that is off by a part moves each of the grid's points by that part of (q_max + 1) steps at most.
    last_ratio = COARSE ** (1 / SPLIT**ROUNDS) - 1
    off = last_ratio * found * (q_max(bits) + 1) / q_max(bits)
    assert ours <= best + 2 * half_width(x[None]) + off


def test_the_search_ends_with_neighbours_a_thousandth_apart():
    assert COARSE ** (2 / SPLIT**ROUNDS) - 1 < 0.001


def test_no_candidate_that_was_tried_is_better_than_twice_the_bound(monkeypatch):
    tried, right = [], mse.best
    monkeypatch.setattr(mse, "best", lambda h, t, bits: tried.append(t) or right(h, t, bits))
    x = torch.randn(500, 3, 2, generator=torch.Generator().manual_seed(1)) ** 3
    observer = LeastSquares(bits=4)
    observer.update(x)
    found, rows = observer.threshold()[:, None], x.movedim(1, 0).flatten(1)
    least = exact_error(rows, torch.cat(tried, dim=1), 4).amin(-1).sqrt()
    assert (exact_error(rows, found, 4)[:, 0].sqrt() <= least + 2 * half_width(rows)).all()
    assert (torch.cat(tried, dim=1) >= 0.02 * observer.amax[:, None]).all()
    assert (torch.cat(tried, dim=1) <= observer.amax[:, None]).all()


def test_the_guides_setting_tries_twenty_candidates_and_nothing_else(monkeypatch):
    tried, right = [], mse.best
    monkeypatch.setattr(mse, "best", lambda h, t, bits: tried.append(t) or right(h, t, bits))
    observer = ObserverSpec.parse("mse[low=0.8,high=1.0,steps=20]").build()
    observer.update(torch.tensor([[-10.0, 3.0]]))
    observer.threshold()
    (candidates,) = tried
    expected = [10 * (0.8 + 0.2 * i / 19) for i in range(20)]
    assert sorted(candidates[0].tolist()) == pytest.approx(expected, rel=4 * EPS64)


def test_how_many_are_computed_at_a_time_changes_nothing(monkeypatch):
    x = torch.randn(20, 5, 2, generator=torch.Generator().manual_seed(0))
    h = Histogram.of(x)
    thresholds = h.amax[:, None] * torch.linspace(0.1, 1, 9, dtype=torch.float64)
    whole = mean_squared_error(h, thresholds, 8)
    monkeypatch.setattr(mse, "_CHUNK", 1)
    assert ((mean_squared_error(h, thresholds, 8) - whole).abs() <= rounding(x.movedim(1, 0).flatten(1))).all()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("mse[low=0]", "low must be in (0, 1] (got 0.0)"),
        ("mse[low=0.9,high=0.8]", "low must be in (0, 0.8] (got 0.9)"),
        ("mse[high=1.5]", "high must be in (0, 1] (got 1.5)"),
        ("mse[steps=2.5]", "steps must be a whole number, 0 or more (got 2.5)"),
        ("mse[steps=-1]", "steps must be a whole number, 0 or more (got -1.0)"),
        ("mse[steps=nan]", "steps must be a whole number"),
        ("mse[steps=inf]", "steps must be a whole number"),
        ("mse[steps=1]", "steps must be 0, or 2 or more"),
    ],
)
def test_a_bad_parameter_says_what_it_must_be(text, says):
    with pytest.raises(BadParameter) as caught:
        ObserverSpec.parse(text)
    assert says in str(caught.value)
