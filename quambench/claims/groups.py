"""Claims on groups: what finer scales gain, how many they are, what they cost to find and to look up."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from quambench.bench.kernels import PREFILL
from quambench.claims.base import (
    SECONDS,
    TIMES,
    CannotMeasure,
    Claim,
    InRange,
    Interval,
    Measured,
    Row,
    Unit,
    as_written,
    family,
    row,
)
from quambench.claims.compared import gain_rows
from quambench.claims.fresh import LOOKED_UP
from quambench.claims.sources import Sources
from quambench.claims.stored import CASE_SITES, Shelf, site_name

GAINS = {"2x2": "0.5", "4x4": "1.5", "8x8": "2.2", "16x16": "2.5", "channel": "2.7"}  # points
COUNTS = {"2x2": 32, "4x4": 128, "8x8": 512, "16x16": 2048}
SIDES = {"2x2": 2, "4x4": 4, "8x8": 8, "16x16": 16}  # head groups and dim groups of each SSD group
CHANNELS = {8: 8192, 1: 5120}  # SSD groups -> E: Mamba2-8b's, and 2.7b's
# The guide's figure, and what rounds to it, in seconds.
GROUPED_TIMES = {
    "2x2": ("30 s", 29.5, 30.5),
    "4x4": ("2-5 min", 120.0, 300.0),
    "8x8": ("10 min", 570.0, 630.0),
    "16x16": ("30 min", 1770.0, 1830.0),
}
# Scales found so -> the guide's figure for as many, in per cent of a convolution.
LOOK_UPS = (
    ("2x2", "<0.5", InRange(-math.inf, 0.005)),
    ("4x4", "<1", InRange(-math.inf, 0.01)),
    ("8x8", "~2", InRange(*as_written("2", 0.01))),
    ("16x16", "~5", InRange(*as_written("5", 0.01))),
    ("table", "~10", InRange(*as_written("10", 0.01))),
)
ADDED = Unit("%", 100, signed=True)
LAYERS, STATES, BYTES = 64, 128, 4  # the guide's layers; published Mamba2's d_state; of a float32 scale
PAIRS = (("percentile", "running_max"), ("percentile", "percentile"), ("running_max", "running_max"))
FINER = (2.5, 5.0)
X_ALONE = "the guide counts x alone: the state has N = 128 scales to each of x's, B and C one a group"


@family(
    "Groups over one scale per tensor",
    "Quamba's `percentile` with one scale per tensor against finer scales, at every site that allows them. Quamba2"
    " gives each group its running maximum, so that is what groups are taken with; per channel, the percentile is shown"
    " too, and the running maximum against itself per tensor.",
)
def gains(sources: Sources) -> list[Row]:
    rows = []
    for _, shelf in sources.prose:
        for grouping, points in GAINS.items():
            if shelf.architecture == "mamba" and grouping != "channel":
                continue  # groups are Mamba2's heads
            for old, new in PAIRS if grouping == "channel" else PAIRS[:1]:
                spec = f"{new}/{grouping}" + ("" if grouping == "channel" else "/quamba2")
                words = f"{_called(grouping)} gain: `{spec}` over `{old}`"
                rows += gain_rows(shelf, words, f"+{points} %", as_written(points, 0.01), old, spec)
    return rows


def _called(grouping: str) -> str:
    return "scales per channel" if grouping == "channel" else f"{grouping.replace('x', '×')} groups"


@family(
    "Number of scales",
    "Arithmetic from the definitions: x has G × head groups × dim groups scales a layer. The guide counts with G = 8,"
    " which of the published checkpoints only Mamba2-8b has; 130m to 2.7b have G = 1.",
)
def numbers(sources: Sources) -> list[Row]:
    rows = []
    for groups, model in ((8, "G = 8, E = 8192"), (1, "G = 1, E = 5120 (2.7b)")):
        for grouping, count in COUNTS.items():
            words, own = f"{_called(grouping)}: scales of x a layer", x_scales(grouping, groups)
            rows.append(_counted(words, f"{count:,}", count, own, model))
        rows.append(_counted("a scale per channel: scales of x a layer", "8,192", 8192, CHANNELS[groups], model))
        for what, a_layer, remark in (("x's scales", x_scales, ""), ("all grouped scales", all_scales, X_ALONE)):
            words, own = f"4×4 groups: bytes of {what}, 64 layers", LAYERS * BYTES * a_layer("4x4", groups)
            rows.append(_counted(words, "32 KB", 32 * 1024, own, model, remark))
    return rows


def x_scales(grouping: str, groups: int) -> int:
    """Return the number of scales of x_conv_out in a layer."""
    return groups * SIDES[grouping] ** 2


def all_scales(grouping: str, groups: int) -> int:
    """Return the number of scales of x, of the state and of B and C in a layer."""
    return x_scales(grouping, groups) * (1 + STATES) + 2 * groups


def _counted(words: str, figure: str, claimed: int, found: int, model: str, remark: str = "") -> Row:
    claim = Claim(words=words, figure=figure, expects=InRange(claimed, claimed))
    effect = Interval.exactly(found)
    measured = Measured(effect=effect, unit=Unit(""), n="-", data="definition", remark=remark)
    return Row(claim=claim, model=model, measured=measured)


@family(
    "Step size, grouped against per tensor",
    "How many times larger the one step of a tensor is than the mean step of its finer scales; a layer is one"
    " observation. One row a site and observer. 2.5-5× was said of groups; heads and channels stand beside them.",
)
def steps(sources: Sources) -> list[Row]:
    rows = []
    for _, shelf in sources.prose:
        for coarse, fine in (
            ("percentile", "percentile/4x4/quamba2"),
            ("running_max", "running_max/4x4/quamba2"),
            ("percentile", "percentile/head"),
            ("percentile", "percentile/channel"),
            ("running_max", "running_max/channel"),
            ("running_max", "running_max/channel_state"),
        ):
            if shelf.architecture == "mamba" and fine.endswith(("head", "quamba2")):
                continue  # it has no heads
            rows += _steps(shelf, coarse, fine)
    return rows


def _steps(shelf: Shelf, coarse: str, fine: str) -> list[Row]:
    """Return a row for each site; a single one where the cases are not there."""

    def claim(site: str) -> Claim:
        words = f"`{fine}` has finer steps than `{coarse}`" + (f" at {site}" if site else "")
        return Claim(words=words, figure="2.5-5×", expects=InRange(*FINER))

    try:
        found = finer(shelf, coarse, fine)
    except CannotMeasure as error:
        return [Row(claim=claim(""), model=shelf.model, measured=None, why=str(error))]
    return [row(claim(site), shelf.model, _ratio, ratios) for site, ratios in sorted(found.items())]


def _ratio(ratios: Tensor) -> Measured:
    remark = f"from {ratios.min().item():.3g}× to {ratios.max().item():.3g}× over layers"
    return Measured(
        effect=Interval.of_ratio(ratios), unit=TIMES, n=f"{len(ratios)} layers", data="stored scales", remark=remark
    )


def finer(shelf: Shelf, coarse: str, fine: str) -> dict[str, Tensor]:
    """Return case site -> (n_layers) step of the tensor over the mean of its finer steps. raises CannotMeasure"""
    one, many = shelf.find(coarse, fine)
    found: dict[str, list[float]] = {}
    for site in one.sites:
        step, parts = one.artefacts.scales[site], many.artefacts.scales[site]
        if site_name(site) in CASE_SITES and step.numel() == 1 and parts.numel() > 1:
            found.setdefault(site_name(site), []).append((step / parts.double().mean()).item())
    if not found:
        raise CannotMeasure(f"no site of {many.case_id} has finer scales than {one.case_id}")
    return {name: torch.tensor(values, dtype=torch.float64) for name, values in found.items()}


@family(
    "Calibration time by granularity",
    "CPU seconds, all threads together, for 256 sequences of 128 tokens, float64, from short runs. The guide does not"
    " say on what machine or model; absolute times are of this machine and of models of 1-2 m parameters.",
)
def times(sources: Sources) -> list[Row]:
    rows = []
    for name, _ in sources.prose:
        claim = Claim(words="per tensor", figure="<1 s", expects=InRange(0, 1))
        rows.append(row(claim, name, _per_tensor, sources, name))
        words = "per channel takes as many times longer than per tensor"
        claim = Claim(words=words, figure="1 h / <1 s", expects=InRange(3600, math.inf))
        rows.append(row(claim, name, _per_channel, sources, name))
    for name, shelf in sources.prose:
        for grouping, (figure, low, high) in GROUPED_TIMES.items() if shelf.architecture == "mamba2" else ():
            claim = Claim(words=f"{_called(grouping)}, clustering and all", figure=figure, expects=InRange(low, high))
            rows.append(row(claim, name, _in_groups, sources, name, grouping))
    return rows


def _per_tensor(sources: Sources, model: str) -> Measured:
    remark = "most of it is the float64 model's forward pass, which every strategy shares"
    return _seconds(sources.measured(model).times["percentile"], remark)


def _in_groups(sources: Sources, model: str, grouping: str) -> Measured:
    seconds = sources.measured(model).times.get(f"running_max/{grouping}/quamba2")
    if seconds is None:
        raise CannotMeasure("the model has too few heads, or channels in a head")
    remark = "two forward passes, of the model as it stands for the clusters and of the reordered one for scales"
    return _seconds(seconds, remark)


def _seconds(seconds: Tensor, remark: str) -> Measured:
    n, data = f"{len(seconds)} repetitions", "256 sequences of 128 tokens, from short runs"
    return Measured(effect=Interval.of_mean(seconds), unit=SECONDS, n=n, data=data, remark=remark)


def _per_channel(sources: Sources, model: str) -> Measured:
    times = sources.measured(model).times
    ratios = times["percentile/channel"] / times["percentile"]
    data = "`percentile/channel` / `percentile`"
    return Measured(effect=Interval.of_ratio(ratios), unit=TIMES, n=f"{len(ratios)} repetitions", data=data)


@family(
    "Looking a scale up at run time",
    "The original's kernel walks the ends of head groups, then of dim groups, until it finds a channel's: so many"
    " comparisons. A table with a scale for each channel, expanded when a model is loaded, needs none, whatever the"
    " number of groups; here both find the same scale for every channel (tests/grouping). Costs are of the INT8"
    " convolution on this CPU, where a walk cannot become vector code; the guide's are a GPU's.",
)
def look_up(sources: Sources) -> list[Row]:
    rows = []
    for _, shelf in sources.prose:
        if shelf.architecture == "mamba2":
            claim = Claim(words="comparisons per look-up, 4×4", figure="~4", expects=InRange(3.5, 4.5))
            rows.append(row(claim, shelf.model, _comparisons, shelf, 4))
    for way, figure, expects in LOOK_UPS:
        words = "a table, per channel or any groups" if way == "table" else f"walking, {way.replace('x', '×')}"
        claim = Claim(words=f"the look-up costs, by {words}", figure=f"{figure} %", expects=expects)
        rows.append(row(claim, "", _look_up_cost, sources, way))
    return rows


def _look_up_cost(sources: Sources, way: str) -> Measured:
    """Return what a look-up adds to the INT8 convolution with one scale; the shape is published, not the model's."""
    found = sources.measured(next(iter(sources.fresh), "")).look_up_costs[way]
    effect = Interval(found.value - 1, found.low - 1, found.high - 1)
    return Measured(
        effect=effect, unit=ADDED, n=f"{found.rounds} rounds", data=f"{PREFILL} tokens, {LOOKED_UP}'s width"
    )


def _comparisons(shelf: Shelf, side: int) -> Measured:
    """Return the comparisons of walking: a channel in the h-th head group's d-th dim group, from 1 on, takes h + d."""
    (record,) = shelf.find(f"running_max/{side}x{side}/quamba2")
    group = record.evidence["groups.of_channel"].long()  # (n_layers, E)
    taken = (group // side % side + 1) + (group % side + 1)
    return Measured(
        effect=Interval.exactly(taken.double().mean().item()),
        unit=Unit(""),
        n=f"{taken.numel():,} channels",
        data="stored groups",
        remark=f"between 2 and {2 * side}; sizes differ, so it is not the {side + 1} of equal ones",
    )
