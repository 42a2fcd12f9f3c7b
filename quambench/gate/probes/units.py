"""Probes of the units that know nothing of models: grid, rotation, weights, layout, observers, INT8 product.

Units are looked up when they are asked, through their modules and registries, so that whatever is
there then is what answers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from quambench.errors import NonFinite, SiteUnseen
from quambench.gate.probes.base import Answer, Probe, Streams
from quambench.observers import OBSERVERS, ObserverSpec
from quambench.quant import grid, hadamard, quantized, weights
from quambench.quant.granularity import GRANULARITIES

BITS = (8, 6, 4, 2)
# Both sides of rotate's two-factor split, and each family: 2^k, 12 * 2^k, 40 * 2^k.
ROTATIONS = (1, 2, 4, 8, 12, 24, 40, 48, 80, 160, 512)
# Beside every observer's defaults.
VARIANTS = {
    "percentile": ("percentile[alpha=0.9]", "percentile[alpha=1.0,sigma=0.3]", "percentile[alpha=0.999,sigma=0.05]")
}


def probes() -> Iterator[Probe]:
    """In order of dependence: what comes later is built on what came before."""
    yield Probe("grid/scale", _scale)
    for name in grid.ROUNDINGS:
        yield Probe(f"grid/{name}", lambda streams, name=name: _round(streams, name))  # type: ignore[misc]
    yield Probe("grid/dequantize", _dequantize)
    yield Probe("grid/clipped_share", _clipped)
    for n in ROTATIONS:
        yield Probe(f"hadamard/{n}", lambda streams, n=n: _rotate(n))  # type: ignore[misc]
    yield Probe("weights/tensor", lambda s: _weight(lambda *bits: weights.quantize_tensor(s["weights"], *bits)))
    yield Probe("weights/rows", lambda s: _weight(lambda *bits: weights.quantize_rows(s["weights"], *bits)))
    yield Probe(
        "weights/splits",
        lambda s: _weight(lambda *bits: weights.quantize_splits(s["weights"], (1, 4, 2, 5), *bits)),
    )
    for name in GRANULARITIES:
        yield Probe(f"granularity/{name}", lambda streams, name=name: _lay_out(streams, name))  # type: ignore[misc]
    yield Probe("site", _site)
    for name in OBSERVERS:
        for spec in (name, *VARIANTS.get(name, ())):
            yield Probe(f"observer/{spec}", lambda streams, spec=spec: _observe(streams, spec))  # type: ignore[misc]
    yield Probe("int8_linear", _product)


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
    share = grid.clipped_share(streams["ties"], torch.tensor(0.5))
    return {"values": torch.tensor(round(share * streams["ties"].numel()))}


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


def _lay_out(streams: Streams, name: str) -> Answer:
    """Which value goes where, by values that say where they came from; and which scale meets which value."""
    granularity = GRANULARITIES[name]
    answer: dict[str, Tensor | list[str]] = {}
    # As many positions as channels: there a scale on the wrong axis broadcasts too.
    for what, shape in (("activation", (1, 3, 4)), ("state", (1, 2, 3, 4)), ("square", (1, 4, 4))):
        x = torch.arange(torch.Size(shape).numel()).view(shape)
        laid_out = granularity.lay_out(x)
        answer[f"{what} order"] = laid_out.int()
        answer[f"{what} shape"] = torch.tensor(laid_out.shape)
        scale = 1 + torch.arange(laid_out[0, ..., 0].numel()).view(laid_out.shape[1:-1])
        answer[f"{what} scales"] = granularity.expand(scale, x).expand(x.shape).int()
    return answer


def _site(streams: Streams) -> Answer:
    """Ties by way of a site's own grid; per channel, at scales that divide exactly."""
    ties, every = streams["ties"], torch.arange(-128, 128).to(torch.int8)
    answer: dict[str, Tensor | list[str]] = {}
    for bits in (8, 4):
        one = quantized.SiteGrid(torch.tensor(0.5), "tensor", bits)
        answer[f"{bits} bits"], answer[f"{bits} bits, back"] = one.quantize(ties), one.dequantize(every)
    channels = quantized.SiteGrid(torch.tensor([0.25, 0.5, 1.0, 2.0]), "channel", 8)
    answer["per channel"] = channels.quantize(ties[3::4][:256].view(1, -1, 4))
    answer["per channel, back"] = channels.dequantize(every.view(1, -1, 4))
    return answer


def _observe(streams: Streams, spec: str) -> Answer:
    """Scales after batches of (n_obs, *scale_shape, group), for one scale and for one per channel."""
    answer: dict[str, Tensor | list[str]] = {}
    for name, batches in streams.items():
        if name.startswith("batches/"):
            for granularity in GRANULARITIES:
                observer = ObserverSpec.parse(spec).build()
                for batch in batches.unbind(0):
                    observer.update(GRANULARITIES[granularity].lay_out(batch[None]))
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


def _product(streams: Streams) -> Answer:
    """Exact sums that overflow 16 bits, -128 among the factors."""
    x = (torch.arange(5 * 192).view(5, 192) * 89 % 256 - 128).to(torch.int8)
    w = (torch.arange(7 * 192).view(7, 192) * 151 % 256 - 128).to(torch.int8)
    extreme = torch.full((1, 192), -128, dtype=torch.int8)
    return {
        "rows": quantized.int8_linear(x, w),
        "one row": quantized.int8_linear(x[:1], w),
        "extremes": quantized.int8_linear(extreme, torch.cat([extreme, -1 - extreme])),
    }
