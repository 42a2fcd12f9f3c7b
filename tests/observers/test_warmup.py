"""The percentile with a warm-up: its recurrence, its schedule's borders, and faults."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from quambench.core.errors import BadParameter
from quambench.observers import ObserverSpec
from quambench.observers.percentile import Percentile, WarmupPercentile

EPS64 = torch.finfo(torch.float64).eps


def feed(observer, batches):
    for batch in batches:
        observer.update(torch.from_numpy(batch).view(1, -1))
    return observer.threshold().item()


def expected(batches, alpha):
    """The guide's schedule, in numpy and float64."""
    w = np.quantile(np.abs(batches[0]).astype(np.float64), alpha, method="linear")
    for t, batch in enumerate(batches[1:], start=2):
        sigma = 0.5 if t <= 50 else 0.2 if t <= 200 else 0.1
        w = w + sigma * (np.quantile(np.abs(batch).astype(np.float64), alpha, method="linear") - w)
    return w


def random_batches(seed, n=230):
    generator = np.random.default_rng(seed)
    return [(generator.standard_normal(21) * generator.uniform(0.1, 3)).astype(np.float32) for _ in range(n)]


def assert_is_the_recurrence(make, seed, n_batches):
    # At α 0.95 and 21 values the rank is whole: no interpolation, whose roundings numpy orders otherwise.
    batches = random_batches(seed, n_batches)
    found, oracle = feed(make(alpha=0.95), batches), expected(batches, 0.95)
    assert abs(found - oracle) <= np.spacing(oracle)  # one unit in the last place


@given(st.integers(0, 2**32), st.sampled_from([1, 2, 50, 51, 52, 200, 201, 230]))
@settings(max_examples=25, deadline=None)
def test_is_the_recurrence(seed, n_batches):
    assert_is_the_recurrence(WarmupPercentile, seed, n_batches)


def test_by_hand():
    # Maxima 8, 4, 4: 8, then 8 + 0.5 (4 - 8) = 6, then 5.
    assert feed(WarmupPercentile(alpha=1.0), [np.float32([x]) for x in (8, -4, 4)]) == 5.0


def newest_weights(observer, n):
    """σ of batches 2 to n: zeros, then a one whose share of the average is read off."""
    weights = {}
    for t in range(1, n + 1):
        before = None if observer.amax is None else observer.amax.item()
        observer.update(torch.full((1, 1), float(t == 1 or before < 1e-9)))
        if before is not None:
            batch = float(before < 1e-9)
            weights[t] = (observer.amax.item() - before) / (batch - before)
    return weights


def test_the_borders_of_the_guides_schedule():
    weights = newest_weights(WarmupPercentile(alpha=1.0), 260)
    for t, sigma in {2: 0.5, 49: 0.5, 50: 0.5, 51: 0.2, 199: 0.2, 200: 0.2, 201: 0.1, 260: 0.1}.items():
        # Differences of numbers of at most 1, over one of 1e-9 at least.
        assert weights[t] == pytest.approx(sigma, abs=4 * EPS64 / 1e-9), t


def test_another_schedule():
    spec = ObserverSpec.parse("warmup_percentile[alpha=1,schedule=2:1|3:0.5|inf:0.25]")
    # 8; replaced by 4; half-way to 0 is 2; then a quarter of the way to 0.
    assert feed(spec.build(), [np.float32([x]) for x in (8, 4, 0, 0)]) == 1.5
    assert ObserverSpec.parse(str(spec)) == spec


def test_one_step_is_the_plain_percentile():
    batches = random_batches(0, 20)
    plain = feed(Percentile(alpha=0.9, sigma=0.3), batches)
    assert feed(WarmupPercentile(alpha=0.9, schedule=((math.inf, 0.3),)), batches) == plain


def test_the_schedule_goes_on_after_a_saved_state():
    batches = random_batches(1, 60)
    whole = feed(WarmupPercentile(), batches)
    first, second = WarmupPercentile(), WarmupPercentile()
    feed(first, batches[:45])
    second.load_state_dict(first.state_dict())
    assert feed(second, batches[45:]) == whole


@dataclass
class _OneTooLate(WarmupPercentile):
    def newest_weight(self):
        return next(sigma for end, sigma in self.schedule if self.n_batches <= end)


@dataclass
class _OneTooEarly(WarmupPercentile):
    def newest_weight(self):
        return next(sigma for end, sigma in self.schedule if self.n_batches + 2 <= end)


@dataclass
class _NeverColder(WarmupPercentile):
    def newest_weight(self):
        return self.schedule[0][1]


@pytest.mark.parametrize("fault", [_OneTooLate, _OneTooEarly, _NeverColder])
def test_the_check_catches(fault):
    with pytest.raises(AssertionError):
        assert_is_the_recurrence(fault, 0, 51)
        assert_is_the_recurrence(fault, 0, 50)


@pytest.mark.parametrize(
    ("schedule", "says"),
    [
        ("50:0.5", "schedule must rise from 1 or more to inf (got 50.0)"),
        ("50:0.5|20:0.2|inf:0.1", "schedule must rise from 1 or more to inf (got 50.0 20.0 inf)"),
        ("50:0.5|50:0.2|inf:0.1", "schedule must rise"),
        ("0:0.5|inf:0.1", "schedule must rise"),
        ("50:0|inf:0.1", "sigma must be in (0, 1] (got 0.0)"),
        ("50:1.5|inf:0.1", "sigma must be in (0, 1] (got 1.5)"),
        ("50:0.5|inf", "schedule must be pairs of batch:sigma, as in 50:0.5|inf:0.1"),
        ("1:2:3|inf:0.1", "schedule must be pairs of batch:sigma"),
        ("nan:0.5|inf:0.1", "schedule must rise"),
        ("1:0.5|nan:0.5|inf:0.1", "schedule must rise"),
        ("fast", "schedule must be numbers"),
    ],
)
def test_a_bad_schedule_says_what_it_must_be(schedule, says):
    with pytest.raises(BadParameter) as caught:
        ObserverSpec.parse(f"warmup_percentile[schedule={schedule}]")
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)
