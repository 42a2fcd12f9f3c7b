"""Options and progress that several commands share."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from quambench.core.errors import BadParameter, NotWritten, check_name, check_writable
from quambench.core.files import check_replaceable
from quambench.core.plain_text import plain
from quambench.data.corpus import Corpus, load_corpus
from quambench.models.checkpoint import recalls
from quambench.run.runner import Progress as Report


def add_model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "model",
        help="a bundled model, a folder with config.json and weights, or a hub name, org/name or org/name@revision",
    )


def add_device(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", default="cpu", help="where the model runs: cpu, cuda or cuda:N (default: cpu)")


def add_corpus(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--corpus", type=Path, metavar="PATH", help="a folder of .txt or a .jsonl with 'text'")


def corpus_of(options: argparse.Namespace) -> Corpus:
    """What --corpus names; what of it is left out is said. raises BadCorpus"""
    corpus = load_corpus(options.corpus)
    note(corpus.left_out)
    return corpus


def note(line: str) -> None:
    """A line beside the results; none where there is nothing to say."""
    if line:
        print(plain(line), file=sys.stderr)


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


def given(options: argparse.Namespace, option: str) -> bool:
    """Whether an option without a default was written."""
    return getattr(options, option.removeprefix("--").replace("-", "_")) not in (None, False, [])


def refuse_beside(options: argparse.Namespace, which: str, others: Iterable[str], why: str) -> None:
    """Nothing that was asked for is left aside without a word.

    others  options that would change nothing beside `which`, and `why`: "names the faults alone"
    raises BadParameter for the first of them that was written
    """
    for other in others:
        if given(options, other):
            raise BadParameter(f"{which} {why}: leave {other} out")


def check_counts(options: argparse.Namespace, *names: str) -> None:
    """Numbers of things, where they are given. raises BadParameter below 1"""
    for name in names:
        value = getattr(options, name.removeprefix("--").replace("-", "_"))
        if value is not None and value < 1:
            raise BadParameter(f"{name} must be a whole number, 1 or more (got {value})")


def check_corpus(corpus: Path | None, models: Iterable[str]) -> None:
    """Whether any of the models reads texts. raises BadParameter"""
    asked = list(models)
    if corpus and all(map(recalls, asked)):
        raise BadParameter(f"{', '.join(asked)} reads no texts, its sequences are made: leave --corpus out")


def check_out(path: Path | None) -> None:
    """Whether a file can be written there later; before work that would end in it.

    raises BadParameter, NotWritten
    """
    if path:
        check_name(path)
        check_writable(path.parent)
        check_replaceable(path)


def show(text: str, written: Callable[[], None]) -> None:
    """Print what was found, and then write it; neither costs the other: a reader may be gone, a disk may be full."""
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    finally:
        written()


def write_each(paths: Sequence[Path], written: Callable[[Path], None]) -> None:
    """Each by itself: one that cannot be written keeps no other from being. raises the first NotWritten in the end"""
    failed: list[NotWritten] = []
    for path in paths:
        try:
            written(path)
            print(f"report: {plain(str(path))}")
        except NotWritten as error:
            failed.append(error)
    for other in failed[1:]:
        print(f"quambench: {plain(str(other))}", file=sys.stderr)
    if failed:
        raise failed[0]


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
