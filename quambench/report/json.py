"""JSON: everything a machine may want of a verdict."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from quambench.gate.verdicts import Verdict
from quambench.metrics import METRICS, Measurement
from quambench.report.base import REPORTS
from quambench.report.table import worst_first


@REPORTS.register("json")
def to_json(verdicts: Sequence[Verdict], provenance: Mapping[str, Any]) -> str:
    return json.dumps(document(verdicts, provenance), indent=1, allow_nan=False) + "\n"


def document(verdicts: Sequence[Verdict], provenance: Mapping[str, Any]) -> dict[str, Any]:
    """What to_json writes, for those who put several into one file."""
    return {
        "schema": 1,
        "provenance": dict(provenance),
        "units": {name: {"unit": m.unit, "better": m.better} for name, m in METRICS.items()},
        "verdicts": [_verdict(v) for v in worst_first(verdicts)],
    }


def _verdict(verdict: Verdict) -> dict[str, Any]:
    return {
        "case": verdict.case_id,
        "status": verdict.word,
        "reason": verdict.reason,
        "unit": verdict.unit,
        "place": verdict.place,
        "portable": verdict.portable,
        "written": verdict.written,
        "accepted": verdict.accepted,
        "metrics": _measurements(verdict.metrics),
        "stored": _measurements(verdict.stored),
        "comparisons": {
            c.metric: {
                "difference": _number(c.paired.difference),
                "standard_error": _number(c.paired.standard_error),
                "p_value": _number(c.paired.p_value),
                "detectable": _number(c.paired.detectable),
                "floor": c.floor,
                "margin": c.margin,
                "significant": c.significant,
            }
            for c in verdict.comparisons
        },
    }


def _measurements(found: Mapping[str, Measurement] | None) -> dict[str, Any]:
    return {n: {"value": _number(m.value), "se": _number(m.standard_error)} for n, m in (found or {}).items()}


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None
