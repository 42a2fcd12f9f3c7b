"""A case: model, observer, grouping, policy, precision, and what it is measured on."""

from quambench.case.case import Case, asks_tasks, in_order, protocol_hash
from quambench.case.fit import check_fit, may_come_from_outside
from quambench.case.protocol import FULL, LARGER, QUICK, SIZES, Protocol, is_full

__all__ = [
    "FULL",
    "LARGER",
    "QUICK",
    "SIZES",
    "Case",
    "Protocol",
    "asks_tasks",
    "check_fit",
    "in_order",
    "is_full",
    "may_come_from_outside",
    "protocol_hash",
]
