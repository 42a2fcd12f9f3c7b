"""Largest entropy: by hand, against scipy over the integers themselves, and with faults."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy import stats

from quambench.core.errors import BadParameter
from quambench.grids.grid import q_max, quantize
from quambench.observers import ObserverSpec, entropy
from quambench.observers.entropy import Entropy, quantized_entropy
from quambench.observers.histogram import Histogram
from quambench.observers.mse import in_equal_ratios

EPS64 = torch.finfo(torch.float64).eps
U = 1 + 2.0**-12  # times a power of two: the middle of a bin


def exact_entropy(x, threshold, bits):
    """(group) values -> bits of information, by the runtime's grid."""
    step = torch.tensor(threshold / q_max(bits), dtype=torch.float64)
    return stats.entropy(np.unique(quantize(x.double(), step, bits).numpy(), return_counts=True)[1], base=2)


def rounding(n_values, bits):
    """A rounding per integer of the grid, of a term that is at most the logarithm of the number of values."""
    return 2 * EPS64 * 2**bits * max(np.log2(n_values), 1)


def test_by_hand():
    x = torch.tensor([[8.0, 1.0, -1.0, 0.0]]) * U
    thresholds = torch.tensor([[8.0, 1.0]], dtype=torch.float64) * U
    found = quantized_entropy(Histogram.of(x), thresholds, bits=2)[0]
    # Two bits, step 8: 1 0 0 0. Step 1: 1 1 -1 0, the 8 clipped: 1/2, 1/4, 1/4.
    by_hand = [0.25 * 2 + 0.75 * np.log2(4 / 3), 1.5]
    assert found.tolist() == pytest.approx(by_hand, abs=rounding(4, 2))
    observer = Entropy(bits=2, low=0.125, steps=2)
    observer.update(x)
    assert observer.threshold().item() == U  # it clips 8 to 1: what that costs does not count


def test_of_equals_the_largest():
    observer = Entropy(bits=4)
    observer.update(torch.tensor([[3.0, 3.0, -3.0]]))
    assert observer.threshold().item() == 3.0
    # Three values, each its own integer at most thresholds, and not always the same one.
    observer = Entropy(bits=8)
    observer.update(torch.tensor([[3.0, 0.7, -1.1]]))
    assert observer.threshold().item() == 3.0


def assert_is_the_integers_entropy(at_centres, entropy_of):
    x = at_centres(torch.randn(300, 2, 2, generator=torch.Generator().manual_seed(0)) * torch.tensor([[1e-3], [9.0]]))
    h = Histogram.of(x)
    thresholds = h.amax[:, None] * torch.linspace(0.03, 1.1, 40, dtype=torch.float64)
    for bits in (2, 3, 4, 8):
        found = entropy_of(h, thresholds, bits)
        for i in range(2):
            oracle = [exact_entropy(x[:, i].flatten(), t, bits) for t in thresholds[i].tolist()]
            assert np.abs(found[i].numpy() - oracle).max() <= rounding(600, bits)


def test_is_the_integers_entropy(at_centres):
    assert_is_the_integers_entropy(at_centres, quantized_entropy)


FAULTS = {
    "signs pooled": lambda h: replace(h, counts=torch.stack([h.counts.sum(1), 0 * h.counts[:, 1]], dim=1)),
    "signs swapped": lambda h: replace(h, counts=h.counts.flip(1)),
    "one bin off": lambda h: replace(h, counts=h.counts.roll(1, dims=-1)),
    "one value too many": lambda h: replace(h, underflow=h.underflow + 1),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_the_check_catches(at_centres, fault):
    with pytest.raises(AssertionError):
        assert_is_the_integers_entropy(at_centres, lambda h, t, bits: quantized_entropy(FAULTS[fault](h), t, bits))


@given(st.lists(st.floats(-100, 100, width=32), min_size=1, max_size=40), st.sampled_from([2, 3, 4, 8]))
def test_no_candidate_has_more(at_centres, values, bits):
    x = at_centres(torch.tensor([values]))
    assume(x.abs().max() > 1e-3)
    observer = Entropy(bits=bits, steps=30)
    observer.update(x)
    candidates = (observer.amax * in_equal_ratios(0.02, 1.0, 30)).tolist()
    # At a tie the runtime goes to the even integer, the histogram up: an oracle for other values only.
    quotients = x.double() / (torch.tensor(candidates, dtype=torch.float64) / q_max(bits))[:, None]
    assume(((quotients.abs() % 1) - 0.5).abs().min() > 1e-9)
    found = observer.threshold().item()
    assert found in candidates
    of_found = exact_entropy(x, found, bits)
    for candidate in candidates:
        other = exact_entropy(x, candidate, bits)
        assert other <= of_found + rounding(len(values), bits)
        if candidate > found:
            assert other < of_found


def test_a_bell_curve_is_clipped_more_than_least_squares_would():
    x = torch.randn(1, 100_000, generator=torch.Generator().manual_seed(0))
    found = {}
    for name in ("entropy", "mse"):
        observer = ObserverSpec(name).build()
        observer.update(x)
        found[name] = observer.threshold().item()
    assert found["entropy"] < found["mse"]


def test_how_many_are_computed_at_a_time_changes_nothing(monkeypatch):
    h = Histogram.of(torch.randn(20, 5, 2, generator=torch.Generator().manual_seed(0)))
    thresholds = h.amax[:, None] * torch.linspace(0.1, 1, 9, dtype=torch.float64)
    whole = quantized_entropy(h, thresholds, 8)
    monkeypatch.setattr(entropy, "_CHUNK", 1)
    assert ((quantized_entropy(h, thresholds, 8) - whole).abs() <= rounding(40, 8)).all()


def test_candidates_are_in_equal_ratios_both_ends_exactly():
    parts = in_equal_ratios(0.02, 0.9, 7)
    assert (parts[0].item(), parts[-1].item()) == (0.9, 0.02)
    ratios = parts[1:] / parts[:-1]
    assert ratios.tolist() == pytest.approx([(0.02 / 0.9) ** (1 / 6)] * 6, rel=16 * EPS64)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("entropy[low=0]", "low must be in (0, 1] (got 0.0)"),
        ("entropy[high=2]", "high must be in (0, 1] (got 2.0)"),
        ("entropy[steps=1]", "steps must be a whole number, 2 or more (got 1.0)"),
        ("entropy[steps=2.5]", "steps must be a whole number, 2 or more (got 2.5)"),
    ],
)
def test_a_bad_parameter_says_what_it_must_be(text, says):
    with pytest.raises(BadParameter) as caught:
        ObserverSpec.parse(text)
    assert says in str(caught.value)
