"""Comparisons that decide a verdict. Every comparison with NaN is false, so that NaN would decide SAME."""

from __future__ import annotations

import math

from quambench.core.errors import NonFinite


def beyond(value: float, limit: float, what: str) -> bool:
    """Whether `value` exceeds `limit`.

    what    name of the value, for the message
    raises  NonFinite when either is NaN or infinite
    """
    _check(value, what)
    _check(limit, f"what {what} may come to")
    return value > limit


def larger(*values: float, what: str) -> float:
    """Return the largest. Python's `max` keeps or loses a NaN by its position.

    raises NonFinite when one is NaN or infinite
    """
    for value in values:
        _check(value, what)
    return max(values)


def _check(value: float, what: str) -> None:
    if not math.isfinite(value):
        raise NonFinite(f"{what} is {value}, which cannot be compared")
