"""Probes of what a whole model goes through: policy, fusing, calibration, prefill and step.

Two models small enough to read, with weights from the streams file: two layers, two SSD groups, gains
that are not 1, biases, a chunk shorter than the sequence.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from quambench import calibrate as calibrating
from quambench.gate.probes.base import Answer, Probe, Streams
from quambench.models import LanguageModel, ModelConfig, build
from quambench.models.backbone import Tap
from quambench.observers import ObserverSpec
from quambench.policy import POLICIES
from quambench.quant import fuse, quantized

CONFIGS = {
    "mamba": ModelConfig(architecture="mamba", d_model=8, n_layers=2, vocab_size=16, d_state=3, dt_rank=2),
    "mamba2": ModelConfig(
        architecture="mamba2", d_model=8, n_layers=2, vocab_size=16, d_state=3, head_dim=4, n_groups=2, chunk_size=3
    ),
}
OBSERVERS = ("percentile[alpha=0.95,sigma=0.2]", "running_max")
PREFIX, STEPS = 5, 3  # tokens of prefill, then of decoding


def probes() -> Iterator[Probe]:
    for policy in POLICIES:
        for kind in CONFIGS:
            yield Probe(f"policy/{policy}/{kind}", lambda s, p=policy, k=kind: _plan(p, k))  # type: ignore[misc]
    for kind in CONFIGS:
        yield Probe(f"fuse/{kind}", lambda s, k=kind: _fused(s, k))  # type: ignore[misc]
    for kind in CONFIGS:
        for observer in OBSERVERS:
            name = f"calibration/{kind}/{observer}"
            yield Probe(name, lambda s, k=kind, o=observer: _calibrated(s, k, o))  # type: ignore[misc]
    for kind in CONFIGS:
        yield Probe(f"step/{kind}", lambda s, k=kind: stepped(s, k))  # type: ignore[misc]


@dataclass(frozen=True, slots=True)
class FixedScales:
    """Scales from the streams file, so that a fault in calibration leaves the step's probe alone."""

    scales: Mapping[str, Tensor]
    granularities: Mapping[str, str]


def model_of(streams: Streams, kind: str) -> LanguageModel:
    """The tiny model of an architecture."""
    prefix = f"{kind}/weight/"
    model = build(CONFIGS[kind])
    stored = {k.removeprefix(prefix): v for k, v in streams.items() if k.startswith(prefix)}
    model.load_state_dict(stored, strict=False)  # lm_head is tied to the embedding
    return model.eval().requires_grad_(False)


def _plan(policy: str, kind: str) -> Answer:
    plan = POLICIES[policy](CONFIGS[kind], ObserverSpec("percentile"))
    return {"sites": [f"{site}: {a.observer.complete} per {a.granularity}" for site, a in plan.items()]}


def _fused(streams: Streams, kind: str) -> Answer:
    """Integer weights and scales of the prepared model, and by how many millionths its logits moved: 0."""
    model = model_of(streams, kind)
    prepared = fuse.prepare(model)
    made = quantized.QuantizedModel(prepared, scales_of(streams, kind), quantized.Precision())
    moved = prepared(streams["sequences"])[0] - model.double()(streams["sequences"])[0]
    answer: dict[str, Tensor | list[str]] = {"logits, moved by": (moved * 1e6).round().int()}
    for name, weight in made.weights().items():
        answer[f"{name} scale"], answer[name] = weight.scale.flatten(), weight.q
    return answer


def _calibrated(streams: Streams, kind: str, observer: str) -> Answer:
    prepared = fuse.prepare(model_of(streams, kind))
    plan = POLICIES["quamba"](CONFIGS[kind], ObserverSpec.parse(observer))
    made = calibrating.calibrate(prepared, streams["sequences"], {observer: (plan, 8)}, "probe")[observer]
    return dict(made.scales)


def scales_of(streams: Streams, kind: str) -> FixedScales:
    prefix = f"{kind}/scale/"
    found = {k.removeprefix(prefix): v for k, v in streams.items() if k.startswith(prefix)}
    order = POLICIES["quamba"](CONFIGS[kind], ObserverSpec("running_max"))
    return FixedScales({s: found[s] for s in order}, dict.fromkeys(order, "tensor"))


def stepped(streams: Streams, kind: str) -> Answer:
    """Integers at every site, of a prefill and of each decoding step after it."""
    scales = scales_of(streams, kind)
    made = quantized.QuantizedModel(fuse.prepare(model_of(streams, kind)), scales, quantized.Precision())
    answer: dict[str, Tensor | list[str]] = {}

    def tap_of(call: str) -> Tap:
        def tap(site: str, x: Tensor) -> Tensor:
            answer[f"{call}, {site}"] = (x / scales.scales[site]).round().int()
            return x

        return tap

    with torch.inference_mode():
        tokens = streams["sequences"][:2, : PREFIX + STEPS]
        logits, state = made(tokens[:, :PREFIX], tap=tap_of("prefill"))
        answer["prefill, next tokens"] = logits.argmax(-1).int()
        for t in range(PREFIX, PREFIX + STEPS):
            logits, state = made(tokens[:, t : t + 1], state, tap=tap_of(f"step {t - PREFIX + 1}"))
            answer[f"step {t - PREFIX + 1}, next tokens"] = logits.argmax(-1).int()
    return answer
