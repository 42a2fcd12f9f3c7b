"""What each finder names and says, whole; and what it passes over on its way to the next."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from quambench.core.errors import NonFinite
from quambench.gate import findings
from quambench.gate.comparisons import compare
from quambench.gate.findings import Finding
from quambench.gate.noise import Noise
from quambench.gate.record import Artefacts

SITE = "layers.0.ssm_state"  # the second of three
NAN, INF = float("nan"), float("inf")


def column(*values):
    return torch.tensor(values, dtype=torch.float64)


def test_a_finding_is_read_as_what_at_where_and_without_a_place_as_what_alone():
    assert str(Finding("layers.0.ssm_state", "scale changed")) == "scale changed at layers.0.ssm_state"
    assert str(Finding("", "another protocol")) == "another protocol"


def without(record, *names):
    return replace(record, evidence={n: a for n, a in record.evidence.items() if n not in names})


def first(record, **arrays):
    """With arrays before all others, so that a finder meets them first; metrics stay as they were."""
    named = {name.replace("__", "."): array for name, array in arrays.items()}
    return replace(record, evidence=named | {n: a for n, a in record.evidence.items() if n not in named})


@pytest.mark.parametrize("before", [{}, {"an__array": column(1.0)}], ids=["new", "of another size"])
def test_what_is_not_finite_is_found_behind_an_array_that_cannot_be_compared(record, change, before):
    with_evidence, *_ = change
    kl = record.evidence["prefill.kl"].clone()
    kl[3] = INF
    old, new = first(record, **before), first(with_evidence(record, prefill__kl=kl), an__array=column(1.0, INF))
    assert findings.first_broken(old, new) == Finding("prefill.kl", "prefill.kl is not finite any more")


@pytest.mark.parametrize(
    ("old", "new", "metrics", "found"),
    [
        ({"a.b": column(1.0)}, {}, (), Finding("a.b", "stored, and not measured any more")),
        ({"a.b": column(1.0)}, {"a.b": torch.ones(2, 3)}, (), ("a.b", "measured on 2 x 3 values, stored on 1 values")),
        ({"a.b": torch.ones(2)}, {"a.b": torch.tensor(1)}, (), ("a.b", "measured on one value, stored on 2 values")),
        ({}, {}, ("of_old", "older"), Finding("of_old", "stored, and no metric of today")),
        ({"groups.of_channel": column(1.0)}, {}, (), None),  # a changed order says so
    ],
)
def test_what_is_gone_is_named_with_how_much_of_it_is_left(old, new, metrics, found):
    assert findings.first_gone(old, new, metrics) == (found and Finding(*found) if isinstance(found, tuple) else found)


def test_a_changed_formula_says_both_numbers(record):
    assert findings.first_restated(record) is None
    restated = replace(record, restated={"kl": ("0.1", "0.2")})
    says = "the metric's formula changed (0.1 -> 0.2 from the same evidence)"
    assert findings.first_restated(restated) == Finding("kl", says)


CHANNELS = torch.tensor([[0, 1, 2, 3], [0, 1, 2, 3]])
SWAPPED = torch.tensor([[0, 1, 2, 3], [0, 2, 1, 3]])


@pytest.mark.parametrize(
    ("old", "new", "found"),
    [
        ({}, {"channel_index": CHANNELS}, ("layers.0.x_conv_out", "order of channels appeared")),
        ({"channel_index": CHANNELS}, {}, ("layers.0.x_conv_out", "order of channels is another thing")),
        (
            {"channel_index": CHANNELS},
            {"channel_index": CHANNELS[:1]},
            ("layers.0.x_conv_out", "order of channels is another thing"),
        ),
        (
            {"channel_index": CHANNELS},
            {"channel_index": SWAPPED},
            ("layers.1.x_conv_out", "order of channels changed, 2 of 8"),
        ),
        # Behind an order that neither has.
        (
            {"of_channel": CHANNELS},
            {"of_channel": torch.tensor([[0, 1, 2, 2], [0, 1, 2, 3]])},
            ("layers.0.x_conv_out", "groups of channels changed, 1 of 8"),
        ),
        ({"channel_index": CHANNELS, "of_channel": CHANNELS}, {"channel_index": CHANNELS, "of_channel": CHANNELS}, ()),
    ],
)
def test_another_order_of_channels_or_other_groups_are_named_at_their_first_layer(record, old, new, found):
    old, new = (first(record, **{f"groups__{n}": a for n, a in arrays.items()}) for arrays in (old, new))
    assert findings.first_changed_order(old, new) == (Finding(*found) if found else None)


def test_a_changed_artefact_says_what_became_of_it(record, change):
    _, with_scale, _ = change
    less = {n: s for n, s in record.artefacts.scales.items() if n != SITE}
    without_it = replace(record, artefacts=Artefacts(less, record.artefacts.digests))
    other = dict(record.artefacts.digests) | {"layers.0.in_proj.weight": "other"}
    digest = replace(record, artefacts=Artefacts(record.artefacts.scales, other))
    for old, new, place, what in (
        (without_it, record, SITE, "scale appeared"),
        (record, without_it, SITE, "scale is gone"),
        (record, with_scale(record, SITE, torch.ones(2, 3)), SITE, "number of scales changed (1 -> 6)"),
        (record, with_scale(record, SITE, torch.tensor([0.125])), SITE, "scale changed (0.04 -> 0.125)"),
        (record, digest, "layers.0.in_proj.weight", "integer weights changed"),
    ):
        assert findings.first_changed_artefact(old, new) == Finding(place, what)


# --- a site's own error and shares ----------------------------------------------------------------------


def with_site(record, change, scale, **at_site):
    """A record whose numbers are zeros but at SITE."""
    with_evidence, with_scale, _ = change
    arrays = {name: column(0.0, value, 0.0) for name, value in at_site.items()}
    return with_scale(with_evidence(record, **{f"sites__{n}": a for n, a in arrays.items()}), SITE, scale)


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize(
    ("scale", "symmetric"),
    [
        (torch.tensor([0.25]), True),
        (torch.tensor([0.1, 0.25, 99.0, 99.0]), False),  # zero points behind the steps
        (torch.tensor([0.1, 0.1, 0.25, 99.0, 99.0, 99.0]), False),
    ],
)
@pytest.mark.parametrize(("steps", "seen"), [(0.0, False), (2.3, False), (2.5, True)])
def test_an_error_beside_none_may_be_that_of_one_ulp_of_the_largest_step(
    record, change, bits, scale, symmetric, steps, seen
):
    """From 0 to x: x <= 2 sqrt(x) d + d^2, and so x <= (1 + sqrt(2))^2 d^2; at most 8 bits are a grid's."""
    d = 2 * 128 * torch.finfo(torch.float32).eps * 0.25
    old, new = (
        replace(
            with_site(record, change, scale, local_mse=mse),
            settings=dict(record.settings) | {"act_bits": bits, "symmetric": symmetric},
        )
        for mse in (0.0, (steps * d) ** 2)
    )
    found = findings.first_changed_local_error(old, new)
    says = f"local error changed at an unchanged scale (mse 0 -> {(steps * d) ** 2:.3g})"
    assert found == (Finding(SITE, says) if seen else None)


