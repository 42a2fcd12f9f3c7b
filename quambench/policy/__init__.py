"""Policies: which site gets which observer at which granularity. One policy a module."""

from __future__ import annotations

from quambench.policy import quamba  # noqa: F401  (importing registers it)
from quambench.policy.base import POLICIES, Assignment, Plan

__all__ = ["POLICIES", "Assignment", "Plan"]
