"""Probes of observers and weights at sizes and in forms that no bundled model has.

More values than are counted at a time, more scales than are searched at a time, ranges that grow by more octaves than
a histogram keeps, halves that are joined, observers that were saved; weights at every granularity and width. Numbers
come from formulas, so that none of them is stored.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import product

import torch
from torch import Tensor

from quambench.core.errors import BadParameter
from quambench.gate.probes.base import Answer, Probe, floats, told
from quambench.gate.probes.resting import all_of, by_gptq, observed_by, of_weights
from quambench.grids.precision import Bits
from quambench.int8 import gptq
from quambench.int8.recipe import GRANULARITIES, WeightQuantizer, WeightRecipe
from quambench.int8.weights import Weight
from quambench.observers import OBSERVERS, ObserverSpec

MANY = 2**17 + 1027  # values of one scale: more than are counted, or summed, at a time
SCALES = 40  # more than are searched at a time, by any observer
COARSE = 300  # scales with so few bins each that a histogram has fewer digits
BITS = 4  # of halves, whose grid does not matter
SEARCHES = ("running_max", "percentile[alpha=0.9]", "mse[low=0.5,steps=5]")
QUICK = {"mse": "mse[steps=2]", "entropy": "entropy[steps=2]"}  # where there are so many bins
WIDTHS = (Bits(8, 8), Bits(4, 8), Bits(8, 16), Bits(16, 8))
# A group of 128 inputs, another, and a last of 44.
INPUTS, SPLITS = 300, (1, 4, 2, 5)


def probes() -> Iterator[Probe]:
    for name in OBSERVERS:
        yield Probe(f"observer/{name}/sizes", lambda _, n=name: _sizes(n), rests=observed_by(name))  # type: ignore[misc]
        yield Probe(f"observer/{name}/halves", lambda _, n=name: _halves(n), rests=observed_by(name))  # type: ignore[misc]
    for granularity, observer in product(GRANULARITIES, SEARCHES):
        yield Probe(
            f"weights/recipe/{granularity}/{observer}",
            lambda _, g=granularity, o=observer: _weights(g, o),  # type: ignore[misc]
            rests=all_of(of_weights(granularity), observed_by(observer)),
        )
    yield Probe("gptq/groups", lambda _: _gptq(), rests=by_gptq)


def _sizes(name: str) -> Answer:
    """Scales after batches of many values for one scale, laid out either way; and for many scales."""
    spec, answer = ObserverSpec(name), {}
    values = floats(MANY)
    values[-900:] *= 1.5  # what a last, shorter piece holds counts
    values[-3] = -3.0
    for layout, lay_out in _LAYOUTS.items():
        observer = spec.build()
        for growth in (1.0, 40.0, 0.001):
            observer.update(lay_out(values * growth))
        answer[layout] = observer.scale()
    observer = spec.build()
    for exponent in (0, 5, 25, -20):  # one octave after another, more than a histogram keeps, and back
        observer.update(floats(90, 1) * 2.0**exponent)
    answer["growing ranges"] = observer.scale()
    for scales, bits, of in (
        (SCALES, 4 if name == "kl" else 8, spec),
        (COARSE, 2, ObserverSpec.parse(QUICK.get(name, name))),
    ):
        observer, loudness = of.build(bits), 1 + torch.arange(scales)[:, None] % 7
        for turn in (0.7548, 0.5698):
            observer.update(floats(30, scales, 3, turn=turn) * loudness)
        found = observer.scale()
        answer[f"{scales} scales, {bits} bits"] = found[:: max(scales // 20, 1)]
        answer[f"{scales} scales, {bits} bits, mean"] = found.double().mean().float()
    return answer


_LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "observations": lambda x: x[:, None],
    "a group": lambda x: x[None],
    "observations of three scales": lambda x: x[: len(x) // 3 * 3].view(-1, 3, 1),
}


def _halves(name: str) -> Answer:
    """Scales of observers that took in another's batches, and of those that were saved and go on."""
    spec, answer = ObserverSpec(name), {}
    batches = [floats(50, 4, 3, turn=turn) * growth for turn, growth in ((0.7548, 1.0), (0.5698, 3.0), (0.8192, 0.5))]
    batches[0][:, 1] *= 20  # of one scale the first has the largest

    def seen(*some: Tensor) -> object:
        observer = spec.build(BITS)
        for batch in some:
            observer.update(batch)
        return observer

    first, whole = seen(batches[0]), seen(*batches)
    again = spec.build(BITS)
    again.load_state_dict(first.state_dict())  # type: ignore[attr-defined]
    for batch in batches[1:]:
        again.update(batch)
    answer["saved, then two more"], answer["at once"] = again.scale(), whole.scale()  # type: ignore[attr-defined]
    words = []
    for what, one, other in (
        ("the larger later", seen(batches[0]), seen(*batches[1:])),
        ("the larger first", seen(*batches[1:]), seen(batches[0])),
        ("nothing later", seen(*batches), seen()),
        ("nothing first", seen(), seen(*batches)),
    ):
        try:
            one.absorb(other)  # type: ignore[attr-defined]
        except BadParameter:
            words.append(f"{what}: refused")
            continue
        answer[what] = one.scale()  # type: ignore[attr-defined]
        words.append(f"{what}: {one.n_batches} batches")  # type: ignore[attr-defined]
    return answer | {"joined": words}


