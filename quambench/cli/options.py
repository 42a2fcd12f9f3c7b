"""Options and progress that several commands share."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from quambench.errors import BadParameter, check_name, check_writable
from quambench.runner import Progress as Report


def add_model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "model",
        help="a bundled model, a folder with config.json and weights, or a hub name, org/name or org/name@revision",
    )


def add_device(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", default="cpu", help="where the model runs: cpu, cuda or cuda:N (default: cpu)")


def add_corpus(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--corpus", type=Path, metavar="PATH", help="a folder of .txt or a .jsonl with 'text'")


def add_observers(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--observer",
        action="append",
        metavar="SPEC",
        help='at the percentile sites, e.g. "percentile[alpha=0.9995,sigma=0.01]" (default), with more parts of a'
        ' case behind it where wanted, "mse/channel/w8a4"; repeatable',
    )


def add_format(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--format", choices=("quamba",), required=True, help="quamba: docs/quamba.md describes it")


def check_out(path: Path | None) -> None:
    """Whether `write_out` can write there later; before work that would end in it.

    raises BadParameter
    """
    if path:
        check_name(path)
        check_writable(path.parent)
        if path.is_dir():
            raise BadParameter(f"--out must be a file (got the folder {path})")


def write_out(path: Path, text: str) -> None:
    """The folder is made where there is none yet."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


@contextmanager
def progress_bars() -> Iterator[Report]:
    """Bars on stderr, one per kind of work; silent where stderr is no terminal."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bars:
        tasks: dict[str, object] = {}

        def report(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bars.add_task(what, total=total)
            bars.update(tasks[what], completed=done, total=total)  # type: ignore[arg-type]

        yield report
