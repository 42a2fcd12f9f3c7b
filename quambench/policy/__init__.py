"""Policies: which site gets which observer at which granularity. One policy a module."""

from __future__ import annotations

from quambench.policy import by_layer, quamba, quamba2, sensitivity  # noqa: F401  (importing registers them)
from quambench.policy.base import POLICIES, Assignment, Plan, Policy, PolicySpec, Sensitivity, check_plan

__all__ = ["POLICIES", "Assignment", "Plan", "Policy", "PolicySpec", "Sensitivity", "check_plan"]
