"""Markdown: the table and the notes, for a pull request."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tabulate import tabulate

from quambench.core.plain_text import as_code, in_markdown
from quambench.gate.verdicts import Verdict
from quambench.report.base import REPORTS
from quambench.report.table import aligned, tables, worst_first


@REPORTS.register("md")
def markdown(verdicts: Sequence[Verdict], provenance: Mapping[str, Any]) -> str:
    parts = []
    for headings, cells in tables(verdicts):
        flat = [h.replace("\n", " ") for h in headings]
        shown = [[in_markdown(cell) for cell in row] for row in cells]
        parts.append(tabulate(shown, flat, tablefmt="github", disable_numparse=True, colalign=aligned(headings)))
    table = "\n\n".join(parts)
    told = [v for v in worst_first(verdicts) if v.reason]
    notes = [f"- **{v.word}** {as_code(v.case_id)}: {in_markdown(v.reason)}" for v in told]
    made = ", ".join(in_markdown(f"{key} {value}") for key, value in provenance.items() if value not in (None, {}, ""))
    return "\n".join([table, "", *notes, *([""] if notes else []), f"_{made}_"]) + "\n"
