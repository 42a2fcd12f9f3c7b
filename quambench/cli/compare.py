"""quambench compare: this code against another revision, without any stored baseline."""

from __future__ import annotations

import argparse
from pathlib import Path

from quambench.case import Case, Protocol
from quambench.cli.options import add_corpus, add_observers, check_corpus, progress_bars, show, write_each
from quambench.compare.compare import compare
from quambench.compare.worker import Task
from quambench.core.errors import BadParameter
from quambench.core.provenance import provenance
from quambench.models.checkpoint import bundled_names
from quambench.report import check_report, terminal, write_report

OBSERVERS = ("percentile[alpha=0.9995]", "running_max")


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--against", required=True, metavar="REV", help="a git revision of this checkout: main, HEAD~1, v0.1.0"
    )
    parser.add_argument(
        "--model", action="append", metavar="NAME|DIR", help="repeatable (default: the bundled prose models)"
    )
    add_observers(parser)
    add_corpus(parser)
    parser.add_argument("--full", action="store_true", help="measure about four times as much")
    parser.add_argument("--allow-drift", action="store_true", help="DRIFTED and IMPROVED pass")
    parser.add_argument("--report", action="append", type=Path, default=[], metavar="PATH", help="write .md or .json")


def run(options: argparse.Namespace) -> int:
    observers = tuple(options.observer or OBSERVERS)
    for path in options.report:
        check_report(path, "--report")
    for spec in observers:
        case = Case.parse("", spec)
        if options.full and case.protocol != Protocol():
            raise BadParameter(f"case {spec} and --full both say how much is measured: give one of them")
        if case.tasks:
            raise BadParameter(f"case {spec}: compare asks no tasks; quambench eval --task does")
    check_corpus(options.corpus, options.model or bundled_names("prose"))
    models = [_absolute(m) for m in options.model or bundled_names("prose")]
    corpus = str(options.corpus.resolve()) if options.corpus else ""
    tasks = [Task(model, observers, corpus, options.full) for model in models]
    with progress_bars() as progress:
        verdicts = compare(options.against, tasks, Path.cwd(), progress)
    made = provenance() | {"against": options.against}
    show(terminal(verdicts), lambda: write_each(options.report, lambda path: write_report(path, verdicts, made)))
    return 0 if all(v.passes(options.allow_drift) for v in verdicts) else 1


def _absolute(model: str) -> str:
    """A folder is meant from here, not from the worktree in which the other side runs."""
    folder = Path(model).expanduser()
    return str(folder.resolve()) if model not in bundled_names() and folder.is_dir() else model
