"""Errors of the carried state along a sequence of 8 times the training length. Recall models alone."""

from __future__ import annotations

import torch

from quambench.metrics.base import (
    NO_TERMS,
    UNMEASURED,
    Column,
    Evidence,
    Judged,
    Measurement,
    Metric,
    Terms,
    add,
    add_mean,
)


def _state_error(evidence: Evidence) -> Terms:
    """Error energy of the INT8 state over the state's, at the end of a sequence of 8 times the training length."""
    if "long.state_error" not in evidence:
        return NO_TERMS
    at_end = evidence["long.state_error"][:, -1].double().mean(0)  # over layers
    return Terms(at_end, torch.ones_like(at_end), torch.arange(len(at_end)))


def _state_error_growth(evidence: Evidence) -> Measurement:
    """How many times larger that error is there than at an eighth of the way; 1 says that it does not grow."""
    if "long.state_error" not in evidence:
        return UNMEASURED
    along = evidence["long.state_error"].mean(0)  # (CHECKPOINTS, W)
    ratio = along[-1] / along[0]
    return Measurement(ratio.mean().item(), (ratio.std() / len(ratio) ** 0.5).item())


add_mean(
    "state_error",
    "ratio",
    "lower",
    _state_error,
    judged=Judged.BY_DOCUMENT,
    continuous=True,
    column=Column("long state\nerror", place=8),
    in_eval=True,
)
add(
    Metric(
        name="state_error_growth", unit="ratio", better="lower", version=1, measure=_state_error_growth, in_eval=True
    )
)
