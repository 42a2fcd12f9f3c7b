"""Recall: answers that only the carried state can give, decoded token by token. Recall models alone."""

from __future__ import annotations

import torch

from quambench.data.recall import TASKS
from quambench.metrics.base import NO_TERMS, Column, Evidence, Judged, Terms, add_mean


def _answers(evidence: Evidence, task: str, column: str) -> Terms:
    """Share of answers, each sequence a cluster of its own."""
    asked = evidence.get(f"recall.{task}.asked")
    if asked is None:
        return NO_TERMS
    return Terms(evidence[f"recall.{task}.{column}"].double(), asked.double(), torch.arange(len(asked)))


_HEADINGS = {"associative": "recall\nby key %", "induction": "recall\ninduct %", "selective_copy": "recall\ncopy %"}


def _add(task: str) -> None:
    def right(evidence: Evidence) -> Terms:
        return _answers(evidence, task, "right")

    def right_in_float(evidence: Evidence) -> Terms:
        return _answers(evidence, task, "right_float")

    column = Column(_HEADINGS[task], 100, 7)
    add_mean(f"recall_{task}", "share", "higher", right, judged=Judged.BY_ITEM, column=column, in_eval=True)
    add_mean(f"recall_{task}_float", "share", "higher", right_in_float, in_eval=True)


for _task in TASKS:
    _add(_task)
