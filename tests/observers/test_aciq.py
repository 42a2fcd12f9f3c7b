"""ACIQ: the paper's table, the expected error by numerical integration, the moments; with planted faults."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import integrate, optimize, stats

from quambench.core.errors import BadParameter
from quambench.grids.grid import q_max
from quambench.observers import ObserverSpec, aciq
from quambench.observers.aciq import GAUSS_BELOW, Aciq, TwoAndAHalfSigma, optimal_clip

EPS64 = torch.finfo(torch.float64).eps
TABLE = {  # Banner et al.: optimal clipping values in σ and in b for 2 to 8 bits; the last digit is not exact
    "gauss": (1.71, 2.15, 2.55, 2.93, 3.28, 3.61, 3.92),
    "laplace": (2.83, 3.89, 5.03, 6.20, 7.41, 8.64, 9.89),
}
PRIORS = {"gauss": stats.norm(), "laplace": stats.laplace()}


def assert_is_the_papers_table(clip_of):
    for prior, row in TABLE.items():
        for bits, printed in zip(range(2, 9), row, strict=True):
            assert abs(clip_of(prior, 2 / 2**bits) - printed) < 0.01, (prior, bits)


def test_the_papers_table():
    assert_is_the_papers_table(optimal_clip)


def test_our_steps_clips_are_not_the_papers():
    with pytest.raises(AssertionError):
        assert_is_the_papers_table(lambda prior, step: optimal_clip(prior, 1 / (1 / step - 1)))  # 1 / q_max


def test_the_guides_constant_is_not_the_8_bit_value():
    assert optimal_clip("gauss", 2 / 2**4) == pytest.approx(2.5, abs=0.06)
    assert optimal_clip("gauss", 1 / 127) > 3.9


@pytest.mark.parametrize("prior", PRIORS)
@pytest.mark.parametrize("bits", range(2, 9))
def test_no_clip_has_less_expected_error(prior, bits):
    """The error itself, integrated numerically, has its least where the derivative's root is."""
    step, density = 1 / q_max(bits), PRIORS[prior].pdf

    def expected(clip):
        tail, _ = integrate.quad(lambda x: (x - clip) ** 2 * density(x), clip, np.inf, epsabs=0, epsrel=1e-10)
        return (step * clip) ** 2 / 12 + 2 * tail

    found = optimal_clip(prior, step)
    least = optimize.minimize_scalar(expected, bounds=(0.1, 20), method="bounded", options={"xatol": 1e-9})
    # Near its least the error is flat: known to 1e-10 of itself, its place is known to the root of that.
    assert expected(found) <= least.fun * (1 + 1e-10)
    assert found == pytest.approx(least.x, rel=np.sqrt(1e-10) * 10)


@given(st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=50), st.integers(1, 49))
def test_moments_are_those_of_the_values(values, cut):
    observer = Aciq()
    x = torch.tensor(values).view(1, -1)
    observer.update(x[:, :cut])
    observer.update(x[:, cut:])
    mean, rms = (v.item() for v in observer.mean_and_rms)
    exact = np.abs(x.double().numpy())
    assert mean == pytest.approx(exact.mean(), rel=len(values) * EPS64)
    assert rms == pytest.approx(np.sqrt((exact**2).mean()), rel=len(values) * EPS64)


@pytest.mark.parametrize("chunk", [1, 5, 10**6])
@pytest.mark.parametrize("shape", [(30, 4, 2), (2, 4, 30), (1, 60), (7, 2, 3, 5)])
def test_each_scale_has_its_own_moments(monkeypatch, shape, chunk):
    monkeypatch.setattr(aciq, "_CHUNK", chunk)
    observer = Aciq()
    x = torch.randn(*shape, generator=torch.Generator().manual_seed(0))
    observer.update(x)
    exact = x.double().abs()
    for found, power in zip(observer.sums, (1, 2), strict=True):
        oracle = (exact**power).sum((0, -1))
        assert found.shape == oracle.shape
        assert found.flatten().tolist() == pytest.approx(oracle.flatten().tolist(), rel=x.numel() * EPS64)


