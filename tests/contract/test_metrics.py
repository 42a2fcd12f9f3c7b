"""The contract that every metric meets, on evidence of models that have everything and of models that lack much.

What a metric comes to, and its unit and direction, is worked by hand in tests/metrics.
"""

from __future__ import annotations

import math
import re
from dataclasses import replace

import pytest
import torch

from quambench.gate.probes.metrics import variants
from quambench.metrics import METRICS, Column, Judged, Measurement, Metric, Terms
from quambench.metrics.base import NO_TERMS, UNMEASURED

LOGARITHMIC = ("perplexity", "ppl_ratio", "decode_ppl_ratio")  # exp of the mean of their terms
EVIDENCE = variants()


def answered(metric, evidence):
    """What `measure` and `terms` return, and the array that one of them missed."""
    try:
        return metric.measure(evidence), metric.terms(evidence) if metric.terms else None, ""
    except KeyError as error:
        return None, None, str(error)


def copied(evidence):
    return {name: array.clone() for name, array in evidence.items()}


def check_it_says_what_it_is(metric):
    name = metric.name
    assert re.fullmatch(r"[a-z][a-z0-9_]*", name), f"{name}: write the name in small letters, digits and underscores"
    assert metric.unit.strip(), f"{name}: name the unit; of a quotient of equals it is ratio"
    whole = isinstance(metric.version, int) and metric.version >= 1
    assert whole, f"{name}: count versions from 1 in whole numbers (got {metric.version!r})"


def check_it_is_shown_as_it_may_be(metric):
    """A heading has two lines at most, and is nobody else's."""
    if (column := metric.column) is None:
        return
    lines = column.heading.split("\n")
    assert len(lines) <= 2 and all(lines), f"{metric.name}: write the heading in one line or two (got {lines})"
    others = [m.name for m in METRICS.values() if m.column and m.column.heading == column.heading]
    assert others in ([], [metric.name]), f"{metric.name}: choose a heading that {others[0]} does not have"
    assert 0 < column.factor < math.inf, f"{metric.name}: multiply the column by a number above 0 (got {column.factor})"


def check_it_is_judged_as_it_says(metric):
    name = metric.name
    assert metric.judged is not Judged.NOT or not metric.continuous, (
        f"{name}: say how it is judged, or leave continuous out: it counts in what decides verdicts alone"
    )
    assert metric.continuous or not metric.in_nats, f"{name}: set continuous too, or leave in_nats out"


def check_an_absent_array_is_unmeasured(metric, evidence):
    _, _, missed = answered(metric, evidence)
    assert not missed, f"{metric.name}: return UNMEASURED, and NO_TERMS, where the evidence has no {missed}"


def check_it_returns_numbers(metric, evidence):
    name, found = metric.name, metric.measure(evidence)
    numbers = isinstance(found, Measurement) and all(type(x) is float for x in (found.value, found.standard_error))
    assert numbers, f"{name}: return a Measurement of two floats, by .item() or float(...)"
    assert not found.standard_error < 0, f"{name}: return a standard error of 0 or more, or NaN where there is none"
    known = not math.isnan(found.value) or math.isnan(found.standard_error)
    assert known, f"{name}: return UNMEASURED where there is no value; an error without a value means nothing"


def check_its_terms_make_the_number(metric, evidence):
    name, found, terms = metric.name, *answered(metric, evidence)[:2]
    if terms is None:
        return
    parts = (terms.values, terms.weights, terms.documents)
    alike = len({part.shape for part in parts}) == 1 and terms.values.ndim == 1
    assert alike, (
        f"{name}: give each window or item one value, one weight and one document (got {list(map(len, parts))})"
    )
    double = terms.values.dtype == terms.weights.dtype == torch.float64
    assert double, f"{name}: compute terms in float64, by .double() (got {terms.values.dtype}, {terms.weights.dtype})"
    assert bool(len(terms.values)) != math.isnan(found.value), (
        f"{name}: return NO_TERMS where the value is NaN, and there alone"
    )
    if math.isfinite(found.value):
        wanted = math.log(found.value) if name in LOGARITHMIC else found.value
        # A sum of at most a few dozen float64 numbers, and a logarithm.
        assert math.isclose(terms.mean(), wanted, rel_tol=1e-12), (
            f"{name}: return terms whose mean is the value, {wanted:.6g} (got {terms.mean():.6g})"
        )


def check_items_are_right_or_wrong(metric, evidence):
    """A sign test counts items that gained or lost an answer."""
    if metric.judged is Judged.BY_ITEM:
        values, weights = metric.terms(evidence).values, metric.terms(evidence).weights
        counts = bool((values == values.round()).all() and (values >= 0).all() and (values <= weights).all())
        assert counts, f"{metric.name}: judge it BY_DOCUMENT, since items are no counts of right answers"


def check_evidence_is_left_alone(metric, evidence):
    given = copied(evidence)
    answered(metric, given)
    changed = [
        n for n in evidence if n not in given or not torch.equal(given[n].nan_to_num(7), evidence[n].nan_to_num(7))
    ]
    assert not changed, f"{metric.name}: copy {changed[0]} before changing it; another metric reads it too"


