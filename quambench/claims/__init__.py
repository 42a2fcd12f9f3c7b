"""The claims of the user's guide, each compared with a measurement. One family of claims a module."""

from __future__ import annotations

from quambench.claims import (  # noqa: F401  (importing registers them, in the order of the document)
    alpha,
    average,
    cost,
    gains,
    groups,
    layers,
    overfit,
    ranges,
    runtime,
)  # fmt: skip
from quambench.claims.base import FAMILIES, Claim, Expectation, Family, Interval, Measured, Row, Verdict
from quambench.claims.sources import Sources

__all__ = ["FAMILIES", "Claim", "Expectation", "Family", "Interval", "Measured", "Row", "Sources", "Verdict"]
