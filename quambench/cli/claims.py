"""quambench claims: what the user's guide claims, held against measurements."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from quambench.claims import FAMILIES, Sources
from quambench.claims.fresh import Fresh
from quambench.claims.render import Section, document, markdown, terminal
from quambench.claims.stored import Shelf
from quambench.cli.options import check_out, progress_bars, show
from quambench.core.errors import BadArtefact, NotWritten
from quambench.core.files import write
from quambench.core.plain_text import plain
from quambench.core.provenance import machine_class
from quambench.gate.baselines import BaselineStore
from quambench.models.checkpoint import bundled_names
from quambench.run.runner import Progress


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model", action="append", metavar="NAME|DIR", help="repeatable (default: every bundled model)"
    )
    parser.add_argument(
        "--baselines", type=Path, default=Path("baselines"), metavar="DIR", help="(default: baselines/)"
    )
    parser.add_argument("--stored", action="store_true", help="baselines alone: measure nothing afresh")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the document, as markdown")
    parser.add_argument("--json", action="store_true", help="for machines")


def run(options: argparse.Namespace) -> int:
    given = options.model or list(bundled_names())
    check_out(options.out)
    if not options.baselines.is_dir():
        raise BadArtefact(f"there is no folder {options.baselines}; pytest suites/ --qb-update writes baselines")
    store = BaselineStore(options.baselines, machine_class())
    shelves = {name: Shelf(store, name) for name in (Path(model).name for model in given)}
    empty = [name for name, shelf in shelves.items() if not len(shelf)]
    if empty and (options.model or len(empty) == len(shelves)):
        what = " or ".join(empty)
        raise BadArtefact(f"{options.baselines} holds no baseline of {what}; pytest suites/ --qb-update writes them")
    with progress_bars() as progress:
        sections = _sections(_sources(shelves, [] if options.stored else given, progress))
    if options.json:
        text = json.dumps(document(sections), indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    else:
        text = "" if options.out else terminal(sections)
    show(text, lambda: _write(options.out, sections, list(shelves)) if options.out else None)
    if options.out and not options.json:
        print(f"written: {plain(str(options.out))}")
    return 0


def _write(path: Path, sections: list[Section], models: list[str]) -> None:
    """What cannot be written is shown instead, since it was measured. raises NotWritten"""
    try:
        write(path, markdown(sections, models))
    except NotWritten:
        sys.stdout.write(terminal(sections))
        raise


def _sources(shelves: dict[str, Shelf], measured: list[str], progress: Progress) -> Sources:
    """measured: models, as given, on which fresh numbers may be taken"""
    return Sources(
        shelves=shelves,
        fresh={Path(model).name: Fresh(model, progress) for model in measured},
        recall=frozenset(name for name, shelf in shelves.items() if shelf.recalls or name in bundled_names("recall")),
    )


def _sections(sources: Sources) -> list[Section]:
    made = [Section(f.title, f.about, f.rows(sources)) for f in FAMILIES.values()]
    return [section for section in made if section.rows]
