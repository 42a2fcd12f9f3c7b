"""Probes of the units that know nothing of models: grid, rotation, weights, layout, observers, INT8 product.

Units are looked up when they are asked, through their modules and registries, so that whatever is
there then is what answers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from quambench_kernels.int8_linear import int8_linear
from torch import Tensor

from quambench.core.errors import NonFinite, SiteUnseen
from quambench.gate.probes.base import Answer, Probe, Streams
from quambench.gate.probes.resting import (
    all_of,
    asymmetric,
    by_gptq,
    calibrated_here,
    every_case,
    finer,
    observed_by,
    of_four_bits,
    of_kind,
)
from quambench.grids import grid, hadamard
from quambench.grids.granularity import GRANULARITIES, layout
from quambench.int8 import gptq, site_grid, w4, weights
from quambench.models.config import ModelConfig
from quambench.models.sites import ARCHITECTURES, architecture_of
from quambench.observers import OBSERVERS, ObserverSpec

BITS = (8, 6, 4, 2)
# Both sides of rotate's two-factor split, and each family: 2^k, 12 * 2^k, 40 * 2^k.
ROTATIONS = (1, 2, 4, 8, 12, 24, 40, 48, 80, 160, 512)
# (positions, channels) of a batch -> what an observer gets of it.
LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {"tensor": lambda x: x, "channel": lambda x: x[..., None]}
# Small enough to read the answers; Mamba2 with two SSD groups.
_SMALL: dict[str, Any] = dict(d_model=4, n_layers=1, vocab_size=8, d_state=3)
CONFIGS = {
    "mamba": ModelConfig(architecture="mamba", dt_rank=2, **_SMALL),
    "mamba2": ModelConfig(architecture="mamba2", head_dim=2, n_groups=2, **_SMALL),
}
# Beside every observer's defaults.
VARIANTS = {
    "percentile": ("percentile[alpha=0.9]", "percentile[alpha=1.0,sigma=0.3]", "percentile[alpha=0.999,sigma=0.05]"),
    "warmup_percentile": ("warmup_percentile[alpha=0.9,schedule=2:0.5|3:0.25|inf:0.125]",),
    "dynamic_percentile": ("dynamic_percentile[candidates=0.5|0.9|1.0,sigma=0.3]",),
    "running_max": ("running_max[clip_ratio=0.5]",),
    "mse": ("mse[low=0.8,steps=20]", "mse[low=0.25,high=0.5]"),
    "aciq": ("aciq[prior=gauss]", "aciq[prior=laplace]"),
    "entropy": ("entropy[low=0.5,steps=20]",),
}


def probes() -> Iterator[Probe]:
    """In order of dependence: what comes later is built on what came before."""
    yield Probe("grid/scale", _scale)
    for name in grid.ROUNDINGS:
        yield Probe(f"grid/{name}", lambda streams, name=name: _round(streams, name))  # type: ignore[misc]
    yield Probe("grid/dequantize", _dequantize)
    yield Probe("grid/clipped", _clipped)
    for n in ROTATIONS:
        yield Probe(f"hadamard/{n}", lambda streams, n=n: _rotate(n))  # type: ignore[misc]
    yield Probe("weights/tensor", lambda s: _weight(lambda *bits: weights.quantize_tensor(s["weights"], *bits)))
    yield Probe("weights/rows", lambda s: _weight(lambda *bits: weights.quantize_rows(s["weights"], *bits)))
    yield Probe(
        "weights/splits",
        lambda s: _weight(lambda *bits: weights.quantize_splits(s["weights"], (1, 4, 2, 5), *bits)),
    )
    yield Probe("grid/asymmetric", _asymmetric, rests=asymmetric)
    yield Probe("w4", lambda s: _four_bits(lambda w: w4.round_to_nearest(w, group=4)), rests=of_four_bits)
    yield Probe(
        "gptq", lambda s: _four_bits(lambda w: gptq.gptq(w, _second_moments(w.shape[1]), group=4)), rests=by_gptq
    )
    for kind, config in CONFIGS.items():
        for name in GRANULARITIES:
            if any(name in site.allowed for site in ARCHITECTURES[kind].sites):
                yield Probe(
                    f"granularity/{kind}/{name}",
                    lambda _, n=name, c=config: _lay_out(n, c),  # type: ignore[misc]
                    rests=all_of(calibrated_here, of_kind(kind), every_case if name == "tensor" else finer),
                )
    yield Probe("site", _site)
    yield Probe("site/asymmetric", _asymmetric_site, rests=asymmetric)
    for name in OBSERVERS:
        for spec in (name, *VARIANTS.get(name, ())):
            yield Probe(f"observer/{spec}", lambda streams, spec=spec: _observe(streams, spec), rests=observed_by(spec))  # type: ignore[misc]
    yield Probe("int8_linear", _product)
    yield Probe("int8_linear/asymmetric", _asymmetric_product, rests=asymmetric)


def _scale(streams: Streams) -> Answer:
    return {f"{bits} bits": grid.symmetric_scale(streams["amax"].double(), bits) for bits in BITS}


def _round(streams: Streams, rounding: str) -> Answer:
    """Ties, saturation on both sides, zeros, subnormals, huge values, at a scale that divides exactly."""
    scale = torch.tensor(0.5)
    return {f"{bits} bits": grid.quantize(streams["ties"], scale, bits, rounding) for bits in BITS}


def _dequantize(streams: Streams) -> Answer:
    every = torch.arange(-128, 128).to(torch.int8)
    return {
        "per tensor": grid.dequantize(every, torch.tensor(0.3)),
        "fake": grid.fake_quantize(streams["ties"], torch.tensor(0.5)),
    }


def _clipped(streams: Streams) -> Answer:
    return {"values": grid.clipped(streams["ties"], torch.tensor(0.5)).sum()}


def _rotate(n: int) -> Answer:
    """sqrt(n) H of integers is integer: float64 tells it exactly."""
    x = (torch.arange(3 * n).view(3, n) * 37 % 251 - 125).double()
    back = hadamard.rotate(x) @ hadamard.hadamard_matrix(n)
    return {
        "sqrt(n) H x": (hadamard.rotate(x) * n**0.5).round().int(),
        "H^T H x": back.round().int(),
    }


def _weight(made: Callable[..., weights.QuantizedTensor]) -> Answer:
    """By default, and at 4 bits."""
    usual, low = made(), made(4)
    return {
        "scale": usual.scale.contiguous(),
        "q": usual.q,
        "4 bits, scale": low.scale.contiguous(),
        "4 bits, q": low.q,
    }


def _asymmetric(streams: Streams) -> Answer:
    """Ranges on either side of zero and across it; ties, at a scale that divides exactly."""
    amax = streams["amax"].double()
    answer: dict[str, Tensor | list[str]] = {}
    for bits in BITS:
        scale, zero = grid.asymmetric_scale(-amax, amax.flip(0), bits)
        answer[f"{bits} bits, scale"], answer[f"{bits} bits, zero"] = scale, zero
        half, shift = torch.tensor(0.5), torch.tensor(-3.0)
        q = grid.quantize_asymmetric(streams["ties"], half, shift, bits)
        answer[f"{bits} bits"], answer[f"{bits} bits, back"] = q, grid.dequantize_asymmetric(q, half, shift)
    return answer


def _four_bits(rounded: Callable[[Tensor], w4.GroupedWeight]) -> Answer:
    """Weights whose last group is short, one group all zeros."""
    weight = ((torch.arange(30).view(3, 10) * 37 % 61 - 30) / 16).double()
    weight[1, 4:8] = 0.0
    found = rounded(weight)
    whole = w4.to_int8(found)
    return {"q": found.q, "steps": found.steps, "int8": whole.q, "int8 scale": whole.scale.flatten()}


def _second_moments(n: int) -> Tensor:
    """(n, n) of inputs that go together, so that error fed back to the wrong column shows."""
    x = ((torch.arange(4 * n).view(4, n) * 29 % 31 - 15) / 8).double()
    return x.T @ x


def _lay_out(name: str, config: ModelConfig) -> Answer:
    """Which value goes where, by values that say where they came from; and which scale meets which value."""
    answer: dict[str, Tensor | list[str]] = {}
    for site in architecture_of(config).sites:
        if name not in site.allowed:
            continue
        x = torch.arange(torch.Size(shape_of(site.name, config)).numel()).view(shape_of(site.name, config))
        met = layout(name, site.name, config)
        parts = met.lay_out(x)
        answer[f"{site.name} order"] = torch.cat([part.reshape(-1) for part in parts]).int()
        answer[f"{site.name} shape"] = torch.tensor([n for part in parts for n in part.shape])
        shape = parts[0].shape[1:-1] if len(parts) == 1 else (len(parts),)
        scale = 1 + torch.arange(torch.Size(shape).numel()).view(shape)
        answer[f"{site.name} scales"] = met.expand(scale).expand(x.shape).int()
    return answer


def shape_of(site: str, config: ModelConfig) -> tuple[int, ...]:
    """A tensor of a site: as many positions as its last axis is long, where a scale on the wrong axis fits too."""
    c = config
    if site == "ssm_state":
        return (1, c.d_inner, c.d_state) if c.architecture == "mamba" else (1, c.n_heads, c.head_dim, c.d_state)
    if c.architecture == "mamba":
        widths = {"in_proj:output": 2 * c.d_inner, "x_proj:output": c.dt_rank + 2 * c.d_state}
    else:
        bc = c.n_groups * c.d_state
        widths = {"dt": c.n_heads, "B_conv_in": bc, "C_conv_in": bc, "B_conv_out": bc, "C_conv_out": bc}
    width = (widths | {"in_proj:input": c.d_model}).get(site, c.d_inner)
    return (1, width, width)


def _site(streams: Streams) -> Answer:
    """Ties by way of a site's own grid; per channel, at scales that divide exactly; left float."""
    ties, every = streams["ties"], torch.arange(-128, 128).to(torch.int8)
    answer: dict[str, Tensor | list[str]] = {}
    for bits in (8, 4):
        one = site_grid.SymmetricGrid(torch.tensor(0.5), bits)
        answer[f"{bits} bits"], answer[f"{bits} bits, back"] = one.quantize(ties), one.dequantize(every)
        answer[f"{bits} bits, clipped"] = one.clipped(ties).int()
    channels = site_grid.SymmetricGrid(torch.tensor([0.25, 0.5, 1.0, 2.0]), 8)
    answer["per channel"] = channels.quantize(ties[3::4][:256].view(1, -1, 4))
    answer["per channel, back"] = channels.dequantize(every.view(1, -1, 4))
    answer["two channels"] = channels.channels(1, 2).dequantize(every.view(1, -1, 2))
    answer["one channel"] = channels.channels(2, 1).dequantize(every)
    kept = site_grid.Unquantized()
    answer["float, values that changed"] = (kept.dequantize(kept.quantize(ties)) != ties).sum()
    return answer