def test_where_no_grid_is_nothing_excuses_another_error(record, change):
    old, new = (with_site(record, change, torch.empty(0), local_mse=mse) for mse in (1e-4, 1.001e-4))
    assert findings.first_changed_local_error(old, new).place == SITE


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("clipped", "share clipped changed at an unchanged scale (0.25 -> 0.5)"),
        ("range_used", "share of the range used changed at an unchanged scale (0.25 -> 0.5)"),
        ("range_wasted", "share of it wasted changed at an unchanged scale (0.25 -> 0.5)"),
    ],
)
def test_a_changed_share_says_of_what_and_by_how_much(record, change, name, says):
    old, new = (with_site(record, change, torch.tensor([0.25]), **{name: share}) for share in (0.25, 0.5))
    assert findings.first_changed_local_error(old, new) == Finding(SITE, says)


@pytest.mark.parametrize(
    ("name", "what"),
    [("local_mse", f"the local error at {SITE}"), ("clipped", f"the share clipped at {SITE}")],
)
def test_a_sites_number_that_is_infinite_is_refused_by_name(record, change, name, what):
    old, new = (with_site(record, change, torch.tensor([0.25]), **{name: value}) for value in (0.25, INF))
    with pytest.raises(NonFinite, match=f"^{what} is inf, which cannot be compared$"):
        findings.first_changed_local_error(old, new)


