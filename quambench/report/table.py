"""The table that ends a run, worst first."""

from __future__ import annotations

import math
from collections.abc import Sequence

from tabulate import tabulate

from quambench.core.plain_text import plain
from quambench.gate.verdicts import SEVERITY, Verdict
from quambench.metrics import METRICS, Column, Measurement
from quambench.metrics.tasks import score_columns


def worst_first(verdicts: Sequence[Verdict]) -> list[Verdict]:
    return sorted(verdicts, key=lambda v: (SEVERITY.index(v.status), not v.accepted, v.case_id))


def tables(verdicts: Sequence[Verdict]) -> list[tuple[list[str], list[list[str]]]]:
    """Headings and cells, worst first; recall models in a table of their own."""
    ordered = worst_first(verdicts)
    recalling = [v for v in ordered if _known((v.metrics or {}).get("recall_associative"))]
    groups = [[v for v in ordered if v not in recalling], recalling]
    return [_table(group) for group in sorted(filter(None, groups), key=lambda g: SEVERITY.index(g[0].status))]


def _table(group: Sequence[Verdict]) -> tuple[list[str], list[list[str]]]:
    """A number that was not measured is "-", never 0; columns that no row measured are left out."""
    shown = [(name, c) for name, c in _columns(group) if any(_known((v.metrics or {}).get(name)) for v in group)]
    places, compared = any(v.unit or v.place for v in group), any(v.comparisons for v in group)
    headings = ["case", "verdict", *(["place"] if places else []), *(column.heading for _, column in shown)]
    headings += ["sees KL of\nmnat/token"] if compared else []  # the smallest change that would have been significant
    cells = [
        [
            *(v.case_id, _status(v), *([v.unit or v.place] if places else [])),
            *(_cell((v.metrics or {}).get(name), column.factor) for name, column in shown),
            *([_sees(v)] if compared else []),
        ]
        for v in group
    ]
    return headings, cells


def _columns(group: Sequence[Verdict]) -> list[tuple[str, Column]]:
    """Names of metrics with their columns; behind them one for each task of the harness."""
    own = [(metric.name, metric.column) for metric in METRICS.values() if metric.column]
    own.sort(key=lambda pair: pair[1].place)
    return [*own, *score_columns(dict.fromkeys(name for v in group for name in v.metrics or {}))]


def _known(measured: Measurement | None) -> bool:
    return measured is not None and not math.isnan(measured.value)


def _sees(verdict: Verdict) -> str:
    found = next((c.paired for c in verdict.comparisons if c.metric == "kl"), None)
    if found is None or not math.isfinite(found.detectable):
        return "-"
    return "any" if found.detectable == 0 else f"{found.detectable * 1e3:.2g}"


def terminal(verdicts: Sequence[Verdict]) -> str:
    """Table, then one line per verdict that needs one."""
    shown = [v for v in verdicts if not _quiet_probe(v)]
    made = [_tabulated(headings, cells) for headings, cells in tables(shown)]
    text = "\n\n".join(made)
    notes = [plain(f"{v.word} {v.case_id}: {v.reason}") for v in worst_first(verdicts) if v.reason and not v.written]
    quiet = len(verdicts) - len(shown)
    notes += [f"{quiet} probes of single units answer as stored"] if quiet else []
    return "\n".join([text, *([""] if notes else []), *notes]) + "\n"


def _tabulated(headings: list[str], cells: list[list[str]]) -> str:
    shown = [[plain(cell) for cell in row] for row in cells]
    table: str = tabulate(shown, headings, tablefmt="simple", disable_numparse=True, colalign=aligned(headings))
    return table


def _quiet_probe(verdict: Verdict) -> bool:
    """A row that says nothing: a probe that answers as before."""
    return verdict.case_id.startswith("probe/") and verdict.status == "SAME"


def aligned(headings: list[str]) -> list[str]:
    left = 3 if "place" in headings else 2
    return ["left"] * left + ["right"] * (len(headings) - left)


def _status(verdict: Verdict) -> str:
    marks = [mark for mark, on in (("portable", verdict.portable), ("written", verdict.written)) if on]
    return verdict.word + (f" ({', '.join(marks)})" if marks else "")


def _cell(measured: Measurement | None, factor: float) -> str:
    """value ± standard error, with the digits that the error supports."""
    if measured is None or math.isnan(measured.value):
        return "-"
    value, error = measured.value * factor, measured.standard_error * factor
    if not 0 < error < math.inf:
        return f"{value:.3g}"
    decimals = max(0, 1 - math.floor(math.log10(error)))
    return f"{value:.{decimals}f} ± {error:.{decimals}f}"
