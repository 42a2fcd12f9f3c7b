"""Faults in the strategies: each in a case that uses the strategy, at least two for every one."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from quambench.calibration import collect as calibration
from quambench.calibration import hessians as moments
from quambench.calibration.refine import adaround, learned, training
from quambench.grids.granularity import UNQUANTIZED
from quambench.int8 import gptq, recipe, site_grid, w4, weights
from quambench.observers import Batch, ObserverSpec, aciq, binned, dynamic, entropy, kl, mse
from quambench.observers import base as observing
from quambench.observers.aciq import Aciq, TwoAndAHalfSigma
from quambench.observers.histogram import Histogram
from quambench.observers.kl import LeastDivergence
from quambench.observers.percentile import WarmupPercentile
from quambench.policy import sensitivity as by_cost
from quambench.policy.by_layer import FirstMiddleLast, ScaleMultiplier
from quambench.policy.quamba import Quamba, Uniform
from quambench.policy.sensitivity import BySensitivity
from quambench.run import runner
from quambench.selftest.faults.base import ONE, OTHER, fault
from quambench.selftest.faults.planting import planned, planted, wrapped

SCAN = "layers.0.{scan}"

# --- warm-up ----------------------------------------------------------------------------------------

WARM = "warmup_percentile[alpha=0.999,schedule=3:0.5|9:0.2|inf:0.1]"


@fault("warm-up schedule read backwards", "observer/warmup_percentile", SCAN, case=WARM, architectures=OTHER)
def _() -> AbstractContextManager[Any]:
    def backwards(self: WarmupPercentile) -> float:
        ends, sigmas = [end for end, _ in self.schedule], [sigma for _, sigma in self.schedule][::-1]
        return next(sigma for end, sigma in zip(ends, sigmas, strict=True) if self.n_batches + 1 <= end)

    return planted(WarmupPercentile, "newest_weight", backwards)


@fault("warm-up ends one batch early", "observer/warmup_percentile", SCAN, case=WARM, architectures=OTHER)
def _() -> AbstractContextManager[Any]:
    return planted(
        WarmupPercentile,
        "newest_weight",
        lambda self: next(sigma for end, sigma in self.schedule if self.n_batches + 1 < end),
    )


# --- dynamic percentile -------------------------------------------------------------------------------

DYNAMIC = "dynamic_percentile"


@fault("the worst candidate is taken", "observer/dynamic_percentile", SCAN, case=DYNAMIC, architectures=ONE)
def _() -> AbstractContextManager[Any]:
    def worst(histogram: Histogram, thresholds: Tensor, bits: int) -> Tensor:
        at = mse.mean_squared_error(histogram, thresholds, bits).argmax(-1, keepdim=True)
        return thresholds.gather(1, at).squeeze(1)

    return planted(dynamic, "best", worst)


@fault(
    "candidates share the first one's percentile", "observer/dynamic_percentile", SCAN,
    case=DYNAMIC, architectures=ONE,
)  # fmt: skip
def _() -> AbstractContextManager[Any]:
    return wrapped(dynamic, "upper_quantile", lambda original, batch, alpha: original(batch, 0.999))


@fault("candidates are weighed at four bits", "observer/dynamic_percentile", SCAN, case=DYNAMIC, architectures=ONE)
def _() -> AbstractContextManager[Any]:
    return wrapped(dynamic, "best", lambda original, histogram, thresholds, bits: original(histogram, thresholds, 4))


# --- histograms, and what searches them ----------------------------------------------------------------

MSE = "mse/w8a4"


@fault("a histogram that forgets when its range grows", "observer/(mse|dynamic)", SCAN, case=MSE, architectures=OTHER)
def _() -> AbstractContextManager[Any]:
    def count(self: binned.Binned, values: Batch | Histogram) -> None:
        found = values.histogram if isinstance(values, Batch) else values
        if self.amax is not None and bool((found.top > self.histogram.top).any()):
            self.amax = None
        binned_count(self, values)

    binned_count = binned.Binned.count
    return planted(binned.Binned, "count", count)


@fault("clipping costs nothing in the search", "observer/mse", SCAN, case=MSE, architectures=OTHER)
def _() -> AbstractContextManager[Any]:
    def rounding_alone(histogram: Histogram, thresholds: Tensor, bits: int) -> Tensor:
        return thresholds.square()

    return planted(mse, "mean_squared_error", rounding_alone)


@fault("the search goes by the mean absolute value", "observer/mse", SCAN, case=MSE, architectures=OTHER)
def _() -> AbstractContextManager[Any]:
    original = Histogram.centres.fget  # type: ignore[attr-defined]
    return planted(Histogram, "centres", property(lambda self: original(self).sqrt()))


@fault("the search's finer rounds left out", "observer/mse", SCAN, case=MSE, architectures=OTHER)
def _() -> AbstractContextManager[Any]:
    return planted(mse, "ROUNDS", 0)


ENTROPY = "entropy"


@fault("least entropy in place of most", "observer/entropy", SCAN, case=ENTROPY, architectures=ONE)
def _() -> AbstractContextManager[Any]:
    original = entropy.quantized_entropy
    return planted(entropy, "quantized_entropy", lambda *args: -original(*args))


@fault("entropy of magnitudes, signs left out", "observer/entropy", SCAN, case=ENTROPY, architectures=OTHER)
def _() -> AbstractContextManager[Any]:
    original = entropy.quantized_entropy

    def unsigned(histogram: Histogram, thresholds: Tensor, bits: int) -> Tensor:
        both = histogram.counts.sum(1)
        return original(replace(histogram, counts=torch.stack([both, torch.zeros_like(both)], 1)), thresholds, bits)

    return planted(entropy, "quantized_entropy", unsigned)


KL = "kl/w8a4"


@fault("divergence, and then a tenth more is cut", "observer/kl", SCAN, case=KL, architectures=ONE)
def _() -> AbstractContextManager[Any]:
    return wrapped(LeastDivergence, "threshold", lambda original, self: original(self) * 0.9)


@fault("divergence with half as many integers", "observer/kl", SCAN, case=KL, architectures=ONE)
def _() -> AbstractContextManager[Any]:
    return planted(kl, "q_max", lambda bits: 2 ** (bits - 2) - 1)


# --- bell curves ----------------------------------------------------------------------------------------

ACIQ = "aciq/w8a4"


@fault("the paper's step in place of this grid's", "observer/aciq", SCAN, case=ACIQ, architectures=OTHER)
def _() -> AbstractContextManager[Any]:
    original = aciq.optimal_clip
    return planted(aciq, "optimal_clip", lambda prior, step: original(prior, 2 / (2 / step + 2)))


@fault("a gauss is taken for anything", "observer/aciq", SCAN, case=ACIQ, architectures=OTHER)
def _() -> AbstractContextManager[Any]:
    return planted(aciq, "GAUSS_BELOW", 1e9)


GAUSS = "gauss_2.5sigma"


@fault("variance in place of its root", "observer/gauss_2.5sigma", SCAN, case=GAUSS, architectures=ONE)
def _() -> AbstractContextManager[Any]:
    return planted(TwoAndAHalfSigma, "threshold", lambda self: 2.5 * self.mean_and_rms[1].square())


@fault("mean magnitude in place of σ", "observer/gauss_2.5sigma", SCAN, case=GAUSS, architectures=ONE)
def _() -> AbstractContextManager[Any]:
    return planted(TwoAndAHalfSigma, "threshold", lambda self: 2.5 * self.mean_and_rms[0])


@fault("sums of the last batch alone", "observer/(aciq|gauss_2.5sigma)", SCAN, case=GAUSS, architectures=ONE)
def _() -> AbstractContextManager[Any]:
    def take(self: Aciq, batch: Batch) -> None:
        self.n = self.sums = self.amax = None
        original(self, batch)

    original = aciq._Moments.take
    return planted(aciq._Moments, "take", take)


# --- clip ratio -----------------------------------------------------------------------------------------

CLIPPED = "running_max[clip_ratio=0.9]"


@fault("clip ratio ignored", "", SCAN, case=CLIPPED, architectures=OTHER)
def _() -> AbstractContextManager[Any]:
    return planted(observing.Observer, "grid_end", lambda self: self.threshold())


@fault("clip ratio divides", "", SCAN, case=CLIPPED, architectures=OTHER)
def _() -> AbstractContextManager[Any]:
    return planted(observing.Observer, "grid_end", lambda self: self.threshold() / self.clip_ratio)


# --- weights --------------------------------------------------------------------------------------------

BY_CHANNEL = "percentile/weights=percentile[alpha=0.99]@channel"


@fault("weights per input channel", "", "embedding.weight", case=BY_CHANNEL, architectures=ONE)
def _() -> AbstractContextManager[Any]:
    def columns(original: Callable[..., weights.QuantizedTensor], weight: Tensor, *more: Any) -> Any:
        found = original(weight.T.contiguous(), *more)
        return replace(found, q=found.q.T.contiguous(), scale=found.scale.mean().expand(len(weight), 1))

    return wrapped(recipe, "quantize_rows", columns)


@fault("weights' observer ignored", "", "layers.0.in_proj.weight", case=BY_CHANNEL, architectures=ONE)
def _() -> AbstractContextManager[Any]:
    return wrapped(recipe, "quantize_rows", lambda original, weight, bits=8, observer=None: original(weight, bits))


GPTQ = "percentile/w4a8/gptq"
GROUPS = "percentile/w4a8/weights=group"


@fault("groups of 64 in place of 128", "", "layers.0.in_proj.weight", case=GROUPS, architectures=ONE)
def _() -> AbstractContextManager[Any]:
    original = w4.round_to_nearest
    return planted(w4, "round_to_nearest", lambda weight, group=128, threshold=None: original(weight, group // 2))


@fault(
    "a group's step is its largest magnitude over seven", "w4", "layers.0.in_proj.weight",
    case=GROUPS, architectures=ONE,
)  # fmt: skip
def _() -> AbstractContextManager[Any]:
    return planted(w4, "group_step", lambda amax: (amax.double() / 7).float().clamp(min=1e-6))


@fault("GPTQ with a Hessian of other inputs", "", "layers.0.out_proj.weight", case=GPTQ, architectures=OTHER)
def _() -> AbstractContextManager[Any]:
    def exchanged(original: Callable[..., dict[str, Tensor]], *args: Any) -> dict[str, Tensor]:
        found = original(*args)
        a, b = "layers.0.out_proj.weight", "layers.1.out_proj.weight"
        return found | {a: found[b], b: found[a]}

    return wrapped(runner, "gather_hessians", exchanged)


@fault("GPTQ without damping", "gptq", "layers.0.in_proj.weight|lm_head.weight", case=GPTQ, architectures=OTHER)
def _() -> AbstractContextManager[Any]:
    original = gptq.gptq
    return planted(gptq, "gptq", lambda weight, hessian, group=128: original(weight, hessian, group, 1e-6))


@fault("second moments of the first batch alone", "", "layers.0.in_proj.weight", case=GPTQ, architectures=OTHER)
def _() -> AbstractContextManager[Any]:
    return wrapped(
        moments, "accumulate", lambda original, hessian, x: hessian if hessian.any() else original(hessian, x)
    )


# --- asymmetric grid ------------------------------------------------------------------------------------

ASYMMETRIC = "percentile/w8a8-asymmetric"


@fault("zero point dropped", "grid/asymmetric|site|int8_linear", "", case=ASYMMETRIC, architectures=OTHER)
def _() -> AbstractContextManager[Any]:
    return wrapped(
        site_grid, "dequantize_asymmetric", lambda original, q, scale, zero: original(q, scale, torch.zeros_like(zero))
    )


@fault("low and high ends exchanged", "calibration", "layers.0.in_proj:input", case=ASYMMETRIC, architectures=OTHER)
def _() -> AbstractContextManager[Any]:
    return wrapped(calibration, "asymmetric_scale", lambda original, low, high, bits: original(-high, -low, bits))


@fault("zero point left out of the product", "int8_linear", "", case=ASYMMETRIC, architectures=OTHER)
def _() -> AbstractContextManager[Any]:
    return wrapped(
        site_grid.AsymmetricGrid,
        "product",
        lambda original, self, x_q, weight: site_grid.SymmetricGrid(self.scale, self.bits).product(x_q, weight),
    )


# --- policies -------------------------------------------------------------------------------------------


@fault(
    "uniform at the percentile sites alone", "policy/uniform", "layers.0.*",
    case="percentile/uniform", architectures=ONE,
)  # fmt: skip
def _() -> AbstractContextManager[Any]:
    return planted(Uniform, "plan", Quamba.plan)


@fault(
    "uniform leaves lm_head its maximum", "policy/uniform", "lm_head:input",
    case="percentile/uniform", architectures=ONE,
)  # fmt: skip
def _() -> AbstractContextManager[Any]:
    plain = ObserverSpec("running_max")
    return planned(
        Uniform, lambda plan, _: dict(plan) | {"lm_head:input": replace(plan["lm_head:input"], observer=plain)}
    )


ENDS = "percentile/first_middle_last[first=0.99,middle=0.9995,last=0.9999]"


@fault("first and last layers exchanged", "policy/first_middle_last", SCAN, case=ENDS, architectures=OTHER)
def _() -> AbstractContextManager[Any]:
    original = FirstMiddleLast._alpha
    return planted(FirstMiddleLast, "_alpha", lambda self, layer, n: original(self, n - 1 - layer, n))


@fault(
    "the layer after the first counts as first", "policy/first_middle_last", "layers.1.{scan}",
    case=ENDS, architectures=OTHER,
)  # fmt: skip
def _() -> AbstractContextManager[Any]:
    original = FirstMiddleLast._alpha
    return planted(FirstMiddleLast, "_alpha", lambda self, layer, n: original(self, max(layer - 1, 0), n))


TIMES = "percentile/scale_multiplier[layers=ends]"


@fault(
    "the multiplier falls on every layer", "policy/scale_multiplier", "layers.1.{scan}",
    case=TIMES, architectures=ONE,
)  # fmt: skip
def _() -> AbstractContextManager[Any]:
    original = ScaleMultiplier.plan
    return planted(ScaleMultiplier, "plan", lambda self, *args: original(replace(self, layers="all"), *args))


@fault("the multiplier inverted", "policy/scale_multiplier", SCAN, case=TIMES, architectures=ONE)
def _() -> AbstractContextManager[Any]:
    original = ScaleMultiplier.plan
    return planted(ScaleMultiplier, "plan", lambda self, *args: original(replace(self, factor=1 - self.factor), *args))


MEASURED = "percentile/sensitivity[budget=4,floats=1]"


@fault("the least sensitive sites are treated", "policy/sensitivity", "", case=MEASURED, architectures=OTHER)
def _() -> AbstractContextManager[Any]:
    original = BySensitivity.plan

    def least(self: BySensitivity, config: Any, observer: Any, grouping: str, costs: Any = None) -> Any:
        turned = {site: {name: -cost for name, cost in by.items()} for site, by in costs.items()}
        return original(self, config, observer, grouping, turned)

    return planted(BySensitivity, "plan", least)


@fault("one site more than the budget stays float", "policy/sensitivity", "", case=MEASURED, architectures=OTHER)
def _() -> AbstractContextManager[Any]:
    original = BySensitivity.plan
    return planted(BySensitivity, "plan", lambda self, *args: original(replace(self, floats=self.floats + 1), *args))


@fault("the remedy that helps least is taken", "policy/sensitivity", "", case=MEASURED, architectures=OTHER)
def _() -> AbstractContextManager[Any]:
    return planted(by_cost, "best_remedy", lambda costs: max(costs, key=lambda name: costs[name]))


@fault("a site meant to stay float is quantized", "", "layers.*|lm_head.*", case=MEASURED, architectures=OTHER)
def _() -> AbstractContextManager[Any]:
    return planned(
        BySensitivity,
        lambda plan, _: {
            s: replace(a, granularity="tensor") if a.granularity == UNQUANTIZED else a for s, a in plan.items()
        },
    )


# --- scales trained after calibration ---------------------------------------------------------------------

LEARNED, ROUNDED = "percentile/w8a4/learned[steps=8]", "percentile/w8a4/adaround[steps=8]"


def _uphill() -> AbstractContextManager[Any]:
    original = training.Adam.step
    return planted(training.Adam, "step", lambda self, gradients, rate: original(self, gradients, -rate))


def _on_what_validates(module: Any) -> AbstractContextManager[Any]:
    class Same(training.Parts):
        @classmethod
        def of(cls, sequences: Tensor, train: int, validation: int, length: int) -> Any:
            parts = training.Parts.of(sequences, train, validation, length)
            return replace(parts, train=parts.validation)

    return planted(module, "Parts", Same)


@fault("learned scales go uphill", "refine/learned", "layers.0.*", case=LEARNED, architectures=ONE)
def _() -> AbstractContextManager[Any]:
    return _uphill()


@fault("learned scales train on what validates", "refine/learned", "layers.0.*", case=LEARNED, architectures=ONE)
def _() -> AbstractContextManager[Any]:
    return _on_what_validates(learned)


@fault("a scale's gradient inside the grid left out", "refine/learned", "layers.0.*", case=LEARNED, architectures=ONE)
def _() -> AbstractContextManager[Any]:
    return wrapped(learned, "straight_through", lambda original, x, scale, bits:
                   original(x, scale.detach() * 1.0, bits) + (scale - scale.detach()) * x.sign())  # fmt: skip


@fault("blocks' scales go uphill", "refine/adaround", "layers.0.*", case=ROUNDED, architectures=OTHER)
def _() -> AbstractContextManager[Any]:
    return _uphill()


@fault("blocks' scales train on what validates", "refine/adaround", "layers.0.*", case=ROUNDED, architectures=OTHER)
def _() -> AbstractContextManager[Any]:
    return _on_what_validates(adaround)
