"""Last-word prediction: right or wrong per passage, and what quantization flipped. Prose alone."""

from __future__ import annotations

from collections.abc import Callable

import torch

from quambench.metrics.base import NO_TERMS, Column, Evidence, Judged, Terms, add_mean


def _share(values: torch.Tensor, evidence: Evidence) -> Terms:
    return Terms(values.double(), torch.ones(len(values), dtype=torch.float64), evidence["items.document"])


def _items(choose: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> Callable[[Evidence], Terms]:
    """Share of items that `choose(right, right in float)` picks."""

    def terms(evidence: Evidence) -> Terms:
        if "items.correct" not in evidence:
            return NO_TERMS
        return _share(choose(evidence["items.correct"].bool(), evidence["items.correct_float"].bool()), evidence)

    return terms


add_mean(
    "accuracy",
    "share",
    "higher",
    _items(lambda right, right_float: right),
    judged=Judged.BY_ITEM,
    column=Column("accuracy\n%", 100, 6),
    in_eval=True,
)
add_mean("accuracy_float", "share", "higher", _items(lambda right, right_float: right_float), in_eval=True)
add_mean("flips_to_wrong", "share", "lower", _items(lambda right, right_float: right_float & ~right), in_eval=True)
add_mean("flips_to_right", "share", "higher", _items(lambda right, right_float: right & ~right_float), in_eval=True)
