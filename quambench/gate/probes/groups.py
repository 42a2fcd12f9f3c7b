"""Probes of groups of heads and channels: clustering, reordering, a scale per group from calibration to step."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from quambench.calibration import channels as arranging
from quambench.calibration import collect as calibrating
from quambench.gate.probes.base import Answer, Probe, Streams
from quambench.gate.probes.models import CONFIGS, USUAL, FixedScales, model_of, scales_of, stepped
from quambench.gate.probes.resting import (
    all_of,
    calibrated_here,
    clustered_by,
    divided_by,
    in_groups,
    in_groups_that_look,
    observed_by,
    of_kind,
)
from quambench.grids.granularity import GROUPS, layout
from quambench.grouping import ChannelStatistics, GroupingSpec, Groups, cluster
from quambench.int8 import fuse
from quambench.int8 import model as quantized
from quambench.int8 import reorder as reordering
from quambench.models import build
from quambench.models.config import ModelConfig
from quambench.observers import ObserverSpec
from quambench.policy.quamba2 import Quamba2

# Four heads in each of two SSD groups, six channels in each; two layers of different loudness.
CLUSTERED = ModelConfig(architecture="mamba2", d_model=24, n_layers=2, vocab_size=8, d_state=3, head_dim=6, n_groups=2)
# Three heads in each of two SSD groups, three channels in each head: orders that are not their own inverse.
IN_THREES = ModelConfig(
    architecture="mamba2", d_model=9, n_layers=1, vocab_size=8, d_state=1, head_dim=3, n_groups=2, proj_bias=True
)
NUMBERS = ("1x1", "2x2", "2x3", "4x6", "3x4")
KINDS = ("mamba2", "mamba2-options")
OBSERVERS = ("running_max", "percentile[alpha=0.95,sigma=0.2]", "mse")


def probes() -> Iterator[Probe]:
    for method in cluster.METHODS:
        yield Probe(
            f"cluster/{method}",
            lambda _, m=method: _clustered([f"{n}[method={m}]" for n in NUMBERS]),  # type: ignore[misc]
            rests=clustered_by(method),
        )
    for rule in ("error", "variance"):
        yield Probe(
            f"adaptive/{rule}",
            lambda _, r=rule: _clustered([f"adaptive[rule={r},base={b}]" for b in (2, 4)]),  # type: ignore[misc]
            rests=divided_by(rule),
        )
    for name in ("1x1", "head", "channel"):
        yield Probe(f"cluster/{name}", lambda _, n=name: _clustered([n]), rests=clustered_by(name))  # type: ignore[misc]
    yield Probe("cluster/statistics", _statistics, rests=in_groups_that_look)
    yield Probe(
        "granularity/mamba2/groups", lambda _: _lay_out(), rests=all_of(calibrated_here, of_kind("mamba2"), in_groups)
    )
    yield Probe("reorder/mamba2/tensors", lambda _: _moved(), rests=all_of(of_kind("mamba2"), in_groups))
    for kind in KINDS:
        yield Probe(f"reorder/{kind}", lambda s, k=kind: _reordered(s, k), rests=all_of(of_kind(kind), in_groups))  # type: ignore[misc]
    for observer in OBSERVERS:
        yield Probe(
            f"calibration/mamba2/{observer}/groups",
            lambda s, o=observer: _calibrated(s, o),  # type: ignore[misc]
            rests=all_of(calibrated_here, of_kind("mamba2"), in_groups, observed_by(observer)),
        )
    for kind in KINDS:
        yield Probe(
            f"step/{kind}/groups",
            lambda s, k=kind: stepped(s, k, scales=fixed_in_groups(s, k)),  # type: ignore[misc]
            rests=all_of(of_kind(kind), in_groups),
        )


def statistics(layer: int) -> ChannelStatistics:
    """Integers, so that sums are exact: some channels equal, one dead, heads of different loudness."""
    base = torch.arange(CLUSTERED.d_inner, dtype=torch.float64)
    spread = (base * 37 + 11 * layer) % 23 % (7 if layer else 20)
    loudness = (1 + (torch.arange(8) * 5 + layer) % 4).repeat_interleave(6)
    mean_abs = spread * loudness
    amax = 2 * mean_abs + (base * 29) % 13
    return ChannelStatistics(mean_abs, amax, amax * (1 + 2 * layer))


def some_groups() -> dict[int, Groups]:
    """Of the models that can be read: four heads of four channels, in two SSD groups; the layers differ."""
    head_sizes = torch.tensor([[1, 1], [1, 1]])
    one = Groups(
        torch.tensor([1, 0, 2, 3]),
        torch.tensor([5, 4, 7, 6, 2, 0, 3, 1, 8, 9, 10, 11, 15, 13, 14, 12]),
        head_sizes,
        torch.tensor([[[1, 3], [2, 2]], [[3, 1], [1, 3]]]),
    )
    other = Groups(
        torch.tensor([0, 1, 3, 2]),
        torch.tensor([3, 2, 1, 0, 4, 5, 6, 7, 12, 14, 13, 15, 9, 11, 8, 10]),
        torch.tensor([[2], [2]]),
        torch.tensor([[[1, 2, 1]], [[2, 1, 1]]]),
    )
    return {0: one, 1: other}


def _statistics(streams: Streams) -> Answer:
    """Of every layer and channel, over the sequences once and twice."""
    model, answer = model_of(streams, "mamba2").double(), {}  # as it stands: preparing it is another unit's business
    tokens = streams["sequences"]
    for name, rows in (("all", tokens), ("twice", torch.cat([tokens, tokens.flip(0)]))):
        for layer, s in arranging.channel_statistics(model, rows).items():
            for what in ("mean_abs", "amax", "energy"):
                answer[f"{name}, layer {layer}, {what}"] = getattr(s, what).float()
    return answer


def _clustered(specs: list[str]) -> Answer:
    """Order and groups, for statistics of two layers."""
    answer: dict[str, Tensor | list[str]] = {}
    seen = {layer: statistics(layer) for layer in range(CLUSTERED.n_layers)}
    for spec in specs:
        for layer, groups in GroupingSpec.parse(spec).build().groups(seen, CLUSTERED).items():
            answer[f"{spec}, layer {layer}, order"] = groups.channel_index.int()
            answer[f"{spec}, layer {layer}, groups"] = groups.of_channel.int()
    return answer


def _lay_out() -> Answer:
    """Which value goes where, by values that say where they came from; and which scale meets which value."""
    answer: dict[str, Tensor | list[str]] = {}
    config = CONFIGS["mamba2"]
    for layer, groups in some_groups().items():
        for site, shape in (("x_conv_out", (1, 2, 16)), ("ssm_state", (2, 4, 4, 3))):
            x = torch.arange(torch.Size(shape).numel()).view(shape)
            met = layout(GROUPS, f"layers.{layer}.{site}", config, groups)
            parts = met.lay_out(x)
            name = f"layer {layer}, {site}"
            answer[f"{name} order"] = torch.cat([part.reshape(-1) for part in parts]).int()
            answer[f"{name} shape"] = torch.tensor([n for part in parts for n in part.shape])
            largest = met.join([part.amax(dim=(0, -1)) for part in parts])
            answer[f"{name} largest"], answer[f"{name} scales"] = largest.int(), met.expand(largest).int()
    return answer


def _moved() -> Answer:
    """Where each value of a layer's tensors stands once its heads and channels have gone round."""
    per_channel = replace(IN_THREES, d_per_channel=True)
    return {**_counted(IN_THREES), "D, per channel": _counted(per_channel)["D"]}


