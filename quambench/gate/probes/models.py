"""Probes of what a whole model goes through: policy, fusing, calibration, prefill and step.

Five models small enough to read, with weights from the streams file and gains that are not 1. Three have two
layers and biases of every projection and convolution, and Mamba2's have two SSD groups and a chunk shorter
than the sequence. "mamba2-options" turns on what no bundled model uses: the gated norm before the gate, D per
channel, limits of dt that cut some values at either end. The "bare" ones have one layer, no bias, a head of
their own, one SSD group, an eps as large as the squares, and widths that neither vectors nor powers of two
divide.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from quambench_kernels import dispatch
from torch import Tensor

from quambench.calibration import collect as calibrating
from quambench.calibration.refine import RefinementSpec
from quambench.gate.probes.base import Answer, Probe, Streams
from quambench.gate.probes.resting import (
    Rests,
    all_of,
    asymmetric,
    calibrated_here,
    every_case,
    finer,
    observed_by,
    of_kind,
    refined_by,
    under_policy,
)
from quambench.grids.granularity import GROUPS, groups_at, layout
from quambench.grids.precision import Precision
from quambench.grouping import Groups
from quambench.int8 import fuse
from quambench.int8 import model as quantized
from quambench.int8.ops import Disturb, undisturbed
from quambench.int8.site_grid import SymmetricGrid
from quambench.models import LanguageModel, ModelConfig, build
from quambench.models.backbone import Tap, no_tap
from quambench.models.sites import sites_of
from quambench.observers import ObserverSpec
from quambench.policy import POLICIES, PolicySpec
from quambench.policy.base import PER_TENSOR, groupings
from quambench.policy.quamba import Quamba

_SMALL: dict[str, Any] = dict(d_model=8, n_layers=2, vocab_size=16, d_state=3, proj_bias=True)
_BARE: dict[str, Any] = dict(d_model=12, n_layers=1, vocab_size=16, d_state=5, conv_width=3, conv_bias=False,
                            norm_eps=0.1, tie_embeddings=False)  # fmt: skip
_MAMBA2 = _SMALL | dict(head_dim=4, n_groups=2, chunk_size=3)
# "<architecture>" or "<architecture>-<variant>": what a probe's name says of the cases that rest on it.
CONFIGS = {
    "mamba": ModelConfig(architecture="mamba", dt_rank=2, **_SMALL),
    "mamba2": ModelConfig(architecture="mamba2", **_MAMBA2),
    "mamba2-options": ModelConfig(
        architecture="mamba2", **_MAMBA2, norm_before_gate=True, d_per_channel=True, dt_min=0.005, dt_max=0.1
    ),
    "mamba-bare": ModelConfig(architecture="mamba", dt_rank=3, **_BARE),
    "mamba2-bare": ModelConfig(architecture="mamba2", head_dim=3, n_groups=1, chunk_size=256, **_BARE),
}
BARE = ("mamba-bare", "mamba2-bare")
ARCHITECTURES = ("mamba", "mamba2")
OBSERVERS = ("percentile[alpha=0.95,sigma=0.2]", "running_max")
# Beside every policy's defaults.
VARIANTS = ("first_middle_last[first=0.9,middle=0.8,last=0.7]", "scale_multiplier[factor=0.5,layers=last]",
            "sensitivity[budget=3,floats=1]")  # fmt: skip
# Which of calibration's ways: per tensor, as fine as sites allow, asymmetric.
ON_SCALES: dict[str, Rests] = {"": every_case, "/finest": finer, "/asymmetric": asymmetric}
CALIBRATIONS = tuple(ON_SCALES)
REFINED = ("learned[steps=6,every=2,piece=3]", "learned[loss=nll,steps=6,every=2,piece=3]", "adaround[steps=6,every=2]")
PREFIX, STEPS = 5, 3  # tokens of prefill, then of decoding
PIECES = (1, 2, 3, 1)  # tokens of calls that go on from one another; fewer than the convolution looks back, and more
USUAL = Precision()
# Bits that are nobody's default; embedding and lm_head stay float, so that their float branches are asked.
LOW = Precision(weight_bits=4, act_bits=4, embedding=False, lm_head=False)
LOW_STEPS = 1
LOGITS = torch.tensor(0.125)  # logits are told in eighths: the quotient is exact


def probes() -> Iterator[Probe]:
    for policy in (*POLICIES, *VARIANTS):
        for kind in ARCHITECTURES if not PolicySpec.parse(policy).found().groups else ("mamba2",):
            yield Probe(
                f"policy/{policy}/{kind}",
                lambda s, p=policy, k=kind: _plan(p, k),  # type: ignore[misc]
                rests=all_of(calibrated_here, under_policy(policy), of_kind(kind)),
            )
    for kind in CONFIGS:
        yield Probe(f"float/{kind}", lambda s, k=kind: _float(s, k), rests=of_kind(kind))  # type: ignore[misc]
    for kind in CONFIGS:
        yield Probe(f"fuse/{kind}", lambda s, k=kind: _fused(s, k), rests=of_kind(kind))  # type: ignore[misc]
    for kind in CONFIGS:
        for observer in OBSERVERS[1:] if kind in BARE else OBSERVERS:
            for variant in CALIBRATIONS[:1] if kind in BARE else CALIBRATIONS:
                name = f"calibration/{kind}/{observer}{variant}"
                yield Probe(
                    name,
                    lambda s, k=kind, o=observer, v=variant: _calibrated(s, k, o, v),  # type: ignore[misc]
                    rests=all_of(calibrated_here, of_kind(kind), observed_by(observer), ON_SCALES[variant]),
                )
    for kind in ARCHITECTURES:
        for name in REFINED:
            yield Probe(
                f"refine/{name}/{kind}",
                lambda s, k=kind, n=name: _refined(s, k, n),  # type: ignore[misc]
                rests=all_of(refined_by(name), of_kind(kind)),
            )
    for kind in ARCHITECTURES:
        yield Probe(f"step/{kind}/state", lambda s, k=kind: _state(s, k), rests=of_kind(kind))  # type: ignore[misc]
    for kind in CONFIGS:
        yield Probe(f"step/{kind}/parameters", lambda s, k=kind: _parameters(s, k), rests=of_kind(kind))  # type: ignore[misc]
    for kind in CONFIGS:
        yield Probe(f"step/{kind}", lambda s, k=kind: stepped(s, k), rests=of_kind(kind))  # type: ignore[misc]
    for kind in BARE:
        yield Probe(f"step/{kind}/pieces", lambda s, k=kind: in_pieces(s, k), rests=of_kind(kind))  # type: ignore[misc]
    for kind in ARCHITECTURES:
        name = f"step/{kind}/{LOW.id}"
        yield Probe(name, lambda s, k=kind: stepped(s, k, LOW, LOW_STEPS), rests=of_kind(kind))  # type: ignore[misc]


@dataclass(frozen=True, slots=True)
class FixedScales:
    """Scales from the streams file, so that a fault in calibration leaves the step's probe alone."""

    scales: Mapping[str, Tensor]
    granularities: Mapping[str, str]
    groups: Mapping[int, Groups] = field(default_factory=dict)


