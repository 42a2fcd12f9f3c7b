"""Refinements: training that starts from calibrated scales. One refinement a module."""

from __future__ import annotations

from quambench.calibration.refine import adaround, learned  # noqa: F401  (importing registers them)
from quambench.calibration.refine.base import REFINEMENTS, Refined, Refinement, RefinementSpec

__all__ = ["REFINEMENTS", "Refined", "Refinement", "RefinementSpec"]
