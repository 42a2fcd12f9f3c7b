"""Recall: answers that only the carried state can give, decoded token by token. Recall models alone."""

from __future__ import annotations

import torch

from quambench.data.recall import TASKS
from quambench.metrics.base import METRICS, NO_TERMS, UNMEASURED, Evidence, Measurement, Metric, Terms, add_mean


def _answers(evidence: Evidence, task: str, column: str) -> Terms:
    """Share of answers, each sequence a cluster of its own."""
    asked = evidence.get(f"recall.{task}.asked")
    if asked is None:
        return NO_TERMS
    return Terms(evidence[f"recall.{task}.{column}"].double(), asked.double(), torch.arange(len(asked)))


def _add(name: str, task: str, column: str) -> None:
    add_mean(name, "share", "higher", lambda evidence: _answers(evidence, task, column))


for _task in TASKS:
    _add(f"recall_{_task}", _task, "right")
    _add(f"recall_{_task}_float", _task, "right_float")


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


add_mean("state_error", "ratio", "lower", _state_error)
METRICS.add(
    "state_error_growth",
    Metric(name="state_error_growth", unit="ratio", better="lower", version=1, measure=_state_error_growth),
)
