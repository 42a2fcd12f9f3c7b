"""Claims on what each kind of tuning costs to calibrate."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from quambench.claims.base import TIMES, CannotMeasure, Claim, InRange, Interval, Measured, Row, as_written, family, row
from quambench.claims.sources import Sources

# words, the guide's figure, the factor that it stands for, case
COSTS = (
    ("α tuning (another α)", "+0", "1", "percentile"),
    ("α tuning (chosen by each site's error)", "+0", "1", "dynamic_percentile"),
    ("the guide's MSE search", "×20", "20", "mse[low=0.8,steps=20]"),
    ("a scale per channel", "×10", "10", "percentile/channel"),
)


@family(
    "What tuning costs",
    "CPU seconds of calibration over those of `running_max`, in the same process, in turn, for 256 sequences of 128"
    " tokens as short runs foretell them. All strategies share the float model's forward pass, and several share one"
    " pass in a suite, so that what is charged here in full is often paid once.",
)
def costs(sources: Sources) -> list[Row]:
    rows = []
    for name, _ in sources.prose:
        for words, figure, factor, spec in COSTS:
            claim = Claim(words=words, figure=figure, expects=InRange(*as_written(factor)))
            rows.append(row(claim, name, _over_plain, sources, name, spec))
        claim = Claim(words="learned scales", figure="×100", expects=InRange(*as_written("100")))
        rows.append(row(claim, name, _learned, sources, name))
    for name, shelf in sources.prose:
        if shelf.architecture == "mamba2":
            claim = Claim(words="8×8 groups", figure="×5", expects=InRange(*as_written("5")))
            rows.append(row(claim, name, _over_plain, sources, name, "running_max/8x8/quamba2"))
    return rows


def _over_plain(sources: Sources, model: str, spec: str) -> Measured:
    times = sources.measured(model).times
    if spec not in times:
        raise CannotMeasure("the model has too few heads, or channels in a head")
    return _ratio(times[spec], times["running_max"], f"`{spec}` / `running_max`")


def _learned(sources: Sources, model: str) -> Measured:
    fresh = sources.measured(model)
    training = fresh.learning_seconds
    in_all, plain = fresh.times["percentile"] + training, fresh.times["running_max"]
    remark = f"training ran once, at its defaults: {training:.3g} CPU s"
    return replace(_ratio(in_all, plain, "`percentile/learned` / `running_max`"), remark=remark)


def _ratio(seconds: Tensor, plain: Tensor, data: str) -> Measured:
    return Measured(effect=Interval.of_ratio(seconds / plain), unit=TIMES, n=f"{len(plain)} repetitions", data=data)
