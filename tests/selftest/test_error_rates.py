"""The simulated error rates: nominal levels hold, and a broken correction is seen."""

from __future__ import annotations

from unittest.mock import patch

import pytest

from quambench.gate import verdicts
from quambench.selftest import error_rates as simulated


@pytest.fixture(scope="module")
def clean():
    """120 rows in runs of twelve, at a level of one in ten."""
    with patch.object(simulated, "LEVELS", (0.1,)), patch.object(simulated, "CASES", (12,)):
        (rate,) = simulated.error_rates(120)
    return rate


def test_clean_runs_raise_no_more_alarms_than_their_level(clean):
    assert (clean.runs, clean.cases) == (10, 12)
    assert clean.holds
    assert clean.second_looks > 0


def test_a_level_that_is_not_split_over_the_cases_is_noticed():
    original = verdicts.judge
    unsplit = lambda new, old, n_cases, *more, **named: original(new, old, 0.05, *more, **named)  # noqa: E731
    with (
        patch.object(simulated, "LEVELS", (0.1,)),
        patch.object(simulated, "CASES", (12,)),
        patch.object(simulated, "judge", unsplit),
    ):
        (rate,) = simulated.error_rates(120)
    assert not rate.holds


def test_a_second_look_sees_what_one_look_cannot():
    """A fifth of the items lost, of 80 and then of 570: a row of forty cases cannot be sure of the first alone."""
    with patch.object(simulated, "LOSSES", (0.15,)):
        (power,) = simulated.powers(20)
    assert power.two_looks > power.one_look