def test_sites_that_one_of_both_did_not_measure_are_not_compared(record):
    """An array that an older schema lacks, one of other sites, a site that is float in one of both."""
    other = first(record, sites__local_mse=column(1.0, 1.0, 1.0))
    scales = {f"other {n}" if n == SITE else n: s for n, s in other.artefacts.scales.items()}
    for not_comparable in (
        without(record, "sites.local_mse"),
        first(record, sites__local_mse=column(1.0, 1.0)),
        replace(other, artefacts=Artefacts(scales, other.artefacts.digests)),
        first(record, sites__local_mse=record.evidence["sites.local_mse"] * column(1.0, NAN, 1.0)),
    ):
        assert findings.first_changed_local_error(record, not_comparable) is None
        assert findings.first_changed_local_error(not_comparable, record) is None
    neither = without(record, "sites.local_mse")
    assert findings.first_changed_local_error(neither, neither) is None
    assert findings.first_changed_local_error(record, other) is not None


def test_rows_of_more_sites_than_there_are_are_refused(record):
    record = first(record, sites__local_mse=column(1.0, 2.0, 3.0, 4.0), sites__accumulated=torch.ones(4, 8).double())
    noise = Noise(sites={"sites.accumulated": torch.ones(4).double()})
    for finder in (findings.first_changed_local_error, findings.first_moved_site):
        with pytest.raises(ValueError, match="zip"):
            finder(replace(record, noise=noise), record)


# --- counts and references ------------------------------------------------------------------------------


def test_a_changed_count_is_found_behind_those_that_one_of_both_did_not_make(record, change):
    with_evidence, *_ = change
    more = with_evidence(record, model__bytes=torch.tensor(1001))
    says = Finding("model_bytes", "changed (1000 -> 1001)")
    assert findings.first_changed_count(record, more) == says
    assert findings.first_changed_count(without(record, "scales.count"), more) == says
    assert findings.first_changed_count(record, without(more, "scales.count")) == says
    assert findings.first_changed_count(with_evidence(record, scales__count=torch.tensor(NAN)), more) == says


def test_counts_are_compared_exactly_and_what_the_float_model_says_to_its_rounding():
    many = column(1e7, 1e7, 1e7)
    old = {"prefill.tokens": many, "prefill.kl": many}
    more = many + column(0.0, 1.0, 1.0)  # a ten-millionth
    says = "changed, 2 of 3 (1e+07 -> 1e+07), which no scale can change"
    assert findings.first_changed_reference(old, old | {"prefill.tokens": more}) == Finding("prefill.tokens", says)
    of_float = {"gone": many, "decode.tokens": many, "prefill.nll_float": many}
    assert findings.first_changed_reference(of_float, {"prefill.nll_float": more}) is None
    says = "changed, 1 of 3 (1e+07 -> 10.5), which no scale can change"
    for passed_over in ({}, {"decode.tokens": many[:2]}):
        new = passed_over | {"prefill.nll_float": column(1e7, 10.5, 1e7)}
        assert findings.first_changed_reference(of_float, new) == Finding("prefill.nll_float", says)


# --- echoes inside the INT8 model -----------------------------------------------------------------------


@pytest.mark.parametrize(("rows", "phase"), [("sites.accumulated", "prefill"), ("decode.accumulated", "decoding")])
def test_a_moved_site_is_found_though_the_other_phase_has_no_floor(record, change, rows, phase):
    with_evidence, *_ = change
    array = record.evidence[rows].clone()
    array[1] *= 1.5
    old = replace(record, noise=replace(record.noise, sites={rows: record.noise.sites[rows]}))
    found = findings.first_moved_site(old, with_evidence(record, **{rows: array}))
    assert found == Finding(SITE, f"error inside the INT8 model changed in {phase} by 50%")


