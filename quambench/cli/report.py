"""quambench report: stored baselines as a table."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from quambench.errors import BadArtefact
from quambench.gate.baselines import read_baseline
from quambench.gate.verdicts import Status, Verdict
from quambench.report import REPORTS, terminal


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "path", type=Path, nargs="?", default=Path("baselines"), help="a folder or a file (default: baselines/)"
    )
    parser.add_argument("--format", choices=["terminal", *sorted(REPORTS)], default="terminal")


def run(options: argparse.Namespace) -> int:
    files = [options.path] if options.path.is_file() else sorted(options.path.rglob("*.json"))
    if not files:
        raise BadArtefact(f"{options.path} holds no baseline; pytest suites/ --qb-update writes them")
    for file in files:
        records = read_baseline(file)
        verdicts = [Verdict(r.case_id, Status.SAME, metrics=r.metrics) for r in records.values()]
        first = next(iter(records.values()), None)
        provenance = dict(first.provenance) if first else {}
        if options.format == "terminal":
            sys.stdout.write(f"{file}\n{terminal(verdicts)}\n")
        else:
            sys.stdout.write(REPORTS[options.format](verdicts, provenance))
    return 0