def model_of(streams: Streams, kind: str) -> LanguageModel:
    """The tiny model of an architecture."""
    prefix = f"{kind}/weight/"
    model = build(CONFIGS[kind])
    stored = {k.removeprefix(prefix): v for k, v in streams.items() if k.startswith(prefix)}
    model.load_state_dict(stored, strict=False)  # where lm_head is tied to the embedding, it is not stored
    return model.eval().requires_grad_(False)


def _plan(policy: str, kind: str) -> Answer:
    """What each site is assigned, per tensor and where all take the finest; by costs that say who is worst."""
    made = PolicySpec.parse(policy).build()
    config = CONFIGS[kind]
    costs = {  # site -> remedy -> cost: the later the site the worse; the remedies help in turn
        site: {"usual": i + 1.0, "multiplier": i + 0.5 + i % 2, "finer": i + 0.5 + (i + 1) % 3}
        for i, site in enumerate(sites_of(config))
    }
    answer: dict[str, Tensor | list[str]] = {}
    finest = () if made.measures else (("finest", "channel" if made.groups else groupings()[-1]),)
    for name, grouping in (("sites", PER_TENSOR), *finest):
        plan = made.plan(config, ObserverSpec("percentile"), grouping, costs if made.measures else None)
        answer[name] = [f"{site}: {a.observer.complete} per {a.granularity}" for site, a in plan.items()]
    return answer


