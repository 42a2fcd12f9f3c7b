"""Faults in what every case goes through: grid, layout, observers of the defaults, fusing, weights, runtime."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from quambench.calibration import collect as calibration
from quambench.calibration import scales as storing
from quambench.grids import grid, hadamard
from quambench.grids.granularity import Layout
from quambench.grids.precision import Precision
from quambench.int8 import fuse, recipe, weights
from quambench.int8 import model as quantized
from quambench.int8.model import QuantizedModel
from quambench.int8.site_grid import SymmetricGrid
from quambench.models.backbone import LanguageModel, LayerState
from quambench.models.mamba2 import Mamba2Mixer
from quambench.observers import Batch, ObserverSpec
from quambench.observers import base as observing
from quambench.observers import percentile as quantiles
from quambench.observers import running_max as maxima
from quambench.observers.percentile import Percentile
from quambench.observers.running_max import RunningMax
from quambench.policy.quamba import Quamba
from quambench.selftest.faults.base import SCAN_INPUT, fault
from quambench.selftest.faults.planting import (
    after,
    after_init,
    as_if,
    at_eight_bits,
    batch_of,
    planned,
    planted,
    quantile,
    relaid,
    scales,
    split_by_two,
    spoilt_batch,
    unrotate,
    update,
    without_gain,
    wrapped,
)

# --- the grid -------------------------------------------------------------------------------------


# An operator refuses it in a line of its own, before there is an error to measure at any site.
@fault("q_max 128", "grid", error=True)
def _() -> AbstractContextManager[Any]:
    return planted(grid, "q_max", lambda bits: 2 ** (bits - 1))


@fault("q_max 126", "grid", "embedding.weight")
def _() -> AbstractContextManager[Any]:
    return planted(grid, "q_max", lambda bits: 2 ** (bits - 1) - 2)


@fault("truncating rounding", "grid", "embedding.weight")
def _() -> AbstractContextManager[Any]:
    return patch.dict(grid.ROUNDINGS, half_even=torch.trunc)


@fault("half-up rounding", "grid")
def _() -> AbstractContextManager[Any]:
    return patch.dict(grid.ROUNDINGS, half_even=lambda x: torch.floor(x + 0.5))


@fault("grid without its lowest integer", "grid")
def _() -> AbstractContextManager[Any]:
    original = grid.quantize

    def narrow(x: Tensor, scale: Tensor, bits: int = 8, rounding: str = "half_even") -> Tensor:
        return original(x, scale, bits, rounding).clamp(min=-grid.q_max(bits))

    return planted(grid, "quantize", narrow)


@fault("scale inverted", "grid/scale|weights|observer", "embedding.weight|layers.0.in_proj:input")
def _() -> AbstractContextManager[Any]:
    original = grid.symmetric_scale
    return planted(grid, "symmetric_scale", lambda amax, bits=8: 1 / original(amax, bits))


@fault("activation scale inverted", "observer", "layers.0.in_proj:input")
def _() -> AbstractContextManager[Any]:
    original = grid.symmetric_scale
    return planted(observing, "symmetric_scale", lambda amax, bits: 1 / original(amax, bits))


@fault("scale cast to half", "observer", "layers.0.in_proj:input")
def _() -> AbstractContextManager[Any]:
    original = grid.symmetric_scale
    return planted(observing, "symmetric_scale", lambda amax, bits: original(amax, bits).half().float())


@fault("seven bits for activations", "observer|calibration", "layers.0.in_proj:input")
def _() -> AbstractContextManager[Any]:
    original = observing.Observer.scale
    return planted(observing.Observer, "scale", lambda self: original(self) * 127 / 63)


@fault("no floor under the scale", "grid")
def _() -> AbstractContextManager[Any]:
    return planted(grid, "MIN_SCALE", 0.0)


@fault("sites round half away from zero", "site")
def _() -> AbstractContextManager[Any]:
    return planted(SymmetricGrid, "quantize", lambda self, x: grid.quantize(x, self.scale, self.bits, "half_away"))


@fault("sites ignore their bits", "site")
def _() -> AbstractContextManager[Any]:
    return planted(SymmetricGrid, "quantize", lambda self, x: grid.quantize(x, self.scale, 8, "half_even"))


@fault("sites dequantize with twice the scale", "site")
def _() -> AbstractContextManager[Any]:
    return wrapped(SymmetricGrid, "dequantize", lambda original, self, q: original(self, q) * 2)


# --- granularity ----------------------------------------------------------------------------------


@fault("one scale from the first position alone", "granularity/.*/tensor")
def _() -> AbstractContextManager[Any]:
    return relaid("tensor", lay_out=lambda right, x: tuple(part[:1] for part in right.lay_out(x)))


@fault("per channel along the wrong axis", "granularity/.*/channel", case="percentile/channel")
def _() -> AbstractContextManager[Any]:
    def wrong(right: Layout, x: Tensor) -> tuple[Tensor, ...]:
        return right.lay_out(x.movedim(1, -1).reshape(x.shape))

    return relaid("channel", lay_out=wrong)


@fault("scales per channel one channel on", "granularity/.*/channel", case="percentile/channel")
def _() -> AbstractContextManager[Any]:
    return relaid("channel", expand=lambda right, scale: right.expand(scale.roll(1, 0)))


@fault("head and dim axes exchanged", "granularity/mamba2/head", case="percentile/head", architectures=("mamba2",))
def _() -> AbstractContextManager[Any]:
    def wrong(right: Layout, x: Tensor) -> tuple[Tensor, ...]:
        (part,) = right.lay_out(x)  # (n_obs, H, P) read as if it were (n_obs, P, H)
        n, heads, width = part.shape
        return (part.reshape(n, width, heads).transpose(1, 2),)

    return relaid("head", lay_out=wrong)


@fault("a split's scales in reverse", "granularity/mamba/split", case="percentile/split", architectures=("mamba",))
def _() -> AbstractContextManager[Any]:
    return relaid("split", expand=lambda right, scale: right.expand(scale.flip(0)))


@fault(
    "scales of SSD groups by their first n alone", "granularity/mamba2/ssd_group", case="percentile/ssd_group",
    architectures=("mamba2",),
)  # fmt: skip
def _() -> AbstractContextManager[Any]:
    return relaid("ssd_group", lay_out=lambda right, x: tuple(part[..., :1] for part in right.lay_out(x)))


@fault("a finer granularity than the state's is taken", "granularity/.*/channel_state", case="percentile/channel_state")
def _() -> AbstractContextManager[Any]:
    def coarser(right: Layout, x: Tensor) -> tuple[Tensor, ...]:
        return (x.mean(-1, keepdim=True).expand_as(x)[..., None],)

    return relaid("channel_state", lay_out=coarser)


# --- observers ------------------------------------------------------------------------------------


@fault("no absolute value before the quantile", "observer/percentile", "layers.0.(x_proj:input|x_conv_out|ssm_state)")
def _() -> AbstractContextManager[Any]:
    return quantile(lambda batch, alpha, q: q(batch_of(batch.x.clone(), signed=True), alpha))


@fault("alpha complemented", "observer/percentile", "layers.0.{scan}")
def _() -> AbstractContextManager[Any]:
    return quantile(lambda x, alpha, q: q(x, 1 - alpha))


@fault("alpha off by ten", "observer/percentile", "layers.0.{scan}")
def _() -> AbstractContextManager[Any]:
    return quantile(lambda x, alpha, q: q(x, 1 - 10 * (1 - alpha)))


@fault("quantile by nearest rank", "observer/percentile", "layers.0.{scan}")
def _() -> AbstractContextManager[Any]:
    def nearest(batch: Batch, alpha: float, q: Any) -> Tensor:
        rank = math.ceil(alpha * batch.values_per_scale)
        values = batch.magnitude.movedim(0, -2).flatten(-2)
        return values.kthvalue(max(rank, 1), dim=-1).values.double()

    return quantile(nearest)


@fault("sigma swapped with its complement", "observer/percentile", "layers.0.{scan}")
def _() -> AbstractContextManager[Any]:
    return planted(Percentile, "newest_weight", lambda self: 1 - self.sigma)


@fault("first batch skipped", "observer", "layers.0.(in_proj:input|{scan}|.*)")
def _() -> AbstractContextManager[Any]:
    return update(lambda original, self, x, n: None if n == 0 else original(self, x))


@fault("second batch counted twice", "observer/percentile", "layers.0.{scan}")
def _() -> AbstractContextManager[Any]:
    def twice(original: Any, self: Any, x: Tensor, n: int) -> None:
        original(self, x)
        if n == 1:
            original(self, x)

    return update(twice)


@fault("last batch missing", "observer", "layers.0.(.*)")
def _() -> AbstractContextManager[Any]:
    def late(original: Any, self: Any, x: Tensor, n: int) -> None:
        held, self.held = getattr(self, "held", None), x
        if held is not None:
            original(self, held)

    return update(late)


@fault("moving average in place of the maximum", "observer/running_max", "layers.0.in_proj:input")
def _() -> AbstractContextManager[Any]:
    def observe(self: RunningMax, batch: Batch) -> Tensor:
        newest = batch.amax.double()
        return newest if self.amax is None else self.amax + 0.01 * (newest - self.amax)

    return planted(RunningMax, "observe", observe)


@fault("maximum in place of the moving average", "observer/percentile", "layers.0.{scan}")
def _() -> AbstractContextManager[Any]:
    def take(self: Percentile, batch: Batch) -> None:
        newest = quantiles.upper_quantile(batch, self.alpha)
        self.amax = newest if self.amax is None else torch.maximum(self.amax, newest)

    return planted(Percentile, "take", take)


@fault("percentile of batch maxima", "observer/percentile", "layers.0.{scan}")
def _() -> AbstractContextManager[Any]:
    def take(self: Percentile, batch: Batch) -> None:
        seen = [*getattr(self, "maxima", ()), batch.amax.double()]
        self.maxima = seen  # type: ignore[attr-defined]
        self.amax = torch.stack(seen).quantile(self.alpha, dim=0)

    return planted(Percentile, "take", take)


@fault("moving average started at zero", "observer/percentile", "layers.0.{scan}")
def _() -> AbstractContextManager[Any]:
    def take(self: Percentile, batch: Batch) -> None:
        newest = quantiles.upper_quantile(batch, self.alpha)
        before = torch.zeros_like(newest) if self.amax is None else self.amax
        self.amax = before + self.sigma * (newest - before)

    return planted(Percentile, "take", take)


@fault("mean in place of the maximum", "observer/running_max", "embedding.weight")  # weights take a maximum too
def _() -> AbstractContextManager[Any]:
    def observe(self: RunningMax, batch: Batch) -> Tensor:
        newest = batch.magnitude.double().mean(dim=(0, -1))
        return newest if self.amax is None else torch.maximum(self.amax, newest)

    return planted(RunningMax, "observe", observe)


@fault("an observer that saw no data", "observer", "", error=True)
def _() -> AbstractContextManager[Any]:
    return planted(Percentile, "update", lambda self, x: None)


@fault("NaN and infinity taken in", "observer")
def _() -> AbstractContextManager[Any]:
    def update(self: observing.Observer, x: Any) -> None:
        batch = batch_of(x)
        if batch.x.numel():
            with np.errstate(invalid="ignore"):
                self.take(batch)
            self.n_batches += 1

    return planted(observing.Observer, "update", update)


@fault("NaN refused, infinity taken in", "observer")
def _() -> AbstractContextManager[Any]:
    return wrapped(
        observing.Observer, "update", lambda original, self, x: original(self, batch_of(x).x.clamp(-3e38, 3e38))
    )


@fault("what is refused counts all the same", "observer")
def _() -> AbstractContextManager[Any]:
    def update(original: Any, self: observing.Observer, x: Any) -> None:
        values = batch_of(x).x
        if values.numel() and not values.isfinite().all():
            self.take(batch_of(values.nan_to_num(0.0, 1e3, -1e3)))
        original(self, x)

    return wrapped(observing.Observer, "update", update)


@fault("a scale from an observer that saw nothing", "observer")
def _() -> AbstractContextManager[Any]:
    def scale(original: Any, self: observing.Observer) -> Tensor:
        return torch.tensor(1.0) if self.n_batches == 0 else original(self)

    return wrapped(observing.Observer, "scale", scale)


@fault("no floor under the running maximum", "observer/running_max")
def _() -> AbstractContextManager[Any]:
    return planted(maxima, "MIN_AMAX", 0.0)


@fault("NaN in one batch", "", "", error=True)
def _() -> AbstractContextManager[Any]:
    return spoilt_batch(math.nan)


@fault("infinity in one batch", "", "", error=True)
def _() -> AbstractContextManager[Any]:
    return spoilt_batch(math.inf)


# --- calibration: which scale goes where ------------------------------------------------------------


@fault("scale of a neighbouring layer", "", "layers.0.{scan}")
def _() -> AbstractContextManager[Any]:
    def exchange(scales: dict[str, Tensor]) -> dict[str, Tensor]:
        names = [(s, s.replace("layers.0.", "layers.1.")) for s in scales if s.endswith(tuple(SCAN_INPUT.values()))]
        a, b = next(pair for pair in names if pair[0].startswith("layers.0."))
        return scales | {a: scales[b], b: scales[a]}

    return scales(exchange)


@fault("two sites exchanged", "", "layers.1.({scan}|ssm_state)")
def _() -> AbstractContextManager[Any]:
    def exchange(scales: dict[str, Tensor]) -> dict[str, Tensor]:
        x = next(s for s in scales if s.startswith("layers.1.") and s.endswith(tuple(SCAN_INPUT.values())))
        return scales | {x: scales["layers.1.ssm_state"], "layers.1.ssm_state": scales[x]}

    return scales(exchange)


@fault("state scale times four", "", "layers.0.ssm_state")
def _() -> AbstractContextManager[Any]:
    return scales(lambda scales: {s: x * 4 if s.endswith("ssm_state") else x for s, x in scales.items()})


@fault("calibration sees two sequences as one batch", "calibration", "layers.0.{scan}")
def _() -> AbstractContextManager[Any]:
    return planted(Tensor, "split", split_by_two(Tensor.split))


@fault("policy: percentile at every site", "policy", "layers.0.in_proj:input")
def _() -> AbstractContextManager[Any]:
    return planned(Quamba, lambda plan, observer: {s: replace(a, observer=observer) for s, a in plan.items()})


@fault("policy: running max at every site", "policy", "layers.0.{scan}")
def _() -> AbstractContextManager[Any]:
    plain = ObserverSpec("running_max")
    return planned(Quamba, lambda plan, observer: {s: replace(a, observer=plain) for s, a in plan.items()})


# --- preparing the float model --------------------------------------------------------------------


@fault("Hadamard normalisation missing", "hadamard", "embedding.weight")
def _() -> AbstractContextManager[Any]:
    original = hadamard.rotate
    return planted(hadamard, "rotate", lambda x: original(x) * x.shape[-1] ** 0.5)


@fault("rotation of out_proj's input left out of its weight", "fuse", "layers.0.out_proj.weight")
def _() -> AbstractContextManager[Any]:
    def half(model: LanguageModel) -> None:
        for block in model.blocks:
            block.mixer.out_rotation = hadamard.Rotation()

    return planted(fuse, "rotate_out_proj_input", half)


@fault("out_proj's input not rotated", "fuse", "layers.0.out_proj")
def _() -> AbstractContextManager[Any]:
    def half(model: LanguageModel) -> None:
        for block in model.blocks:
            block.mixer.out_rotation = nn.Identity()
            block.mixer.out_proj.weight.copy_(hadamard.rotate(block.mixer.out_proj.weight))

    return planted(fuse, "rotate_out_proj_input", half)


@fault("out_proj's bias not rotated", "fuse")
def _() -> AbstractContextManager[Any]:
    def spoil(model: LanguageModel) -> None:
        for block in model.blocks:
            bias = block.mixer.out_proj.bias
            if bias is not None:
                bias.copy_(unrotate(bias))

    return after(fuse, "rotate_residual", spoil)


@fault("gain not fused into in_proj", "fuse", "layers.0.in_proj.weight")
def _() -> AbstractContextManager[Any]:
    return without_gain(lambda model: [block.norm for block in model.blocks])


@fault("gain of the last norm not fused into lm_head", "fuse", "lm_head.weight")
def _() -> AbstractContextManager[Any]:
    return without_gain(lambda model: [model.backbone.norm_f])


@fault("lm_head not rotated", "fuse", "lm_head.weight")
def _() -> AbstractContextManager[Any]:
    return after(fuse, "rotate_residual", lambda model: model.lm_head.weight.copy_(unrotate(model.lm_head.weight)))


@fault("embedding not rotated", "fuse", "embedding.weight")
def _() -> AbstractContextManager[Any]:
    def spoil(model: LanguageModel) -> None:
        weight = model.backbone.embedding.weight
        weight.copy_(unrotate(weight))

    return after(fuse, "rotate_residual", spoil)


@fault("one in_proj not rotated", "fuse", "layers.1.in_proj.weight")
def _() -> AbstractContextManager[Any]:
    def spoil(model: LanguageModel) -> None:
        weight = model.blocks[1].mixer.in_proj.weight
        weight.copy_(unrotate(weight))

    return after(fuse, "rotate_residual", spoil)


@fault("gated norm's gain fused", "fuse", "layers.0.(out_proj.weight|out_proj:input)", architectures=("mamba2",))
def _() -> AbstractContextManager[Any]:
    def spoil(model: LanguageModel) -> None:
        for block in model.blocks:
            norm: Any = block.mixer.norm
            block.mixer.out_proj.weight.mul_(norm.weight)
            norm.weight.fill_(1.0)

    # Before the Hadamard that follows the norm is fused, it would commute; after it, it does not.
    return after(fuse, "rotate_out_proj_input", spoil)


# --- weights --------------------------------------------------------------------------------------


@fault("embedding's rows by their signed maximum", "weights/rows", "embedding.weight")
def _() -> AbstractContextManager[Any]:
    def signed(weight: Tensor, bits: int = 8, *_: Any) -> Any:
        scale = grid.symmetric_scale(weight.amax(dim=1, keepdim=True), bits)
        return weights.QuantizedTensor(grid.quantize(weight, scale.to(weight.dtype), bits), scale)

    return planted(weights, "quantize_rows", signed)


@fault("one scale for all splits of in_proj", "weights/splits", "layers.0.in_proj.weight", architectures=("mamba2",))
def _() -> AbstractContextManager[Any]:
    def whole(weight: Tensor, sizes: Any, bits: int = 8, *_: Any) -> Any:
        one = weights.quantize_tensor(weight, bits)
        return weights.QuantizedTensor(one.q, one.scale.expand(len(weight)).reshape(-1, *[1] * (weight.ndim - 1)))

    return planted(weights, "quantize_splits", whole)


@fault("splits in another order", "weights/splits", "layers.0.in_proj.weight", architectures=("mamba2",))
def _() -> AbstractContextManager[Any]:
    original = weights.quantize_splits

    def reversed_sizes(weight: Tensor, sizes: Any, *more: Any) -> Any:
        return original(weight, sizes[::-1], *more)

    return planted(weights, "quantize_splits", reversed_sizes)


@fault("weights ignore their bits", "weights")
def _() -> AbstractContextManager[Any]:
    return at_eight_bits(weights)


@fault("the model ignores its weights' bits", "weights/recipe|fuse")
def _() -> AbstractContextManager[Any]:
    return at_eight_bits(recipe)


# --- the INT8 runtime -----------------------------------------------------------------------------


@fault("the model ignores its activations' bits", "step")
def _() -> AbstractContextManager[Any]:
    return wrapped(
        quantized, "site_grids", lambda original, fixed, config, bits, symmetric: original(fixed, config, 8, symmetric)
    )


@fault("bias of a projection dropped", "step")
def _() -> AbstractContextManager[Any]:
    def without(model: QuantizedModel) -> None:
        for block in model.blocks:
            block.in_proj.bias = block.out_proj.bias = None

    return after_init(without)


@fault("float lm_head without its norm", "step/.*/w4a4")
def _() -> AbstractContextManager[Any]:
    def head(original: Any, self: QuantizedModel, hidden: Tensor, *tap: Any) -> Tensor:
        return hidden @ self.lm_head.T if isinstance(self.lm_head, Tensor) else original(self, hidden, *tap)

    return wrapped(QuantizedModel, "head", head)


@fault("gated norm always behind the gate", "step/mamba2-options", architectures=("mamba2",))
def _() -> AbstractContextManager[Any]:
    return as_if(norm_before_gate=False)


@fault("limits of dt dropped", "step/mamba2-options", architectures=("mamba2",))
def _() -> AbstractContextManager[Any]:
    return as_if(dt_min=0.0, dt_max=math.inf)


@fault("lower limit of dt dropped", "step/mamba2-options", architectures=("mamba2",))
def _() -> AbstractContextManager[Any]:
    return as_if(dt_min=0.0)


@fault("upper limit of dt dropped", "step/mamba2-options", architectures=("mamba2",))
def _() -> AbstractContextManager[Any]:
    return as_if(dt_max=math.inf)


@fault("D per channel read per head", "step/mamba2-options", architectures=("mamba2",))
def _() -> AbstractContextManager[Any]:
    def per_head(model: QuantizedModel) -> None:
        for block in model.blocks:
            if block.config.d_per_channel:
                heads = block.D.view(-1, block.config.head_dim)
                block.D = heads[:, :1].expand_as(heads).flatten()

    return after_init(per_head)


@fault("float model's gated norm always behind the gate", "float/mamba2-options", architectures=("mamba2",))
def _() -> AbstractContextManager[Any]:
    return planted(Mamba2Mixer, "gated_norm", lambda self, y, z: self.norm(y * F.silu(z)))


@fault("state kept in float", "step", "layers.0.ssm_state")
def _() -> AbstractContextManager[Any]:
    return wrapped(
        Precision, "quantizes", lambda original, self, site: not site.endswith("ssm_state") and original(self, site)
    )


@fault("conv history lost between calls", "step", "layers.0.({scan}|x_conv_out)")
def _() -> AbstractContextManager[Any]:
    def forgetful(original: Any, self: QuantizedModel, tokens: Tensor, state: Any = None, tap: Any = None) -> Any:
        if state is not None:
            state = [LayerState(torch.zeros_like(layer.conv), layer.ssm) for layer in state]
        return original(self, tokens, state, *([] if tap is None else [tap]))

    return wrapped(QuantizedModel, "hidden", forgetful)


@fault("conv history one token late", "step", "layers.0.({scan}|x_conv_out)")
def _() -> AbstractContextManager[Any]:
    def late(original: Any, self: QuantizedModel, tokens: Tensor, state: Any = None, tap: Any = None) -> Any:
        if state is not None:
            state = [LayerState(layer.conv.roll(1, dims=1), layer.ssm) for layer in state]
        return original(self, tokens, state, *([] if tap is None else [tap]))

    return wrapped(QuantizedModel, "hidden", late)


@fault("D left out", "step", "layers.0.out_proj:input")
def _() -> AbstractContextManager[Any]:
    def without(model: QuantizedModel) -> None:
        for block in model.blocks:
            block.D = torch.zeros_like(block.D)

    return after_init(without)


@fault("A by half", "step", "layers.0.(ssm_state|out_proj:input)")
def _() -> AbstractContextManager[Any]:
    def slower(model: QuantizedModel) -> None:
        for block in model.blocks:
            block.A = block.A / 2

    return after_init(slower)


@fault("every site read by its neighbour's scale", "step", "layers.0.(in_proj|z).*")
def _() -> AbstractContextManager[Any]:
    others = {"z": "x_conv_in", "in_proj:output": "x_proj:output"}

    def swapped(original: Any, *args: Any) -> dict[str, Any]:
        grids = original(*args)
        return {site: grids[_neighbour(site, others)] for site in grids}

    return wrapped(quantized, "site_grids", swapped)


def _neighbour(site: str, others: dict[str, str]) -> str:
    layer, _, name = site.rpartition(".")
    return f"{layer}.{others[name]}" if name in others else site


@fault("scales lose their last digits when saved", "", "", error=True)
def _() -> AbstractContextManager[Any]:
    def lossy(original: Callable[..., bytes], tensors: dict[str, Tensor]) -> bytes:
        return original({n: t.half().float() for n, t in tensors.items()})

    return wrapped(storing, "save", lossy)


# --- changes that change nothing ------------------------------------------------------------------


@fault("calibration in batches of one", no_op="observers see the sequences of a forward batch one at a time anyway")
def _() -> AbstractContextManager[Any]:
    return planted(calibration, "FORWARD_BATCH", 1)


@fault("running max of squares, rooted", no_op="x -> x^2 is increasing on |x|, and exact in float64 for float32 input")
def _() -> AbstractContextManager[Any]:
    return wrapped(
        RunningMax,
        "observe",
        lambda original, self, batch: original(self, Batch(batch.x.double().square().sqrt().to(batch.x.dtype))),
    )