def _matrix(rows: int, columns: int) -> Tensor:
    """Rows of other loudness, and one of zeros."""
    loudness = (torch.arange(rows) % 5)[:, None].double() ** 2
    return floats(rows, columns, turn=0.7548, dtype=torch.float64) * loudness


def _weights(granularity: str, observer: str) -> Answer:
    """Quantize each kind of weight at each width, with and without parts."""
    answer: dict[str, Tensor | list[str]] = {}
    kinds: list[str] = []
    widths = WIDTHS if granularity != "group" else (*WIDTHS[1:2], Bits(4, 16))
    for bits in widths if observer in SEARCHES[:2] else WIDTHS[1:2]:
        made = WeightQuantizer(WeightRecipe(observer=ObserverSpec.parse(observer), granularity=granularity), bits)
        wide, narrow, flat = _matrix(sum(SPLITS), INPUTS), _matrix(sum(SPLITS), 4), _matrix(sum(SPLITS), 1)[:, 0]
        for what, found in (
            ("projection", made.projection("in_proj.weight", wide)),
            ("projection in parts", made.projection("in_proj.weight", wide, SPLITS)),
            ("projection in parts, as usual", made.projection("in_proj.weight", wide, SPLITS, True)),
            ("narrow", made.narrow(narrow)),
            ("narrow in parts, as usual", made.narrow(narrow, SPLITS, True)),
            ("other", made.other(flat)),
            ("other in parts", made.other(flat, SPLITS)),
            ("rows", made.rows(narrow)),
            ("rows of 4 bits", made.rows(narrow, 4)),
            ("rows left float", made.rows(narrow, 16)),
        ):
            name = f"{bits}, {what}"
            answer |= _kept(name, found)
            kinds.append(f"{name}: {type(found).__name__}")
    return answer | {"kinds": kinds}


def _kept(name: str, weight: Weight) -> Answer:
    q = weight.q * 2.0**20 if weight.q.is_floating_point() else weight.q
    whole = weight.dequantize().double().abs().sum().float()
    return {name: told(q.double().round()), f"{name}, scales": weight.scale.flatten()[:8], f"{name}, sum": whole}


def _gptq() -> Answer:
    """More groups than one, the last short; inputs that were always 0."""
    weight = _matrix(6, INPUTS)
    x = floats(400, INPUTS, turn=0.5698, dtype=torch.float64)
    x[:, 5::50] = 0.0
    hessian = gptq.accumulate(gptq.accumulate(torch.zeros(INPUTS, INPUTS, dtype=torch.float64), x[:250]), x[250:])
    made = WeightQuantizer(WeightRecipe(granularity="group", gptq=True), Bits(4, 8), {"lm_head.weight": hessian})
    found = gptq.gptq(weight, hessian)
    return {
        "q": told(found.q),
        "steps": found.steps,
        "dead": found.q[:, 5::50],
        **_kept("lm_head.weight", made.projection("lm_head.weight", weight)),
    }