def _float(streams: Streams, kind: str) -> Answer:
    """The float model's logits in millionths, of whole sequences and of pieces that go on from one another."""
    model, tokens = model_of(streams, kind).double(), streams["sequences"][:2, : sum(PIECES)]
    parts, state = [], None
    for piece in tokens.split(list(PIECES), dim=1):
        logits, state = model(piece, state)
        parts.append(logits)
    return {
        name: (logits * 1e6).round().int()
        for name, logits in (("whole", model(tokens)[0]), ("pieces", torch.cat(parts, 1)))
    }


def _fused(streams: Streams, kind: str) -> Answer:
    """Integer weights and scales of the prepared model, and by how many millionths its logits moved: 0.

    At 4 bits the scales alone: the integers are the business of weights' probes.
    """
    model = model_of(streams, kind)
    prepared = fuse.prepare(model)
    made = quantized.quantize_model(prepared, scales_of(streams, kind), USUAL)
    moved = prepared(streams["sequences"])[0] - model.double()(streams["sequences"])[0]
    answer: dict[str, Tensor | list[str]] = {"logits, moved by": (moved * 1e6).round().int()}
    for name, weight in made.weights().items():
        answer[f"{name} scale"], answer[name] = weight.scale.flatten(), weight.q
    low = quantized.quantize_model(prepared, scales_of(streams, kind), Precision(weight_bits=4))
    return answer | {f"4 bits, {name} scale": weight.scale.flatten() for name, weight in low.weights().items()}


def _calibrated(streams: Streams, kind: str, observer: str, variant: str) -> Answer:
    prepared = fuse.prepare(model_of(streams, kind))
    grouping = groupings()[-1] if variant == "/finest" else PER_TENSOR
    plan = Quamba().plan(CONFIGS[kind], ObserverSpec.parse(observer), grouping)
    task = calibrating.Task(plan, 8, symmetric=variant != "/asymmetric")
    return dict(calibrating.calibrate(prepared, streams["sequences"], {"": task}, "probe")[""].scales)


def _refined(streams: Streams, kind: str, name: str) -> Answer:
    """Scales at 4 bits after some steps, from a start that is good for none."""
    prepared = fuse.prepare(model_of(streams, kind))
    plan = Quamba().plan(CONFIGS[kind], ObserverSpec("running_max"), PER_TENSOR)
    tokens = streams["sequences"]
    task = calibrating.Task(plan, 4)
    start = calibrating.calibrate(prepared, tokens, {"": task}, "probe")[""]
    model = quantized.quantize_model(prepared, start, Precision(act_bits=4))
    found = RefinementSpec.parse(name).build().refine(prepared, model, start, tokens)
    return {**found.calibration.scales, "best step": torch.tensor(found.best_step)}


def scales_of(streams: Streams, kind: str, bits: int = 8) -> FixedScales:
    """The stored scales, which are for 8 bits, or those that span the same range with fewer."""
    prefix = f"{kind}/scale/"
    widening = 127 / (2 ** (bits - 1) - 1)
    found = {k.removeprefix(prefix): v * widening for k, v in streams.items() if k.startswith(prefix)}
    order = sites_of(CONFIGS[kind])
    return FixedScales({s: found[s] for s in order}, dict.fromkeys(order, "tensor"))


def _state(streams: Streams, kind: str) -> Answer:
    """Ties through the state that a block carries from step to step, at scale 0.5; a float one stays itself."""
    fixed = scales_of(streams, kind)
    halves = FixedScales({s: torch.tensor(0.5) for s in fixed.scales}, fixed.granularities)
    prepared = fuse.prepare(model_of(streams, kind))
    ties = streams["ties"].view(1, *[1] * (prepared.blocks[0].mixer.empty_state(1).ssm.ndim - 3), -1, 1)
    every = torch.arange(-128, 128).to(torch.int8).view(1, *ties.shape[1:-2], -1, 1)
    answer: dict[str, Tensor | list[str]] = {}
    for bits in (8, 4):
        block = quantized.quantize_model(prepared, halves, Precision(act_bits=bits)).blocks[1]
        answer[f"{bits} bits, stored"] = block.store_state(ties, no_tap)
        answer[f"{bits} bits, read"] = block.read_state(every)
    block = quantized.quantize_model(prepared, halves, Precision(ssm_state=False)).blocks[1]
    carried = block.read_state(block.store_state(ties, no_tap))
    answer["float, values that changed"] = (carried != ties).sum()
    return answer


