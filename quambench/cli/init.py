"""quambench init: a repository's own calibration code, under the gate from now on."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from contextlib import chdir
from pathlib import Path

from quambench.case import Case
from quambench.errors import BadParameter, check_writable
from quambench.reading import is_folder

CONFTEST = '''"""Puts this repository's calibration code under quambench's gate: pytest suites/"""

pytest_plugins = ["quambench.pytest_plugin"]
'''
SUITE = '''"""What is judged: each case a model of the gate's, times one line here."""

import pytest


@pytest.mark.cases(
{cases}
    quick=True,
)
def test_{name}(case, judge):
    judge(case)
'''
NEXT = """
Next, in {folder}:
    pytest suites/ --qb-new-only     measure, and store what has no baseline yet: commit baselines/
    pytest suites/                   judge: red, with the place, when the code's scales change
"""


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", nargs="?", type=Path, default=Path(), help="of the repository (default: this one)")
    add = parser.add_argument
    add("--observer", action="append", default=[], metavar="MODULE:CLASS", help="to be judged; repeatable")
    add("--grouping", action="append", default=[], metavar="MODULE:FUNCTION", help="likewise; of Mamba2's heads")
    add("--calibration", action="append", default=[], metavar="MODULE:FUNCTION", help="likewise; of a whole model")


def run(options: argparse.Namespace) -> int:
    folder: Path = options.folder
    suites = _suites(options)
    files = {Path("conftest.py"): CONFTEST, **{Path("suites") / f"test_{n}.py": text for n, text in suites.items()}}
    check_writable(folder / "suites")
    if there := [str(name) for name, text in files.items() if not _free(folder / name, text)]:
        raise BadParameter(f"nothing was written: {', '.join(there)} in {folder} would be replaced; move it away first")
    for name, text in files.items():
        if (folder / name).exists():
            continue
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")
        print(f"written: {folder / name}")
    print(NEXT.format(folder=folder.resolve()), end="")
    return 0


def _suites(options: argparse.Namespace) -> dict[str, str]:
    """Name -> text, of each kind of thing asked for; of observers, where nothing is.

    raises UnknownName, BadParameter for what cannot be imported
    """
    grouped = [f"running_max/{name}/quamba2" for name in options.grouping]
    whole = [f"calibration={name}" for name in options.calibration]
    asked = {
        "observer": ["percentile", *options.observer] if options.observer else [],
        "grouping": ["running_max/4x4/quamba2", *grouped] if grouped else [],
        "calibration": ["running_max/uniform", *whole] if whole else [],
    }
    if not any(asked.values()):
        asked["observer"] = ["percentile"]
    with chdir(options.folder if is_folder(options.folder) else Path()):  # where the suites will run
        _check([text for cases in asked.values() for text in cases])
    return {name: _suite(name, cases) for name, cases in asked.items() if cases}


def _free(path: Path, text: str) -> bool:
    """Nothing is there, or what would be written."""
    return not path.exists() or (path.is_file() and path.read_bytes() == text.encode())


def _check(cases: Sequence[str]) -> None:
    for text in cases:
        Case.parse("model", text)


def _suite(name: str, cases: Sequence[str]) -> str:
    lines = "\n".join(f'    "{text}",' for text in cases)
    text = SUITE.format(cases=lines, name=name)
    return text.replace("quick=True,\n", 'quick=True,\n    architecture="mamba2",\n') if name == "grouping" else text
