"""Errors inside the model, summed up over sites; per site they stand in the evidence."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch

from quambench.metrics.base import UNMEASURED, Column, Evidence, Measurement, Metric, add


def local_sqnr_db(evidence: Evidence) -> torch.Tensor:
    """(S,) signal over local quantization noise at each site, dB."""
    return 10 * torch.log10(evidence["sites.signal"] / evidence["sites.local_mse"])


def _has_grids(evidence: Evidence) -> bool:
    """Whether anything is rounded: range_used is NaN at a site that stays float."""
    return not bool(evidence["sites.range_used"].isnan().all())


def _worst_local(evidence: Evidence) -> Measurement:
    if not _has_grids(evidence):
        return UNMEASURED
    return Measurement(local_sqnr_db(evidence).min().item(), math.nan)


def _worst_accumulated(evidence: Evidence) -> Measurement:
    sqnr = -10 * torch.log10(evidence["sites.accumulated"].mean(1))
    return Measurement(sqnr.min().item(), math.nan)


def _most_clipped(evidence: Evidence) -> Measurement:
    if not _has_grids(evidence):
        return UNMEASURED
    return Measurement(evidence["sites.clipped"].max().item(), math.nan)


def _least_range_used(evidence: Evidence) -> Measurement:
    if not _has_grids(evidence):
        return UNMEASURED
    used = evidence["sites.range_used"]
    return Measurement(used[~used.isnan()].min().item(), math.nan)


def _range_wasted(evidence: Evidence) -> Measurement:
    """Mean over sites of the part of the grid that no value reaches: up to half where values are one-sided."""
    if "sites.range_wasted" not in evidence:
        return UNMEASURED
    return Measurement(evidence["sites.range_wasted"].nanmean().item(), math.nan)


def _add(name: str, unit: str, better: str, measure: Callable[[Evidence], Measurement], **how: Any) -> None:
    add(Metric(name=name, unit=unit, better=better, version=1, measure=measure, **how))


_add("worst_local_sqnr", "dB", "higher", _worst_local, column=Column("worst\nSQNR dB", place=9), in_eval=True)
_add("worst_accumulated_sqnr", "dB", "higher", _worst_accumulated, in_eval=True)
_add("most_clipped", "share", "lower", _most_clipped, column=Column("most\nclipped %", 100, 10), in_eval=True)
_add("least_range_used", "share", "higher", _least_range_used)  # 1: the largest value is the grid's end
_add("range_wasted", "share", "lower", _range_wasted)
