"""Faults that `quambench selftest` plants, one at a time, to see whether the gate sees them.

Each is a patch on behaviour at a seam of the architecture, open while its context is. To add one: a
function under `@fault(...)` that patches what it spoils; say which unit's probe and which site the
gate should name first (regular expressions; "" where there is none), for which architectures, and in
which case if the usual one has no such part.
A change that is shown to change nothing is entered with `no_op`, its proof: the gate must stay green.
"""

from __future__ import annotations

from quambench.selftest.faults import (  # noqa: F401  (importing enters them)
    evaluation,
    groups,
    implementations,
    judge,
    kernels,
    path,
    precisions,
    sizes,
    strategies,
)
from quambench.selftest.faults.base import FAULTS, SCAN_INPUT, Fault, fault

__all__ = ["FAULTS", "SCAN_INPUT", "Fault", "fault"]
