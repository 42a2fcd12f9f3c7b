"""Groupings of Mamba2's heads and channels. One family a module."""

from __future__ import annotations

from quambench.grouping import adaptive, clustered  # noqa: F401  (importing registers them)
from quambench.grouping.base import GROUPINGS, ChannelStatistics, Grouping
from quambench.grouping.groups import Groups
from quambench.grouping.spec import GroupingSpec

__all__ = ["GROUPINGS", "ChannelStatistics", "Grouping", "GroupingSpec", "Groups"]
