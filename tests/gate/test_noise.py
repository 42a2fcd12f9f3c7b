"""The noise floor: by hand, and against what rounding really does."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from quambench.gate.arrays import most
from quambench.gate.comparisons import GATED
from quambench.gate.noise import Noise, disturbance, largest, site_moved, spread, unit_moved
from quambench.metrics import Terms

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
    found = spread(record.evidence, moved.evidence, GATED)
    assert found.means["kl"] == pytest.approx(0.01)
    assert found.units["kl"] == pytest.approx(0.01)
    assert found.means["loss_rise"] == 0.0
    assert "recall_associative" not in found.means  # nothing of it was measured
    nothing = spread(record.evidence, record.evidence, GATED)
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
