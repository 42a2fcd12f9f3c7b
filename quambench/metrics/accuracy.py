"""Last-word prediction: right or wrong per passage, and what quantization flipped."""

from __future__ import annotations

import torch

from quambench.metrics.base import Evidence, Terms, add_mean


def _share(values: torch.Tensor, evidence: Evidence) -> Terms:
    return Terms(values.double(), torch.ones(len(values), dtype=torch.float64), evidence["items.document"])


def _correct(evidence: Evidence) -> Terms:
    return _share(evidence["items.correct"], evidence)


def _float_correct(evidence: Evidence) -> Terms:
    return _share(evidence["items.correct_float"], evidence)


def _lost(evidence: Evidence) -> Terms:
    return _share(evidence["items.correct_float"].bool() & ~evidence["items.correct"].bool(), evidence)


def _gained(evidence: Evidence) -> Terms:
    return _share(~evidence["items.correct_float"].bool() & evidence["items.correct"].bool(), evidence)


add_mean("accuracy", "share", "higher", _correct)
add_mean("accuracy_float", "share", "higher", _float_correct)
add_mean("flips_to_wrong", "share", "lower", _lost)
add_mean("flips_to_right", "share", "higher", _gained)