def _asymmetric_site(streams: Streams) -> Answer:
    ties, every = streams["ties"], torch.arange(-128, 128).to(torch.int8)
    answer: dict[str, Tensor | list[str]] = {}
    for bits in (8, 4):
        one = site_grid.AsymmetricGrid(torch.tensor(0.5), torch.tensor(-3.0), bits)
        answer[f"{bits} bits"], answer[f"{bits} bits, back"] = one.quantize(ties), one.dequantize(every)
        answer[f"{bits} bits, clipped"] = one.clipped(ties).int()
    return answer


def _observe(streams: Streams, spec: str) -> Answer:
    """Scales after batches of (n_obs, *scale_shape, group), for one scale and for one per channel."""
    answer: dict[str, Tensor | list[str]] = {}
    for name, batches in streams.items():
        if name.startswith("batches/"):
            for granularity, lay_out in LAYOUTS.items():
                observer = ObserverSpec.parse(spec).build()
                for batch in batches.unbind(0):
                    observer.update(lay_out(batch))
                answer[f"{name.removeprefix('batches/')}, {granularity}"] = observer.scale()
    low = ObserverSpec.parse(spec).build(bits=4)
    for batch in (streams["batches/ordinary"][0], torch.empty(0, 5), streams["batches/ordinary"][1]):
        low.update(batch)  # the empty one changes nothing
    answer["4 bits, an empty batch"] = low.scale()
    for bits in (4, 2):  # where an observer's own floor is above the grid's
        low = ObserverSpec.parse(spec).build(bits)
        low.update(streams["batches/zeros"][0])
        answer[f"zeros, {bits} bits"] = low.scale()
    answer["refused"], answer["after what was refused"] = _refused(streams["batches/ordinary"], spec)
    return answer