def test_by_hand():
    # Mean 7/4, mean square 21/4; rms / mean 1.309 < 1.3155: normal. Its clip at 2 bits is above rms, amax is 4.
    values = [1.0, -4.0, 2.0, 0.0]
    found = {}
    for prior in ("auto", "gauss", "laplace"):
        observer = Aciq(bits=2, prior=prior)
        observer.update(torch.tensor([values]))
        found[prior] = observer.threshold().item()
    rms, mean = (21 / 4) ** 0.5, 7 / 4
    assert found["gauss"] == pytest.approx(rms * optimal_clip("gauss", 1.0), rel=4 * EPS64)
    assert found["laplace"] == pytest.approx(mean * optimal_clip("laplace", 1.0), rel=4 * EPS64)
    assert found["auto"] == found["gauss"]
    guide = TwoAndAHalfSigma()
    guide.update(torch.tensor([values]))
    assert guide.threshold().item() == pytest.approx(2.5 * rms, rel=4 * EPS64)
    assert guide.threshold() > guide.amax  # not capped


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_never_above_what_was_seen(bits):
    observer = Aciq(bits=bits)
    observer.update(torch.rand(1, 1000, generator=torch.Generator().manual_seed(0)))
    assert observer.threshold() <= observer.amax
    assert (observer.threshold() == observer.amax) == (bits > 2)  # rms 0.577: 2.5 of them are above 1


def assert_the_likelier_prior_is_taken(make):
    generator = np.random.default_rng(0)
    draws = {
        "gauss": generator.standard_normal(4000),
        "laplace": generator.laplace(size=4000),
        "flat": generator.random(4000),
        "heavy": generator.standard_t(2, size=4000),
    }
    for x in draws.values():
        x = torch.from_numpy(x).float()
        exact = x.double().numpy()
        likelihood = {
            "gauss": stats.norm(scale=np.sqrt((exact**2).mean())).logpdf(exact).sum(),
            "laplace": stats.laplace(scale=np.abs(exact).mean()).logpdf(exact).sum(),
        }
        found = {}
        for prior in ("auto", *likelihood):
            observer = make(bits=4, prior=prior)
            observer.update(x.view(1, -1))
            found[prior] = observer.threshold()
        assert found["auto"] == found[max(likelihood, key=likelihood.get)]


def test_auto_takes_the_likelier_prior():
    assert_the_likelier_prior_is_taken(Aciq)


@pytest.mark.parametrize("ratio", [1.2, 1.42])
def test_a_wrong_line_between_the_priors_is_caught(monkeypatch, ratio):
    monkeypatch.setattr(aciq, "GAUSS_BELOW", ratio)
    with pytest.raises(AssertionError):
        assert_the_likelier_prior_is_taken(Aciq)


def test_the_line_lies_between_the_two_priors_own_ratios():
    assert np.sqrt(np.pi / 2) < GAUSS_BELOW < np.sqrt(2)  # σ / b of each


def test_squares_beyond_float32_are_summed_all_the_same():
    observer = TwoAndAHalfSigma()
    observer.update(torch.full((1, 3), 1e30))
    assert observer.threshold().item() == pytest.approx(2.5e30, rel=1e-6)  # 1e30 as a float32


def test_silence():
    observer = Aciq()
    observer.update(torch.zeros(1, 3))
    assert observer.threshold() == 0


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("aciq[prior=cauchy]", "prior must be one of gauss, laplace, auto (got 'cauchy')"),
        ("aciq[alpha=1]", "no parameter 'alpha'; it takes prior"),
        ("gauss_2.5sigma[sigma=3]", "no parameter 'sigma'"),
    ],
)
def test_a_bad_parameter_says_what_it_must_be(text, says):
    with pytest.raises(BadParameter) as caught:
        ObserverSpec.parse(text)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)
