"""The dynamic percentile: by hand, against percentiles and fake quantization done apart, and with faults."""

from __future__ import annotations

import pytest
import torch

from quambench.core.errors import BadParameter
from quambench.grids.grid import fake_quantize, q_max
from quambench.observers import ObserverSpec, batch, dynamic
from quambench.observers.dynamic import DynamicPercentile
from quambench.observers.percentile import Percentile

U = 1 + 2.0**-12  # times a power of two: the middle of a bin
ALPHAS = (0.9, 0.97, 1.0)


def test_by_hand():
    # Nine values of 1 and one of 16, two bits, so integers -2 to 1. α 0.8: both order statistics are 1; then
    # the step is 1 and the error (16 - 1)² / 10. α 1: the step is 16, each 1 becomes 0, the error is 9 / 10.
    observer = DynamicPercentile(bits=2, candidates=(0.8, 1.0))
    observer.update(torch.tensor([[1.0] * 9 + [16.0]]) * U)
    assert observer.threshold().item() == 16 * U
    # One negative 2 instead: -2 is on the grid of step 1, without an error.
    observer = DynamicPercentile(bits=2, candidates=(0.8, 1.0))
    observer.update(torch.tensor([[1.0] * 9 + [-2.0]]) * U)
    assert observer.threshold().item() == U


def stream(at_centres):
    """Three scales that want different percentiles: even, heavy-tailed, and with one outlier in the first batch."""
    generator = torch.Generator().manual_seed(0)
    batches = [torch.randn(40, 3, 5, generator=generator) for _ in range(6)]
    for i, x in enumerate(batches):
        x[:, 0] = torch.rand(40, 5, generator=generator) - 0.5
        x[:, 1] = x[:, 1] ** 5
        if i == 0:
            x[3, 2, 1] = 40.0
    return [at_centres(x) for x in batches]


def assert_each_scale_takes_its_best(at_centres, make):
    batches = stream(at_centres)
    rows = torch.cat(batches).movedim(1, 0).flatten(1).double()
    choices = set()
    for bits in (3, 4, 8):
        singles = [Percentile(bits=bits, alpha=alpha, sigma=0.2) for alpha in ALPHAS]
        observer = make(bits=bits, candidates=ALPHAS, sigma=0.2)
        for one in (*singles, observer):
            for x in batches:
                one.update(x)
        candidates = torch.stack([single.threshold() for single in singles])
        step = (candidates / q_max(bits))[..., None]
        best = (rows - fake_quantize(rows, step, bits)).square().mean(-1).argmin(0)
        choices |= set(best.tolist())
        assert torch.equal(observer.threshold(), candidates.gather(0, best[None])[0])
    assert choices == {0, 1, 2}  # else the test would not tell much


def test_each_scale_takes_its_best(at_centres):
    assert_each_scale_takes_its_best(at_centres, DynamicPercentile)


class _Last(DynamicPercentile):
    def threshold(self):
        return self.averages[-1]


class _OneForAll(DynamicPercentile):
    def threshold(self):
        return super().threshold().amax().expand(3)


class _LastBatchAlone(DynamicPercentile):
    def count(self, values):
        self.amax = None
        super().count(values)


class _WithoutTheAverage(DynamicPercentile):
    def take(self, batch):
        self.averages = None
        super().take(batch)


@pytest.mark.parametrize("fault", [_Last, _OneForAll, _LastBatchAlone, _WithoutTheAverage])
def test_the_check_catches(at_centres, fault):
    with pytest.raises(AssertionError):
        assert_each_scale_takes_its_best(at_centres, fault)


def test_one_candidate_is_the_percentile():
    spec = ObserverSpec.parse("dynamic_percentile[candidates=0.97,sigma=0.1]")
    assert dict(spec.parameters)["candidates"] == (0.97,)
    observer, single = spec.build(), Percentile(alpha=0.97, sigma=0.1)
    for x in torch.randn(5, 30, 2, 4, generator=torch.Generator().manual_seed(0)):
        observer.update(x)
        single.update(x)
    assert torch.equal(observer.threshold(), single.threshold())


def test_the_order_of_candidates_does_not_matter_where_they_differ(at_centres):
    found = []
    for candidates in (ALPHAS, ALPHAS[::-1]):
        observer = DynamicPercentile(bits=4, candidates=candidates)
        for x in stream(at_centres):
            observer.update(x)
        found.append(observer.threshold())
    assert torch.equal(*found)


def test_one_selection_serves_all_candidates(monkeypatch):
    calls, right = [], batch.largest
    monkeypatch.setattr(batch, "largest", lambda x, n: calls.append(n) or right(x, n))
    observer = DynamicPercentile(candidates=(1.0, 0.9, 0.99))
    observer.update(torch.randn(10, 100))
    assert calls == [observer.tail_length(1000)]


def test_the_clip_ratio_comes_after_the_choice(at_centres):
    full, half = (DynamicPercentile(bits=4, candidates=ALPHAS, clip_ratio=ratio) for ratio in (1.0, 0.5))
    for x in stream(at_centres):
        full.update(x)
        half.update(x)
    assert torch.equal(half.threshold(), full.threshold())
    assert torch.equal(half.grid_end(), full.grid_end() / 2)


def test_the_choice_is_made_by_the_shared_error(monkeypatch):
    monkeypatch.setattr(dynamic, "best", lambda histogram, thresholds, bits: thresholds[:, 1])
    observer = DynamicPercentile(candidates=(0.5, 1.0))
    observer.update(torch.tensor([[1.0, 2.0, 3.0]]))
    assert observer.threshold() == 3.0


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("dynamic_percentile[candidates=0.9|1.1]", "each of candidates must be in (0, 1] (got 1.1)"),
        ("dynamic_percentile[candidates=0]", "each of candidates must be in (0, 1] (got 0.0)"),
        ("dynamic_percentile[candidates=]", "parameters are written name=value (got 'candidates=')"),
        ("dynamic_percentile[candidates=0.9:1]", "candidates must be numbers, as in 0.999|1.0"),
        ("dynamic_percentile[sigma=0]", "sigma must be in (0, 1]"),
        ("dynamic_percentile[alpha=1]", "it takes candidates, sigma"),
    ],
)
def test_a_bad_parameter_says_what_it_must_be(text, says):
    with pytest.raises(BadParameter) as caught:
        ObserverSpec.parse(text)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)