def _refused(batches: Tensor, spec: str) -> tuple[list[str], Tensor]:
    """What becomes of data that no scale can be made of, and the scale of the good batches around it."""
    observer = ObserverSpec.parse(spec).build()

    def said(call: Callable[[], object]) -> str:
        try:
            call()
        except (NonFinite, SiteUnseen) as error:
            return type(error).__name__
        return "taken"

    words = [f"unseen: {said(observer.scale)}"]
    observer.update(torch.empty(0, 5))
    words.append(f"only an empty batch: {said(observer.scale)}")
    for value in ("nan", "inf", "-inf"):
        spoilt = batches[0].clone()
        spoilt[7, 3] = float(value)
        words.append(f"{value} at first: {said(lambda x=spoilt: observer.update(x))}")  # type: ignore[misc]
    words.append(f"unseen still: {said(observer.scale)}")
    observer.update(batches[0])
    for value in ("nan", "inf", "-inf"):
        spoilt = batches[1].clone()
        spoilt[0, 0] = float(value)
        words.append(f"{value} later: {said(lambda x=spoilt: observer.update(x))}")  # type: ignore[misc]
    observer.update(batches[1])
    return words, observer.scale()


def _factors() -> tuple[Tensor, Tensor]:
    """Whose sums overflow 16 bits, -128 among them."""
    x = (torch.arange(5 * 192).view(5, 192) * 89 % 256 - 128).to(torch.int8)
    return x, (torch.arange(7 * 192).view(7, 192) * 151 % 256 - 128).to(torch.int8)


def _product(streams: Streams) -> Answer:
    """Exact sums; by way of a site's own grid, and of one that is left float."""
    (x, w), one = _factors(), torch.tensor(1.0)
    extreme = torch.full((1, 192), -128, dtype=torch.int8)
    return {
        "rows": int8_linear(x, w),
        "one row": int8_linear(x[:1], w),
        "extremes": int8_linear(extreme, torch.cat([extreme, -1 - extreme])),
        "site": site_grid.SymmetricGrid(one, 8).product(x, weights.QuantizedTensor(w, one)).int(),
        "float": site_grid.Unquantized().product(x.float(), weights.QuantizedTensor(w, one)).int(),
    }


def _asymmetric_product(streams: Streams) -> Answer:
    (x, w), one = _factors(), torch.tensor(1.0)
    shifted = site_grid.AsymmetricGrid(one, torch.tensor(-3.0), 8)
    return {"shifted": shifted.product(x, weights.QuantizedTensor(w, one)).int()}