def check_twice_is_the_same(metric, evidence):
    same = repr(metric.measure(evidence)) == repr(metric.measure(evidence))  # NaN is written alike
    assert same, f"{metric.name}: give an equal number for equal evidence; keep nothing, and seed whatever draws"


OF_ITSELF = [check_it_says_what_it_is, check_it_is_shown_as_it_may_be, check_it_is_judged_as_it_says]
ON_EVIDENCE = [
    check_an_absent_array_is_unmeasured,
    check_it_returns_numbers,
    check_its_terms_make_the_number,
    check_items_are_right_or_wrong,
    check_evidence_is_left_alone,
    check_twice_is_the_same,
]


@pytest.mark.parametrize("rule", OF_ITSELF, ids=lambda rule: rule.__name__)
@pytest.mark.parametrize("name", METRICS)
def test_contract(name, rule):
    rule(METRICS[name])


@pytest.mark.parametrize("rule", ON_EVIDENCE, ids=lambda rule: rule.__name__)
@pytest.mark.parametrize("name", METRICS)
def test_contract_on_evidence(name, rule):
    for evidence in EVIDENCE.values():
        rule(METRICS[name], evidence)


# Faults, one for each rule

KL = METRICS["kl"]


def spoilt(metric=KL, **changes):
    return replace(metric, name="mine", column=None, **changes)


def terms_of(change):
    """KL's terms, changed."""
    return lambda evidence: change(KL.terms(evidence))


def halved(evidence):
    evidence["prefill.kl"] /= 2
    return KL.measure(evidence)


def in_float32(terms):
    return Terms(terms.values.float(), terms.weights, terms.documents)


@pytest.mark.parametrize(
    ("fault", "caught_by", "says"),
    [
        (replace(KL, name="My KL"), check_it_says_what_it_is, "write the name in small letters"),
        (spoilt(unit=" "), check_it_says_what_it_is, "name the unit"),
        (spoilt(version=0), check_it_says_what_it_is, "count versions from 1"),
        (replace(KL, column=Column("a\nb\nc")), check_it_is_shown_as_it_may_be, "in one line or two"),
        (replace(KL, name="mine"), check_it_is_shown_as_it_may_be, "choose a heading that kl does not have"),
        (replace(KL, column=Column("mine", 0)), check_it_is_shown_as_it_may_be, "by a number above 0"),
        (spoilt(judged=Judged.NOT), check_it_is_judged_as_it_says, "or leave continuous out"),
        (
            spoilt(continuous=False),
            check_it_is_judged_as_it_says,
            "set continuous too, or leave in_nats out",
        ),
        (spoilt(measure=lambda e: e["mine.x"]), check_an_absent_array_is_unmeasured, "has no 'mine.x'"),
        (
            spoilt(measure=lambda e: Measurement(e["prefill.kl"].mean(), math.nan)),
            check_it_returns_numbers,
            "a Measurement of two floats",
        ),
        (spoilt(measure=lambda e: Measurement(1.0, -0.1)), check_it_returns_numbers, "a standard error of 0 or more"),
        (spoilt(measure=lambda e: Measurement(math.nan, 0.1)), check_it_returns_numbers, "return UNMEASURED where"),
        (spoilt(terms=terms_of(in_float32)), check_its_terms_make_the_number, "compute terms in float64"),
        (
            spoilt(terms=terms_of(lambda t: Terms(t.values, t.weights, t.documents[1:]))),
            check_its_terms_make_the_number,
            "one value, one weight and one document",
        ),
        (spoilt(terms=lambda e: NO_TERMS), check_its_terms_make_the_number, "NO_TERMS where the value is NaN"),
        (spoilt(measure=lambda e: UNMEASURED), check_its_terms_make_the_number, "NO_TERMS where the value is NaN"),
        (
            spoilt(terms=terms_of(lambda t: Terms(2 * t.values, t.weights, t.documents))),
            check_its_terms_make_the_number,
            "return terms whose mean is the value",
        ),
        (spoilt(judged=Judged.BY_ITEM), check_items_are_right_or_wrong, "judge it BY_DOCUMENT"),
        (spoilt(measure=halved), check_evidence_is_left_alone, "copy prefill.kl before changing it"),
        (
            spoilt(measure=lambda e: Measurement(torch.rand(()).item(), math.nan)),
            check_twice_is_the_same,
            "an equal number for equal evidence",
        ),
    ],
)  # fmt: skip
def test_the_contract_catches(fault, caught_by, says, rejected):
    arguments = (fault, copied(EVIDENCE["all"])) if caught_by in ON_EVIDENCE else (fault,)
    with rejected(says):
        caught_by(*arguments)


def test_a_newcomer_without_terms_passes():
    newcomer = Metric(
        name="mine", unit="share", better="lower", version=1, measure=lambda e: Measurement(0.5, math.nan)
    )
    for rule in OF_ITSELF:
        rule(newcomer)
    for rule in ON_EVIDENCE:
        rule(newcomer, EVIDENCE["all"])