def _counted(config: ModelConfig) -> Answer:
    """Each tensor's values 0, 1, 2, ..., then moved."""
    heads = torch.tensor([1, 2, 0, 5, 3, 4])
    channels = (3 * heads[:, None] + torch.tensor([[2, 0, 1], [1, 2, 0], [0, 2, 1]]).repeat(2, 1)).flatten()
    groups = Groups(heads, channels, torch.tensor([[3], [3]]), torch.tensor([[[3]], [[3]]]))
    model = build(config).requires_grad_(False)
    for p in model.parameters():
        p.copy_(torch.arange(p.numel()).view(p.shape))
    reordering.reorder(model, {0: groups})
    return {name: p.int() for name, p in model.blocks[0].mixer.named_parameters()}


def _reordered(streams: Streams, kind: str) -> Answer:
    """Integer weights of the reordered model, and by how many millionths its logits moved: 0."""
    model = model_of(streams, kind)
    prepared = fuse.prepare(model, some_groups())
    made = quantized.quantize_model(prepared, scales_of(streams, kind), USUAL)
    moved = prepared(streams["sequences"])[0] - model.double()(streams["sequences"])[0]
    answer: dict[str, Tensor | list[str]] = {"logits, moved by": (moved * 1e6).round().int()}
    return answer | {name: weight.q for name, weight in made.weights().items()}


def _calibrated(streams: Streams, observer: str) -> Answer:
    groups, config = some_groups(), CONFIGS["mamba2"]
    prepared = fuse.prepare(model_of(streams, "mamba2"), groups)
    plan = Quamba2().plan(config, ObserverSpec.parse(observer), "2x2")
    task = calibrating.Task(plan, 8, groups=groups)
    return dict(calibrating.calibrate(prepared, streams["sequences"], {"": task}, "probe")[""].scales)


def fixed_in_groups(streams: Streams, kind: str) -> FixedScales:
    """The stored scales, at the grouped sites times 1, 1 1/8, 1 2/8, ...: another for each group and n."""
    whole, groups = scales_of(streams, kind), some_groups()
    scales, granularities = dict(whole.scales), dict(whole.granularities)
    for layer, of in groups.items():
        for site, shape in (("x_conv_out", of.shape), ("ssm_state", (*of.shape, CONFIGS[kind].d_state))):
            name = f"layers.{layer}.{site}"
            scales[name] = whole.scales[name] * (1 + torch.arange(torch.Size(shape).numel()).view(shape) / 8)
            granularities[name] = GROUPS
    return FixedScales(scales, granularities, groups)
