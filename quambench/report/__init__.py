"""Reports: pure functions of verdicts. Same verdicts, same bytes; no clock, no colour; `write_report` alone writes."""

from __future__ import annotations

from quambench.report import json, markdown  # noqa: F401  (importing registers them)
from quambench.report.base import REPORTS, check_report, format_of, write_report
from quambench.report.table import terminal

__all__ = ["REPORTS", "check_report", "format_of", "terminal", "write_report"]
