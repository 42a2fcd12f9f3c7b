"""The table of claims as markdown, for a terminal and for machines. Same rows, same bytes."""

from __future__ import annotations

import inspect
import math
from collections.abc import Sequence
from dataclasses import dataclass
from textwrap import fill
from typing import Any

from tabulate import tabulate

from quambench.claims.base import Expectation, Interval, Row, Unit, Verdict

COMMAND = "quambench claims --out docs/claims.md"
HEADINGS = ("claim", "guide", "model", "data", "n", "measured [95 %]", "verdict")
_WIDTHS = (38, 16, 13, 24, 12, 22, 34)  # characters, in a terminal
DIGITS = 4  # significant, of a number without a spread
MOST_DIGITS = 6  # of one with


@dataclass(frozen=True, slots=True)
class Section:
    """The rows of one family."""

    title: str
    about: str
    rows: Sequence[Row]


def effect_text(effect: Interval, unit: Unit) -> str:
    """Return "+0.12 [+0.05, +0.19] mnat/token", with as many digits as the interval supports; "128 exact" without a
    spread.
    """
    value, low, high = (x * unit.factor for x in (effect.estimate, effect.low, effect.high))
    sign = "+" if unit.signed else ""
    name = f" {unit.name}" if unit.name else ""
    if effect.exact:
        return f"{_plain(value, sign)}{name} exact"
    if not (math.isfinite(low) and math.isfinite(high)):
        return f"{_plain(value, sign)}{name}, no interval"
    half, size = (high - low) / 2, max(abs(low), abs(high))
    decimals = max(0, min(1 - math.floor(math.log10(half)), MOST_DIGITS - 1 - math.floor(math.log10(size))))
    return f"{value:{sign}.{decimals}f} [{low:{sign}.{decimals}f}, {high:{sign}.{decimals}f}]{name}"


def _plain(value: float, sign: str) -> str:
    if math.isfinite(value) and value == round(value):
        return f"{value:{sign}.0f}"
    return f"{value:{sign}.{DIGITS}g}"


def _cells(row: Row, note: str) -> list[str]:
    m = row.measured
    shown = (m.data, m.n, effect_text(m.effect, m.unit)) if m else ("-", "-", "-")
    verdict = f"{row.verdict}: {row.why}" if row.why else str(row.verdict)
    return [row.claim.words, row.claim.figure or "-", row.model or "-", *shown, verdict + note]


def _table(section: Section) -> tuple[list[list[str]], list[str]]:
    """Return cells, and the notes that they refer to; rows with the same remark share a note."""
    notes: list[str] = []
    cells = []
    for row in section.rows:
        remark = row.measured.remark if row.measured else ""
        if remark and remark not in notes:
            notes.append(remark)
        cells.append(_cells(row, f" ({notes.index(remark) + 1})" if remark else ""))
    return cells, notes


def tally(sections: Sequence[Section]) -> str:
    """Return "3 confirmed, 5 not confirmed, ...": every verdict, in this order."""
    found = [row.verdict for section in sections for row in section.rows]
    return ", ".join(f"{found.count(verdict)} {verdict}" for verdict in Verdict)


def markdown(sections: Sequence[Section], models: Sequence[str]) -> str:
    """Return the whole document."""
    parts = [_introduction(models), f"Of {sum(len(s.rows) for s in sections)} rows: {tally(sections)}.\n"]
    parts.append(f"## When a claim counts as confirmed\n\n{_rule()}\n")
    for section in sections:
        cells, notes = _table(section)
        escaped = [[cell.replace("|", "\\|") for cell in line] for line in cells]
        table = tabulate(escaped, HEADINGS, tablefmt="github", disable_numparse=True)
        listed = "".join(f"{i}. {note}\n" for i, note in enumerate(notes, 1))
        parts.append("\n".join(filter(None, [f"## {section.title}\n", f"{section.about}\n", table + "\n", listed])))
    return "\n".join(parts)


def _introduction(models: Sequence[str]) -> str:
    return f"""\
# The guide's claims, measured

The user's guide to Quamba's calibration makes claims: what a finer scale gains, what a search costs,
which α is best. Here each one stands beside what was measured. Nothing was assumed, and no test expects
any of the guide's numbers.

Models: {", ".join(models)}. They have 1-2 million parameters (recall models fewer); the guide speaks of
130 million and up, where activation outliers are larger. Prose models are judged on State of the Union
speeches that neither training nor calibration saw, recall models on made sequences. So a verdict here says
what holds for these models on these data, and how far n lets anything be said at all.

Comparisons of quality take stored baselines (`pytest suites/` keeps them honest), paired by document or
item. Sensitivity, moving averages, ranges and times are measured when this page is made:

    {COMMAND}
"""


def _rule() -> str:
    return inspect.getdoc(Expectation) or ""


def terminal(sections: Sequence[Section]) -> str:
    """Return a table and its notes for each family, then how many of each verdict."""
    parts = []
    for section in sections:
        cells, notes = _table(section)
        wrapped = [[fill(cell, width) for cell, width in zip(line, _WIDTHS, strict=True)] for line in cells]
        table = tabulate(wrapped, HEADINGS, tablefmt="simple", disable_numparse=True)
        parts.append("\n".join([section.title, table, *(f"({i}) {note}" for i, note in enumerate(notes, 1)), ""]))
    return "\n".join([*parts, tally(sections) + "\n"])


def document(sections: Sequence[Section]) -> dict[str, Any]:
    """Return the rows for machines: plain numbers, factors not applied; an infinite end is null."""
    return {
        "schema": 1,
        "families": [{"title": s.title, "about": s.about, "rows": [_entry(row) for row in s.rows]} for s in sections],
    }


def _entry(row: Row) -> dict[str, Any]:
    m = row.measured
    measured = m and {
        "estimate": _number(m.effect.estimate),
        "low": _number(m.effect.low),
        "high": _number(m.effect.high),
        "unit": m.unit.name,
        "times": m.unit.factor,
        "n": m.n,
        "data": m.data,
        "remark": m.remark,
    }
    return {
        "claim": row.claim.words,
        "guide": row.claim.figure,
        "model": row.model,
        "verdict": str(row.verdict),
        "why": row.why,
        "measured": measured,
    }


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None
