"""quambench report: stored baselines as a table."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from quambench.core.errors import BadArtefact
from quambench.core.files import is_begun
from quambench.core.plain_text import plain
from quambench.core.reading import is_file, is_folder, shown
from quambench.gate.baselines import read_baseline
from quambench.gate.record import Record
from quambench.gate.verdicts import Status, Verdict
from quambench.report import REPORTS, terminal
from quambench.report.json import document


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "path", type=Path, nargs="?", default=Path("baselines"), help="a folder or a file (default: baselines/)"
    )
    parser.add_argument("--format", choices=["terminal", *sorted(REPORTS)], default="terminal")


def run(options: argparse.Namespace) -> int:
    if not (is_file(options.path) or is_folder(options.path)):
        raise BadArtefact(f"there is no {shown(options.path)}; pytest suites/ --qb-update writes baselines")
    files = [options.path] if is_file(options.path) else _below(options.path)
    if not files:
        raise BadArtefact(f"{options.path} holds no baseline; pytest suites/ --qb-update writes them")
    if options.format == "json":  # one document, whatever the number of files
        made = {str(file): document(*_stored(file)) for file in files}
        print(json.dumps({"schema": 1, "files": made}, indent=1, allow_nan=False))
        return 0
    for file in files:
        verdicts, provenance = _stored(file)
        if options.format == "terminal":
            sys.stdout.write(f"{plain(str(file))}\n{terminal(verdicts)}\n")
        else:
            sys.stdout.write(REPORTS[options.format](verdicts, provenance))
    return 0


def _below(folder: Path) -> list[Path]:
    """JSON files, without those that a killed writer had begun; none where there is no such folder, or can be none."""
    try:
        return sorted(file for file in folder.rglob("*.json") if not is_begun(file.relative_to(folder)))
    except (OSError, ValueError) as error:
        raise BadArtefact(f"cannot read {shown(folder)}: {shown(error)}") from None


def _stored(file: Path) -> tuple[Sequence[Verdict], Mapping[str, Any]]:
    """A baseline file's cases as verdicts, and the provenance of its first."""
    records = read_baseline(file)
    first = next(iter(records.values()), None)
    return [_as_stored(record) for record in records.values()], dict(first.provenance) if first else {}


def _as_stored(record: Record) -> Verdict:
    """What is stored is the same as itself; what was stored although it was worse says so, and why."""
    if not record.accepted:
        return Verdict(record.case_id, Status.SAME, metrics=record.metrics)
    why = f"stored although it was worse: {record.accepted}"
    return Verdict(record.case_id, Status.SAME, why, metrics=record.metrics, accepted=record.accepted)