def test_a_floor_that_is_no_number_is_refused_by_its_site(record):
    floors = {"sites.accumulated": column(1e-3, INF, INF)}
    old = replace(record, noise=replace(record.noise, sites=floors))
    with pytest.raises(NonFinite, match=f"^the floor of the error at {SITE} is inf, which cannot be compared$"):
        findings.first_moved_site(old, record)


@pytest.mark.parametrize(
    ("log_ratio", "says"),
    [
        (math.log(1.5), "by 50%"),
        (math.log(10.9), "by 990%"),
        (math.log(11), "11-fold"),
        (math.log(11.3), "11-fold"),
        (199.0, "2.7e+86-fold"),
        (200.0, "10^87-fold"),
    ],
)
def test_how_much_is_told_in_few_figures(log_ratio, says):
    assert findings._by(log_ratio) == says


def test_a_moved_metric_says_that_quality_alone_moved(record, change):
    with_evidence, *_ = change
    sign = torch.tensor([1.0, -1.0]).repeat(6).double()
    new = with_evidence(record, prefill__nll=record.evidence["prefill.nll"] + 2.56 * sign)
    compared = compare(record.evidence, new.evidence, record.noise, 1e-3)
    says = "the INT8 model computes something else: quality alone moved"
    assert findings.first_moved_metric(record, new, compared) == Finding("loss_rise", says)


def test_a_moved_array_says_by_how_much_and_is_found_behind_what_cannot_be_compared():
    old = {"gone": column(1.0), "of another size": column(1.0), "noisy": column(*[2.0] * 7)}
    noise = Noise(arrays=dict.fromkeys(old, 0.01))
    new = {"of another size": column(5.0, 5.0), "noisy": column(*[2.5] * 7)}
    assert findings.first_moved_array(old, new, noise) == Finding("noisy", "moved by 0.25 of its size")
    assert findings.first_moved_array(old, new, Noise()) is None
    with pytest.raises(NonFinite, match=r"^noisy is inf, which cannot be compared$"):
        findings.first_moved_array({"noisy": column(0.0)}, {"noisy": column(1e10)}, noise)


def test_a_quantile_that_moved_says_between_what():
    """Of four, two documents left out; none of them has an error, one or all of one being no number."""
    noise = Noise(arrays={"prefill.kl_quantiles": 0.125, "prefill.kl_left_out": 0.125})  # of which three are allowed
    whole = column(0.0, 0.5, 1.0, 2.0)

    def evidence(whole, left_out, errors=NAN):
        rows = torch.stack([whole, torch.full((4,), errors, dtype=torch.float64)], dim=1)
        return {"prefill.kl_quantiles": rows, "prefill.kl_left_out": left_out}

    left_out = torch.stack([whole, whole], dim=1)
    old = evidence(whole, left_out)
    just, more = whole * column(1, 1, 1, 1.375), whole * column(1, 1, 1, 1.5)
    for same in (old, evidence(whole, left_out, errors=9.0), evidence(just, torch.stack([whole, just], dim=1))):
        assert findings.first_moved_array(old, same, noise) is None
    found = findings.first_moved_array(old, evidence(more, left_out), noise)
    assert found == Finding("prefill.kl_quantiles", "moved (2 -> 3 nats)")
    found = findings.first_moved_array(old, evidence(whole, torch.stack([whole, more], dim=1)), noise)
    assert found == Finding("prefill.kl_left_out", "moved (2 -> 3 nats)")
    certain = evidence(whole, left_out, errors=0.0)
    for same in (certain, evidence(whole, left_out, errors=9.0)):  # an error itself is counted again elsewhere
        assert findings.first_moved_array(certain, same, noise) is None
    unsure = evidence(whole, left_out, errors=1.0)
    assert findings.first_moved_array(unsure, evidence(more, left_out), noise) is None
