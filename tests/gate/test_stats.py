"""Paired statistics against scipy, by hand, and by simulation."""

from __future__ import annotations

import math
from dataclasses import astuple, replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats as oracle

from quambench.gate.stats import POWER, Paired, holm, log_ratio, mcnemar, paired, paired_mean, sign_flip_p
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
    assert paired(terms([1.0, 2.0]), terms([1.0, 2.0]), 0.05) == Paired(0.0, 0.0, 1.0, 0.0, 2)
    assert paired_mean(torch.zeros(3), 0.05) == Paired(0.0, 0.0, 1.0, 0.0, 3)


@pytest.mark.parametrize("shift", [0.5, 1.0])
def test_a_constant_shift_is_certain(shift):
    found = paired(terms(range(6)), terms([x + shift for x in range(6)]), 0.05)
    assert found == Paired(shift, 0.0, 0.0, 0.0, 6)


def test_one_window_tells_nothing():
    for alone in (paired(terms([1.0]), terms([1.5]), 0.05), paired_mean(torch.tensor([0.5]), 0.05)):
        assert (alone.difference, alone.p_value, alone.detectable, alone.n) == (0.5, 1.0, math.inf, 1)
        assert math.isnan(alone.standard_error)


def test_two_are_enough_for_a_t_test():
    pair = torch.tensor([1.0, 3.0], dtype=torch.float64)
    assert paired_mean(pair, 0.05).p_value == pytest.approx(oracle.ttest_1samp(pair.numpy(), 0).pvalue)


def test_changes_that_cancel_still_have_an_error():
    found = paired_mean(torch.tensor([1.0, -1.0], dtype=torch.float64), 0.05)
    assert (found.difference, found.p_value) == (0.0, 1.0)
    assert found.standard_error == pytest.approx(1.0)
    assert found.detectable > 0


def test_a_difference_that_is_no_number_is_not_significant():
    found = paired_mean(torch.tensor([1.0, math.nan, 2.0]), 0.05)
    assert (found.p_value, found.detectable, found.n) == (1.0, math.inf, 3)
    assert math.isnan(found.difference)
    assert math.isnan(found.standard_error)


def test_the_detectable_effect_by_a_table_of_students_t():
    # Three degrees of freedom: 3.18245 at two-sided 5 %, 0.97847 at 80 %. The table has five decimals.
    found = paired_mean(torch.tensor([0.3, -0.1, 0.4, 0.2], dtype=torch.float64), 0.05)
    assert found.detectable == pytest.approx((3.18245 + 0.97847) * found.standard_error, rel=1e-5)
    assert found.difference == pytest.approx(0.2)


def test_windows_stand_for_themselves_where_documents_are_too_few():
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(24, generator=generator, dtype=torch.float64) for _ in range(2))
    few = paired(terms(a, documents=[0] * 12 + [1] * 12), terms(b, documents=[0] * 12 + [1] * 12), 0.05)
    assert few == paired(terms(a), terms(b), 0.05)
    assert few.n == 24
    many = torch.arange(24) // 4  # six documents
    assert paired(terms(a, documents=many), terms(b, documents=many), 0.05).n == 6