def stepped(
    streams: Streams,
    kind: str,
    precision: Precision = USUAL,
    steps: int = STEPS,
    scales: FixedScales | None = None,
    disturb: Disturb = undisturbed,
) -> Answer:
    """Integers at every site, of a prefill and of each decoding step after it, and the logits in eighths.

    disturb  anything else than the default lets the model go through its grids, not through the kernels
    """
    scales = scales or scales_of(streams, kind, precision.act_bits)
    prepared = fuse.prepare(model_of(streams, kind), scales.groups)
    made = quantized.quantize_model(prepared, scales, precision, disturb)
    met = {site: _met(site, scales, CONFIGS[kind]) for site in scales.scales}
    eighths = SymmetricGrid(LOGITS, 8)
    answer: dict[str, Tensor | list[str]] = {}

    def tap_of(call: str) -> Tap:
        def tap(site: str, x: Tensor) -> Tensor:
            answer[f"{call}, {site}"] = (x / met[site]).round().int()
            return x

        return tap

    with torch.inference_mode():
        tokens = streams["sequences"][:2, : PREFIX + steps]
        logits, state = made(tokens[:, :PREFIX], tap=tap_of("prefill"))
        answer["prefill, logits"] = eighths.quantize(logits)
        for t in range(PREFIX, PREFIX + steps):
            logits, state = made(tokens[:, t : t + 1], state, tap=tap_of(f"step {t - PREFIX + 1}"))
            answer[f"step {t - PREFIX + 1}, logits"] = eighths.quantize(logits)
    return answer


def in_pieces(streams: Streams, kind: str, disturb: Disturb = undisturbed) -> Answer:
    """The INT8 model's logits in eighths, and the state that is carried, call after call."""
    scales = scales_of(streams, kind)
    made = quantized.quantize_model(fuse.prepare(model_of(streams, kind)), scales, USUAL, disturb)
    eighths, answer, state = SymmetricGrid(LOGITS, 8), {}, None
    with torch.inference_mode():
        for i, piece in enumerate(streams["sequences"][2:3, : sum(PIECES)].split(list(PIECES), dim=1)):
            logits, state = made(piece, state)
            answer[f"call {i + 1}, logits"] = eighths.quantize(logits)
            answer |= {f"call {i + 1}, layer {layer}": one.ssm for layer, one in enumerate(state)}
    return answer


# Operator -> where its parameters stand among what an implementation is called with.
_GIVEN = {
    "int8_causal_conv1d": {"weight": 2, "bias": 3},
    "int8_selective_scan": {"D": 9, "dt_bias": 10},
    "int8_ssd": {"D": 9, "dt_bias": 10},
    "rms_norm_quantize": {"gain": 5},
}


def _parameters(streams: Streams, kind: str) -> Answer:
    """What the runtime hands to its operators beside activations, as floats: Mamba2's dt_bias in half precision."""
    made = quantized.quantize_model(fuse.prepare(model_of(streams, kind)), scales_of(streams, kind), USUAL)
    answer: dict[str, Tensor | list[str]] = {}

    def watch(run: Any, *args: Any, op: str) -> Any:
        for name, at in _GIVEN[op].items():
            if args[at] is not None:
                answer[f"{op}, {name}, {len(answer)}"] = args[at]
        if op == "rms_norm_quantize":
            answer[f"{op}, eps, {len(answer)}"] = torch.tensor(args[6])
        return run(*args)

    with ExitStack() as stack, torch.inference_mode():
        for op in _GIVEN:
            stack.enter_context(dispatch.around(op, partial(watch, op=op)))
        made(streams["sequences"][:1, :2])
    return answer


def _met(site: str, scales: FixedScales, config: ModelConfig) -> Tensor:
    """The scale as it meets the site's tensor."""
    if scales.granularities[site] != GROUPS:
        return scales.scales[site]
    return layout(GROUPS, site, config, groups_at(site, scales.groups)).expand(scales.scales[site])
