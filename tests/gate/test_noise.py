"""The noise floor: by hand, and against what rounding really does."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from quambench.core.errors import NonFinite
from quambench.gate import noise
from quambench.gate.arrays import most
from quambench.gate.comparisons import gated
from quambench.gate.noise import (
    DISTURBANCES,
    DISTURBED,
    Noise,
    disturbance,
    implausible,
    largest,
    site_moved,
    spread,
    unit_moved,
    unit_size,
)
from quambench.metrics import Terms
from quambench.metrics.base import NO_TERMS

EPS = torch.finfo(torch.float32).eps


def column(*values):
    return torch.tensor(values, dtype=torch.float64)


def test_per_unit_differences_do_not_cancel():
    old, new = (Terms(v, column(4.0, 4.0), torch.tensor([0, 1])) for v in (column(1.0, 2.0), column(1.4, 1.6)))
    assert unit_moved(old, new) == pytest.approx(0.1)  # +-0.4 over 4 tokens
    assert old.mean() == new.mean()


def test_sites_by_hand():
    old, new = column(1.0, 1.0)[None], column(torch.e, 1 / torch.e)[None]
    assert site_moved(old, new).tolist() == pytest.approx([1.0])
    unknown = column(float("nan"), float("nan"))[None]
    assert site_moved(unknown, new).tolist() == [0.0]


def test_a_window_across_a_tie_is_not_a_moved_site():
    """Of sixteen windows two may be lost to ties; a fault moves all of them, and three are more than ties."""
    old = torch.ones(3, 16, dtype=torch.float64)
    new = old.clone()
    new[0, 3], new[0, 7] = torch.e, 0.5
    new[1] *= torch.e
    new[2, :3] = torch.e
    assert site_moved(old, new).tolist() == pytest.approx([0.0, 1.0, (1 / 14) ** 0.5])
    few = column(*[1.0] * 7)[None]
    assert site_moved(few, few * torch.e).tolist() == pytest.approx([1.0])  # of seven none may be lost
    assert site_moved(few, few * column(torch.e, *[1.0] * 6)).tolist() == pytest.approx([(1 / 7) ** 0.5])


def test_windows_of_a_metric_likewise():
    weights, documents = torch.full((8,), 4.0, dtype=torch.float64), torch.arange(8)
    old, one, all_of_them = (
        Terms(torch.tensor(v, dtype=torch.float64), weights, documents)
        for v in ([1.0] * 8, [1.0] * 7 + [9.0], [1.4] * 8)
    )
    assert unit_moved(old, one) == 0
    assert unit_moved(old, all_of_them) == pytest.approx(0.1)


def test_what_was_not_measured_is_no_window():
    """Of sixteen, seven measured and all of them moved: none may be lost."""
    x = torch.full((1, 16), torch.nan, dtype=torch.float64)
    x[0, 3:10] = 2.0
    assert most(x).nansum() == 14.0
    x[0, 12] = -3.0  # of eight measured one may, and it is the farthest
    assert most(x).nansum() == 14.0
    assert most(x)[0, 12].isnan()


def test_a_floor_never_falls_along_the_forward_order_and_is_never_zero_by_luck():
    noise = Noise(sites={"sites.accumulated": column(0.0, 1e-4, 0.0, 5e-4, 2e-4)})
    assert noise.site_floors("sites.accumulated").tolist() == [1e-4, 1e-4, 1e-4, 5e-4, 5e-4]
    assert noise.site_floors("decode.accumulated") is None
    assert Noise(sites={"sites.accumulated": column(0.0, 0.0)}).site_floors("sites.accumulated").tolist() == [0, 0]


def test_repetitions_spread_and_the_largest_counts(record, change):
    with_evidence, *_ = change
    moved = with_evidence(record, prefill__kl=record.evidence["prefill.kl"] + 2.56)
    found = spread(record.evidence, moved.evidence, gated({}))
    assert found.means["kl"] == pytest.approx(0.01)
    assert found.units["kl"] == pytest.approx(0.01)
    assert found.means["loss_rise"] == 0.0
    assert "recall_associative" not in found.means  # nothing of it was measured
    nothing = spread(record.evidence, record.evidence, gated({}))
    for order in ([nothing, found], [found, nothing]):
        assert (largest(order).means, largest(order).units) == (found.means, found.units)


@pytest.mark.parametrize("n", [16, 512, 4096])
def test_the_disturbance_is_as_large_as_another_order_of_summation(n):
    """Dot products of n terms in float32, summed forwards and backwards, against the disturbance's size."""
    generator = torch.Generator().manual_seed(0)
    terms = torch.randn(400, n, generator=generator)
    # numpy's running sum is rounded to float32 at every step; torch's may not be.
    forwards, backwards = (torch.from_numpy(np.cumsum(x.numpy(), axis=1)[:, -1]) for x in (terms, terms.flip(1)))
    apart = (forwards - backwards).square().mean().sqrt()
    x = forwards[:, None].expand(400, n)  # width n, each row as large as its sum
    added = disturbance(0)(x) - x
    size = added.square().mean().sqrt()
    # At least as large, so that it stands in for it; not by more than the sequential sum's own excess
    # over a pairwise one, sqrt(n) at most.
    assert apart < 2 * size
    assert size < apart * n**0.5
    assert torch.equal(disturbance(0)(x), disturbance(0)(x))
    assert not torch.equal(disturbance(0)(x), disturbance(1)(x))