def test_sign_flips_are_scipys_and_exact_by_hand():
    # Of 2^3 signs of (1, 2, 4), only +++ and --- are as extreme: two-sided p = 2/8.
    p, least = sign_flip_p(torch.tensor([1.0, 2.0, 4.0], dtype=torch.float64))
    assert (p, least) == (0.25, 0.25)
    d = torch.randn(30, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    assert sign_flip_p(d) == sign_flip_p(d)  # a stream of its own
    p, least = sign_flip_p(d)
    assert 0 < p <= 1
    assert (p * 2048).is_integer()  # twice a share of 4,096: 4,095 drawn, and what was observed
    assert least == 1 / 2048


def test_one_wild_document_is_not_significant_however_the_t_test_is_asked():
    """A t-test over documents of which one alone moved is unsure; the sign flips agree with that."""
    moved = torch.zeros(20, dtype=torch.float64)
    moved[0] = 100.0
    assert paired(terms(torch.zeros(20)), terms(moved), 0.05).p_value > 0.05


def test_the_permutation_test_has_the_last_word():
    """Equal tiny shifts in all documents, but of random sign: constructed so that t and flips agree on nothing."""
    shift = torch.tensor([1.0, 1.1, 0.9, 1.05, 0.95, 1.0, -0.98, 1.02], dtype=torch.float64)
    found = paired(terms(torch.zeros(8)), terms(shift), 0.03)
    flips, least = sign_flip_p(shift)
    t = 2 * oracle.t.sf(abs(shift.mean() / (shift.std() / 8**0.5)), 7)
    assert t < 0.03 < flips
    assert least < flips
    assert found.p_value == flips
    plain = paired_mean(shift, 0.03)
    assert astuple(replace(found, p_value=t)) == pytest.approx(astuple(plain), rel=1e4 * EPS64)
    # At a p that is the level nothing is significant, and signs are not asked.
    at_the_level = paired(terms(torch.zeros(8)), terms(shift), 1e-6).p_value
    assert paired(terms(torch.zeros(8)), terms(shift), at_the_level).p_value == at_the_level


def test_signs_too_few_to_clear_the_level_veto_windows_and_not_documents():
    """Of 2^8 signs at least 2 agree: p = 0.0078 is as low as eight can go."""
    shift = torch.tensor([1.0, 1.1, 0.9, 1.05, 0.95, 1.0, 0.98, 1.02], dtype=torch.float64)
    apart = paired(terms(torch.zeros(8)), terms(shift), 0.001)
    assert apart.p_value == pytest.approx(oracle.ttest_1samp(shift.numpy(), 0).pvalue, rel=1e-6)
    two = [0] * 4 + [1] * 4
    assert paired(terms(torch.zeros(8), two), terms(shift, two), 0.001).p_value == 2 / 2**8


def test_mcnemar_is_the_exact_binomial_test():
    old = torch.tensor([1] * 10 + [0] * 10 + [1] * 80)
    new = torch.tensor([0] * 10 + [1] * 3 + [0] * 7 + [1] * 80)
    found = mcnemar(old, new, 0.05)
    assert found.p_value == oracle.binomtest(3, 13).pvalue
    assert found.difference == pytest.approx(-0.07)
    # Variance of the difference of paired proportions: (b + c - (b - c)^2 / n) / n^2.
    assert found.standard_error == pytest.approx(math.sqrt(13 - 49 / 100) / 100)
    # 6 items one way: p = 2 / 64 < 0.05 and 5 items are 2 / 32 > 0.05.
    assert found.detectable == 6 / 100
    assert mcnemar(old, old, 0.05) == Paired(0.0, 0.0, 1.0, 6 / 100, 100)
    # 11 items: 2 / 2048 < 0.001 < 2 / 1024.
    assert mcnemar(old, new, 0.001).detectable == 11 / 100


def test_items_with_several_answers_are_compared_by_sign():
    assert mcnemar(torch.tensor([16, 10, 3]), torch.tensor([12, 10, 4]), 0.05).difference == 0.0


def test_holm_by_hand():
    p = {"a": 0.01, "b": 0.04, "c": 0.03, "d": 0.005}  # Holm's steps at 0.05: 0.0125, 0.0167, 0.025, 0.05
    assert holm(p, 0.05) == {"d", "a"}
    assert holm({}, 0.05) == set()
    assert holm({"a": 0.05}, 0.05) == set()


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_holm_is_between_bonferroni_and_no_correction(p_values):
    named = {str(i): p for i, p in enumerate(p_values)}
    found = holm(named, 0.05)
    assert {n for n, p in named.items() if p < 0.05 / len(named)} <= found <= {n for n, p in named.items() if p < 0.05}


N_NULLS = 2000  # the number: nominal 5 % measured as 4.0 to 6.0 %


def test_false_alarms_of_the_clustered_test_over_documents():
    """Windows share what their document does: a test that forgot it would raise far more than 5 %."""
    generator = torch.Generator().manual_seed(4)
    documents = torch.arange(20).repeat_interleave(3)
    alarms = naive = 0
    for _ in range(N_NULLS):
        d = torch.randn(20, generator=generator, dtype=torch.float64).repeat_interleave(3)
        d += 0.5 * torch.randn(60, generator=generator, dtype=torch.float64)
        alarms += paired(terms(torch.zeros(60), documents), terms(d, documents), 0.05).p_value < 0.05
        naive += paired_mean(d, 0.05).p_value < 0.05
    assert 0.04 <= alarms / N_NULLS <= 0.06
    assert naive / N_NULLS > 0.15


def test_false_alarms_of_mcnemar_stay_below_the_level():
    """Exact, so at most 5 %; discrete, so less."""
    generator = torch.Generator().manual_seed(5)
    a, b = ((torch.rand(N_NULLS, 160, generator=generator) < 0.3).int() for _ in range(2))
    alarms = sum(mcnemar(x, y, 0.05).p_value < 0.05 for x, y in zip(a, b, strict=True))
    assert 0.02 <= alarms / N_NULLS <= 0.06


def test_false_alarms_of_a_case_with_holm_over_its_metrics():
    """Six correlated metrics: at least one called in at most 5 % of nulls (6 % with simulation error)."""
    generator = torch.Generator().manual_seed(6)
    alarms = 0
    for _ in range(N_NULLS):
        common = torch.randn(20, generator=generator, dtype=torch.float64)
        rows = common + torch.randn(6, 20, generator=generator, dtype=torch.float64)
        p = {str(i): paired(terms(torch.zeros(20)), terms(row), 0.05 / 6).p_value for i, row in enumerate(rows)}
        alarms += bool(holm(p, 0.05))
    assert alarms / N_NULLS <= 0.06


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
