"""KL calibration: the slides' own example, their loop in plain numpy, and with faults."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import special

from quambench.observers.histogram import Histogram
from quambench.observers.kl import LeastDivergence, divergences

EPS64 = torch.finfo(torch.float64).eps


def slides(counts, n_parts, fault=None):
    """Migacz, GTC 2017: for every i from n_parts, clip to i bins, quantize, expand, normalise, compare."""
    counts = np.asarray(counts, dtype=np.float64)
    found = []
    for i in range(n_parts, len(counts) + 1):
        p, unclipped = counts[:i].copy(), counts[:i].copy()
        if fault != "the mass above is dropped":
            p[i - 1] += counts[i:].sum()
        if fault == "Q knows the mass above":
            unclipped = p.copy()
        part = np.arange(i) * n_parts // i
        spread = (unclipped > 0) | (fault == "spread over empty bins too")
        mass, bins = (np.bincount(part, weights=w, minlength=n_parts) for w in (unclipped, spread))
        q = np.where(spread, mass[part] / np.maximum(bins[part], 1), 0)
        if p.sum() == 0 or q.sum() == 0:
            found.append(np.inf)
            continue
        found.append(special.rel_entr(p / p.sum(), q / q.sum()).sum())
    return np.asarray(found)


def agree(found, oracle, total):
    """Equal but for rounding: sums of total's share of the counts, each within a logarithm of it."""
    n = len(oracle)
    finite = np.isfinite(oracle)
    slack = 16 * EPS64 * max(np.log(total), 1) * (n + 16)
    return np.array_equal(finite, np.isfinite(found)) and np.abs(found[finite] - oracle[finite]).max() <= slack


def test_the_slides_example():
    counts = [1, 0, 2, 3, 5, 3, 1, 7]
    found = divergences(torch.tensor([counts]), 2)
    # All 8 bins in 2 parts: 6 over three bins that are not empty, 16 over four.
    p, q = np.array([1, 2, 3, 5, 3, 1, 7]) / 22, np.array([2, 2, 2, 4, 4, 4, 4]) / 22
    assert found[0, -1].item() == pytest.approx((p * np.log(p / q)).sum(), abs=64 * EPS64)
    assert found.shape == (1, 7)
    # Two bins in two parts: Q is 1 and 0, P has 21 where Q has nothing.
    assert found[0, 0].item() == np.inf


histograms = st.lists(st.integers(0, 50) | st.just(0), min_size=4, max_size=40).filter(any)


@given(histograms, st.sampled_from([2, 3, 4]))
def test_is_the_slides_loop(counts, n_parts):
    found = divergences(torch.tensor([counts]), n_parts)[0].numpy()
    assert agree(found, slides(counts, n_parts), sum(counts))


@given(st.lists(histograms, min_size=2, max_size=4))
def test_each_scale_by_itself(several):
    width = min(map(len, several))
    several = [counts[:width] if any(counts[:width]) else [1] * width for counts in several]
    together = divergences(torch.tensor(several), 2).numpy()
    for found, counts in zip(together, several, strict=True):
        assert agree(found, slides(counts, 2), sum(counts))


@pytest.mark.parametrize("fault", ["the mass above is dropped", "Q knows the mass above", "spread over empty bins too"])
def test_the_check_catches(fault):
    counts = np.random.default_rng(0).poisson(3 * np.exp(-np.arange(40) / 6)).tolist()
    found = divergences(torch.tensor([counts]), 4)[0].numpy()
    assert agree(found, slides(counts, 4), sum(counts))
    assert not agree(found, slides(counts, 4, fault), sum(counts))


@pytest.mark.parametrize("power", [1, 3])
@pytest.mark.parametrize("bits", [4, 8])
def test_the_threshold_is_the_slides(power, bits):
    x = torch.randn(1, 20_000, generator=torch.Generator().manual_seed(power)) ** power
    observer = LeastDivergence(bits=bits)
    for batch in x.split(7_000, dim=1):
        observer.update(batch)
    width = float(observer.histogram.unit) / 2**11
    counts = np.bincount((x.abs().double().numpy() / width).astype(int).ravel())
    assert 2048 <= len(counts) <= 4096
    n_parts = 2 ** (bits - 1)
    oracle = slides(counts, n_parts)
    i = n_parts + int(oracle.argmin())
    assert observer.threshold().item() == min((i + 0.5) * width, x.abs().max().item())


def test_nothing_to_choose_is_the_maximum():
    many = torch.randn(3, 16_384, 1, generator=torch.Generator().manual_seed(0))
    observer = LeastDivergence()
    observer.update(many)
    assert Histogram.of(many).linear().shape[-1] < 128
    assert torch.equal(observer.threshold(), observer.amax)
    silent = LeastDivergence()
    silent.update(torch.zeros(1, 5))
    assert silent.threshold() == 0


def test_scales_with_different_numbers_of_bins():
    x = torch.randn(3000, 3, 1, generator=torch.Generator().manual_seed(0))
    x[0] = torch.tensor([[4.01], [7.9], [5.5]])  # the largest: just above, just below a power of two
    together = LeastDivergence()
    together.update(x)
    for i in range(3):
        alone = LeastDivergence()
        alone.update(x[:, i])
        assert together.threshold()[i] == alone.threshold()


def test_the_many_zeros_of_a_sparse_site_do_not_hide_the_rest():
    # As published, the first bin keeps its zeros; clipping everything to it would put mass where Q has none.
    x = torch.cat([torch.zeros(100_000), torch.rand(1000, generator=torch.Generator().manual_seed(0)) + 1])
    observer = LeastDivergence()
    observer.update(x.view(1, -1))
    assert observer.threshold() > 1
