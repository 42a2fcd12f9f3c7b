"""Ratios of calls whose clock is ours: what a median and its interval say does not hang on the machine."""

import math

import pytest
import torch

from quambench.bench import interleave
from quambench.bench.interleave import FEWEST_ROUNDS, ROUNDS, interleaved


class Clock:
    """A clock that only calls move on."""

    def __init__(self, monkeypatch):
        self.now = 0.0
        monkeypatch.setattr(interleave.time, "perf_counter", lambda: self.now)

    def call(self, *seconds):
        """A call that takes these, one after the other and around again."""

        def run():
            self.now += seconds[run.calls % len(seconds)]
            run.calls += 1

        run.calls = 0
        return run


@pytest.fixture
def clock(monkeypatch):
    return Clock(monkeypatch)


def test_by_hand(clock):
    found = interleaved(clock.call(0.03), clock.call(0.02), rounds=9)
    assert found.value == pytest.approx(1.5)
    assert (found.low, found.high) == pytest.approx((1.5, 1.5))
    assert (found.seconds, found.counterpart_seconds, found.rounds) == pytest.approx((0.03, 0.02, 9))


def test_short_calls_are_repeated_until_the_clock_can_tell(clock):
    short = clock.call(2.1e-5)
    interleaved(short, clock.call(1e-2), rounds=6)
    assert short.calls == 1 + 3 + 6 * 24  # to warm up, to know how long, and 0.5 ms a sample


def test_slow_calls_have_fewer_rounds_but_enough(clock):
    assert interleaved(clock.call(1e-3), clock.call(1e-3)).rounds == ROUNDS
    assert interleaved(clock.call(0.1), clock.call(0.1)).rounds == 20  # 4 s
    assert interleaved(clock.call(3.0), clock.call(1.0)).rounds == FEWEST_ROUNDS


def test_a_slow_spell_that_both_meet_changes_nothing(clock):
    def spell(base):
        def run():
            clock.now += base * (5 if 1.0 < clock.now < 2.0 else 1)

        return run

    found = interleaved(spell(0.03), spell(0.02), rounds=41)
    assert found.value == pytest.approx(1.5)
    assert found.high == pytest.approx(1.5)


def test_rounds_that_only_one_side_lost_do_not_move_the_median(clock):
    """One call in five takes ten times as long."""
    found = interleaved(clock.call(0.01, 0.01, 0.01, 0.01, 0.1), clock.call(0.01), rounds=41)
    assert found.value == pytest.approx(1.0)


def test_the_interval_covers_the_median_in_19_of_20_runs(clock):
    """Ratios of log-normal times, whose true median is 2; 400 runs: a binomial count has a sigma of 4.4."""
    generator = torch.Generator().manual_seed(0)

    def noisy(median):
        def run():
            clock.now += median * math.exp(0.2 * torch.randn((), generator=generator))

        return run

    runs = [interleaved(noisy(0.02), noisy(0.01), rounds=15) for _ in range(400)]
    covered = sum(r.low <= 2 <= r.high for r in runs)
    assert covered >= 380 - 4 * 4.4
    assert covered < 400  # an interval that always covers says nothing


def test_too_few_rounds_are_refused(clock):
    with pytest.raises(ValueError, match=r"needs at least 6 rounds \(got 5\)"):
        interleaved(clock.call(0.1), clock.call(0.1), rounds=5)
