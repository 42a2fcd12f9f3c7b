"""Paired statistics against scipy, by hand, and by simulation."""

from __future__ import annotations

import math

import pytest
import torch
from scipy import stats as oracle

from quambench.gate.stats import POWER, log_ratio, paired, paired_mean
from quambench.metrics import Terms

EPS64 = torch.finfo(torch.float64).eps


def terms(values, documents=None, weights=None):
    values = torch.as_tensor(values, dtype=torch.float64)
    n = len(values)
    return Terms(
        values,
        torch.ones(n, dtype=torch.float64) if weights is None else torch.as_tensor(weights, dtype=torch.float64),
        torch.arange(n) if documents is None else torch.as_tensor(documents),
    )


def test_one_unit_per_document_is_the_paired_t_test():
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(20, generator=generator, dtype=torch.float64) for _ in range(2))
    found = paired(terms(a), terms(b), level=0.05)
    expected = oracle.ttest_rel(b.numpy(), a.numpy())
    assert found.p_value == pytest.approx(expected.pvalue, rel=1e4 * EPS64)
    assert paired_mean(b - a, 0.05).p_value == pytest.approx(expected.pvalue, rel=1e4 * EPS64)


def test_clusters_by_hand():
    # Two documents with summed residuals +2 and -2 around a mean of 1: se = sqrt(2 * 8) / 4 = 1.
    found = terms([1.0, 3.0, 0.0, 0.0], documents=[0, 0, 1, 1])
    assert found.mean() == 1.0
    assert found.standard_error() == 1.0


def test_weights_make_a_ratio():
    assert terms([2.0, 4.0], weights=[1.0, 2.0]).mean() == 2.0
    assert terms([2.0, 4.0], weights=[1.0, 2.0]).standard_error() == 0.0


def test_equal_results_differ_by_nothing():
    found = paired(terms([1.0, 2.0]), terms([1.0, 2.0]), 0.05)
    assert (found.difference, found.p_value, found.detectable) == (0.0, 1.0, 0.0)


def test_a_constant_shift_is_certain_and_one_document_tells_nothing():
    assert paired(terms([1.0, 2.0]), terms([1.5, 2.5]), 0.05).p_value == 0.0
    alone = paired(terms([1.0, 2.0], documents=[0, 0]), terms([1.5, 2.6], documents=[0, 0]), 0.05)
    assert alone.p_value == 1.0
    assert math.isinf(alone.detectable)


def test_log_ratio_takes_zeros():
    found = log_ratio(torch.tensor([0.0, 2.0], dtype=torch.float64), torch.tensor([0.0, 4.0], dtype=torch.float64))
    assert found.tolist() == pytest.approx([0.0, math.log(2)])


@pytest.mark.parametrize(("shift", "wanted"), [(0.0, 0.05), (None, POWER)])
def test_false_alarms_and_power_are_what_they_claim(shift, wanted):
    """4,000 simulated comparisons at the 5 % level, of nothing and of the effect called detectable."""
    n_docs, n_trials = 20, 4000
    generator = torch.Generator().manual_seed(1)
    noise = torch.randn(n_trials, n_docs, generator=generator, dtype=torch.float64)
    if shift is None:
        known = 1 / math.sqrt(n_docs)  # standard error of unit noise
        shift = (oracle.t.isf(0.025, n_docs - 1) + oracle.t.ppf(POWER, n_docs - 1)) * known
    alarms = sum(paired_mean(row + shift, 0.05).p_value < 0.05 for row in noise) / n_trials
    # Five binomial standard errors; `detectable` adds two t quantiles, an approximation to the
    # noncentral t that is below 0.02 in power at 19 degrees of freedom.
    slack = 5 * math.sqrt(wanted * (1 - wanted) / n_trials) + (0.02 if wanted == POWER else 0)
    assert abs(alarms - wanted) <= slack
