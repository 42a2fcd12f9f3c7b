"""The percentile observer: by hand, against numpy, and with faults that the same checks must catch."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from quambench.core.errors import BadParameter, UnknownName
from quambench.observers import ObserverSpec
from quambench.observers.batch import Batch
from quambench.observers.percentile import Percentile, upper_quantile

EPS32, EPS64 = (torch.finfo(dtype).eps for dtype in (torch.float32, torch.float64))


def quantile(values, alpha):
    return upper_quantile(Batch(values.view(1, -1)), alpha).item()


def feed(observer, batches):
    for batch in batches:
        observer.update(torch.as_tensor(batch, dtype=torch.float32).view(1, -1))
    return observer.amax.item()


def expected(batches, alpha, sigma):
    """The definition, in numpy and float64."""
    w = None
    for batch in batches:
        m = np.quantile(np.abs(np.asarray(batch, dtype=np.float32)).astype(np.float64), alpha, method="linear")
        w = m if w is None else w + sigma * (m - w)
    return w


def assert_is_the_definition(make, alpha=0.9, sigma=0.25):
    generator = np.random.default_rng(0)
    batches = [generator.standard_normal(200) * (1 + t) for t in range(5)]
    batches[0][0] = -40.0  # the largest magnitude is negative, and in the first batch
    found = feed(make(alpha=alpha, sigma=sigma), batches)
    # The quantile interpolates in float64, the average adds one rounding a batch.
    assert found == pytest.approx(expected(batches, alpha, sigma), rel=10 * EPS64)


def test_by_hand():
    # |x| sorted: 1 2 3 4 5. Rank 0.6 * 4 = 2.4: 3 + 0.4 * (4 - 3) = 3.4.
    assert quantile(torch.tensor([5.0, 1.0, 3.0, 2.0, 4.0]), 0.6) == pytest.approx(3.4, rel=EPS64 * 4)
    # Maxima 8, 4, 4 at σ 0.5: 8, then 8 + 0.5 (4 - 8) = 6, then 5.
    assert feed(Percentile(alpha=1.0, sigma=0.5), [[8.0], [-4.0], [4.0]]) == 5.0


def test_is_the_definition():
    assert_is_the_definition(Percentile)


@given(
    st.lists(st.floats(0, 1e6, width=32), min_size=1, max_size=60),
    st.floats(0.001, 1.0),
)
def test_quantile_is_numpys(values, alpha):
    x = np.asarray(values, dtype=np.float32)
    found = quantile(torch.from_numpy(x), alpha)
    oracle = np.quantile(x.astype(np.float64), alpha, method="linear")
    # numpy orders the same interpolation differently: a few roundings of the larger neighbour.
    assert abs(found - oracle) <= 4 * EPS64 * x.max()


@pytest.mark.parametrize("alpha", [0.9995, 0.99999])
def test_torch_agrees_up_to_its_float32_rank(alpha):
    x = torch.rand(524_288, generator=torch.Generator().manual_seed(0))
    # torch rounds α to float32 (EPS32 / 2 relative) and its product with n - 1 once more: its rank is off
    # by n EPS32 at most, and so its quantile by as much of the widest gap between neighbours up there,
    # plus one rounding of the interpolation, whose operands are below 1.
    gap = x.sort().values[-1000:].diff().max().item()
    off = abs(quantile(x, alpha) - x.quantile(alpha).item())
    assert off <= x.numel() * EPS32 * gap + EPS32


@given(st.integers(1, 10_000), st.floats(0.001, 1.0))
def test_the_tail_that_is_asked_for_is_the_one_that_is_announced(n, alpha):
    asked = []
    batch = Batch(torch.zeros(1, n))
    batch.tail = lambda length: asked.append(length) or torch.zeros(length)
    Percentile(alpha=alpha).take(batch)
    assert asked == [Percentile(alpha=alpha).tail_length(n)]


def test_one_batch_at_alpha_one_is_the_maximum():
    assert feed(Percentile(alpha=1.0), [[1.0, -7.0, 3.0]]) == 7.0


def test_the_first_batch_weighs_what_the_formula_says():
    # One 1 and then zeros: what is left is the first batch's weight, (1 - σ)^(T - 1).
    found = feed(Percentile(alpha=1.0, sigma=0.1), [[1.0]] + [[0.0]] * 9)
    assert found == pytest.approx(0.9**9, rel=20 * EPS64)


def test_it_falls_as_well_as_rises():
    rising, falling = Percentile(sigma=0.5), Percentile(sigma=0.5)
    assert feed(rising, [[1.0], [3.0]]) > 1.0
    assert feed(falling, [[3.0], [1.0]]) < 3.0


class NearestRank(Percentile):
    def take(self, batch):
        n = batch.values_per_scale
        newest = batch.magnitude.flatten().sort().values[round(self.alpha * (n - 1))].double()
        self.amax = newest if self.amax is None else self.amax + self.sigma * (newest - self.amax)


class AlphaComplemented(Percentile):
    def take(self, batch):
        newest = upper_quantile(batch, 1 - self.alpha)
        self.amax = newest if self.amax is None else self.amax + self.sigma * (newest - self.amax)


class SigmaSwapped(Percentile):
    def newest_weight(self):
        return 1 - self.sigma


class FirstSkipped(Percentile):
    def update(self, x):
        self.n_batches += 1
        if self.n_batches > 1:
            super().update(x)


class NoAbsoluteValue(Percentile):
    def take(self, batch):
        vars(batch)["magnitude"] = batch.x
        super().take(batch)


class MaximumInstead(Percentile):
    def take(self, batch):
        newest = upper_quantile(batch, self.alpha)
        self.amax = newest if self.amax is None else torch.maximum(self.amax, newest)


def test_every_channel_has_its_own_quantile():
    x = torch.randn(50, 3, 2, generator=torch.Generator().manual_seed(0))
    observer = Percentile(alpha=0.8)
    observer.update(x)
    oracle = np.quantile(x.abs().double().numpy(), 0.8, axis=(0, 2), method="linear")
    assert observer.amax.tolist() == pytest.approx(oracle.tolist(), rel=4 * EPS64)


@pytest.mark.parametrize(
    "fault", [NearestRank, AlphaComplemented, SigmaSwapped, FirstSkipped, NoAbsoluteValue, MaximumInstead]
)
def test_the_check_catches(fault):
    with pytest.raises(AssertionError):
        assert_is_the_definition(fault)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("percentile[alpha=0]", "alpha must be in (0, 1]"),
        ("percentile[alpha=1.1]", "alpha must be in (0, 1]"),
        ("percentile[alpha=nan]", "alpha must be in (0, 1]"),
        ("percentile[alpha=-0.5]", "alpha must be in (0, 1] (got -0.5)"),
        ("percentile[alpha=inf]", "alpha must be in (0, 1]"),
        ("percentile[sigma=0]", "sigma must be in (0, 1]"),
        ("percentile[sigma=1.5]", "sigma must be in (0, 1]"),
        ("percentile[sigma]", "write percentile[sigma=0.01]"),
        ("percentile[bits=4]", "no parameter 'bits'"),
        ("", "written name or name[key=value,...]"),
        ("percentile[alpha=0.5]x", "written name or name[key=value,...]"),
        ("percentile[sigma=x]", "sigma must be a number"),
        ("percentile[beta=1]", "no parameter 'beta'; it takes alpha, sigma"),
        ("running_max[alpha=1]", "no parameter 'alpha'; it takes clip_ratio"),
        ("percentile[alpha=0.5", "written name or name[key=value,...]"),
    ],
)
def test_a_bad_parameter_says_what_it_must_be(text, says):
    with pytest.raises(BadParameter) as caught:
        ObserverSpec.parse(text)
    assert says in str(caught.value)


def test_an_unknown_observer_names_the_nearest():
    with pytest.raises(UnknownName, match="Did you mean 'percentile'"):
        ObserverSpec.parse("percentil")


@given(st.floats(1e-9, 1.0), st.floats(1e-9, 1.0))
def test_a_spec_reads_back_what_it_prints(alpha, sigma):
    spec = ObserverSpec("percentile", (("alpha", alpha), ("sigma", sigma)))
    assert ObserverSpec.parse(str(spec)) == spec


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("percentile", "percentile[]"),
        ("percentile", "percentile[alpha=0.9995,sigma=0.01]"),
        ("percentile[sigma=0.1,alpha=1]", " percentile [ alpha = 1.0 , sigma = 1e-1 ] "),
    ],
)
def test_equivalent_spellings_are_complete_alike(one, other):
    assert ObserverSpec.parse(one).complete == ObserverSpec.parse(other).complete


def test_different_observers_are_not_complete_alike():
    texts = ["percentile", "percentile[alpha=1.0]", "percentile[sigma=0.1]", "running_max"]
    assert len({ObserverSpec.parse(text).complete for text in texts}) == len(texts)


def test_two_spellings_of_one_observer_are_complete_alike():
    a, b = ObserverSpec.parse("percentile[alpha=0.9995]"), ObserverSpec.parse("percentile[sigma=0.01]")
    assert a != b
    assert a.complete == b.complete
    assert math.isclose(dict(a.complete.parameters)["alpha"], 0.9995)