def test_the_disturbance_stays_within_its_bound():
    x = torch.randn(50, 128, generator=torch.Generator().manual_seed(1))
    added = (disturbance(3)(x) - x).abs()
    bound = 128**0.5 * EPS * x.square().mean(1, keepdim=True).sqrt() + x.abs() * EPS  # and the addition's own rounding
    assert (added <= bound).all()


def test_the_disturbance_is_sized_by_the_last_axis_and_keeps_the_kind_of_its_tensor():
    x = torch.ones(64, 16, 4)
    x[:, :, 1:] = 0  # norms of 1 along the last axis, of 4 along the middle one
    added = disturbance(5)(x.double()) - x.double()
    assert added.abs().max() < EPS
    # Uniform in (-EPS, EPS): of 4,096 values the root mean square has a standard error of 0.7 %; seven are allowed.
    assert added.square().mean().sqrt() == pytest.approx(EPS / 3**0.5, rel=0.05)
    assert disturbance(5)(x.bfloat16()).dtype is torch.bfloat16
    assert disturbance(5)(x.to("meta")).device.type == "meta"


def test_random_numbers_are_drawn_once_and_then_only_for_what_is_larger(monkeypatch):
    """Drawing afresh for every tensor took three quarters of a measurement; four million floats are 16 MiB."""
    drawn, rand = [], torch.rand
    monkeypatch.setattr(torch, "rand", lambda n, **kwargs: drawn.append(n) or rand(n, **kwargs))
    x = torch.ones(16, 4, dtype=torch.float64)
    disturb = disturbance(0)
    assert not torch.equal(disturb(x), disturb(x))  # from another place on
    assert drawn == [4_194_304]

    monkeypatch.setattr(noise, "_POOL", 64)
    drawn.clear()
    disturb = disturbance(0)
    whole = [disturb(x) for _ in range(8)]  # all of the pool, which begins at one place alone
    assert all(torch.equal(whole[0], other) for other in whole)
    assert drawn == [64]
    larger = torch.ones(65, dtype=torch.float64)
    assert not torch.equal(disturb(larger), disturb(larger))
    assert drawn == [64, 65, 65]


def test_a_repetition_that_loses_a_number_is_refused_by_name(record):
    again = dict(record.evidence) | {"decode.kl": record.evidence["decode.kl"] * torch.nan}
    with pytest.raises(NonFinite, match=r"^decode\.kl is not finite in a repetition$"):
        spread(record.evidence, again, gated({}))


def kl_of(record, change, kl):
    """The record's evidence with so many nats per token of KL in prefill; as many in decoding as there were."""
    with_evidence, *_ = change
    return with_evidence(record, prefill__kl=torch.full((12,), kl * 256, dtype=torch.float64)).evidence


@pytest.mark.parametrize(
    ("kl", "apart", "share", "percent"),
    [(0.25, 0.2, 0.5, "80%"), (0.25, 0.0251, 0.1, "10%"), (0.0, 2e-6, 0.5, "200%"), (1e-5, 2.1e-6, 0.1, "21%")],
)
def test_a_repetition_too_far_away_is_refused_in_one_line_that_names_both_sides(
    record, change, kl, apart, share, percent
):
    evidence = kl_of(record, change, kl)
    said = implausible("another process", Noise({"kl": apart, "decode_kl": 0.0}), evidence, share)
    assert said == (
        f"two repetitions of the same case disagree: kl is {kl:.3g} nats/token in this process and {apart:.2g} away"
        f" from it in another process, {percent} of it; one of them computes something else: `pytest suites/probes`"
        " may name it; nothing is stored"
    )


@pytest.mark.parametrize(("kl", "apart"), [(0.0, 0.9e-6), (0.25, 0.1250009), (1e-5, 5.9e-6)])
def test_half_of_kl_and_a_millionth_of_a_nat_are_what_a_disturbance_may_do(record, change, kl, apart):
    evidence = kl_of(record, change, kl)
    assert implausible("another", Noise({"kl": apart, "decode_kl": 0.0}), evidence, DISTURBED) == ""
    assert implausible("another", Noise({"kl": apart + 2e-7, "decode_kl": 0.0}), evidence, DISTURBED) != ""


def test_a_repetition_without_a_number_is_refused_by_name(record):
    with pytest.raises(NonFinite, match=r"^decode_kl is nan, which cannot be compared$"):
        implausible("another", Noise({"kl": 0.0, "decode_kl": float("nan")}), record.evidence, DISTURBED)


def test_a_single_repetition_is_its_own_largest():
    alone = Noise({"kl": 0.5}, {"kl": 0.25}, {"sites.accumulated": column(1.0, 2.0)}, {"prefill.kl": 0.125})
    found = largest([alone])
    assert (found.means, found.units, found.arrays) == (alone.means, alone.units, alone.arrays)
    assert found.sites["sites.accumulated"].tolist() == [1.0, 2.0]


def test_a_metric_without_windows_has_no_size():
    assert unit_size(NO_TERMS) == 0.0
    assert unit_size(Terms(column(3.0, 4.0), column(2.0, 2.0), torch.tensor([0, 1]))) == pytest.approx(12.5**0.5 / 2)


def test_a_case_is_disturbed_twice_since_one_draw_may_meet_no_tie_and_each_costs_an_evaluation():
    assert DISTURBANCES == 2
