"""The table that ends a run, worst first."""

from __future__ import annotations

import math
from collections.abc import Sequence

from tabulate import tabulate

from quambench.gate.verdicts import SEVERITY, Verdict
from quambench.metrics import Measurement

# heading, metric, factor: one place to choose what people see first
COLUMNS = (
    ("loss rise\nmnat/token", "loss_rise", 1e3),
    ("KL\nmnat/token", "kl", 1e3),
    ("KL 99 %\nmnat", "kl_p99", 1e3),
    ("decode KL\nmnat/token", "decode_kl", 1e3),
    ("top-1\nagree %", "agreement", 100.0),
    ("accuracy\n%", "accuracy", 100.0),
    ("worst\nSQNR dB", "worst_local_sqnr", 1.0),
    ("most\nclipped %", "most_clipped", 100.0),
)


def worst_first(verdicts: Sequence[Verdict]) -> list[Verdict]:
    return sorted(verdicts, key=lambda v: (SEVERITY.index(v.status), v.case_id))


def rows(verdicts: Sequence[Verdict]) -> tuple[list[str], list[list[str]]]:
    """Headings and cells; a number that was not measured is "-", never 0."""
    headings = ["case", "verdict", *(heading for heading, _, _ in COLUMNS)]
    table = []
    for verdict in worst_first(verdicts):
        measured = verdict.metrics or {}
        cells = [_cell(measured.get(name), factor) for _, name, factor in COLUMNS]
        table.append([verdict.case_id, _status(verdict), *cells])
    return headings, table


def terminal(verdicts: Sequence[Verdict]) -> str:
    """Table, then one line per verdict that needs one."""
    headings, cells = rows(verdicts)
    text = tabulate(cells, headers=headings, tablefmt="simple", disable_numparse=True, colalign=_aligned(headings))
    notes = [f"{v.status} {v.case_id}: {v.reason}" for v in worst_first(verdicts) if v.reason and not v.written]
    return "\n".join([text, *([""] if notes else []), *notes]) + "\n"


def _aligned(headings: list[str]) -> list[str]:
    return ["left", "left", *["right"] * (len(headings) - 2)]


def _status(verdict: Verdict) -> str:
    marks = [mark for mark, on in (("portable", verdict.portable), ("written", verdict.written)) if on]
    return verdict.status + (f" ({', '.join(marks)})" if marks else "")


def _cell(measured: Measurement | None, factor: float) -> str:
    """value ± standard error, with the digits that the error supports."""
    if measured is None or math.isnan(measured.value):
        return "-"
    value, error = measured.value * factor, measured.standard_error * factor
    if not error > 0:
        return f"{value:.3g}"
    decimals = max(0, 1 - math.floor(math.log10(error)))
    return f"{value:.{decimals}f} ± {error:.{decimals}f}"
