"""quambench init: a repository's own calibration code, under the gate from now on."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from contextlib import chdir, suppress
from pathlib import Path

from quambench.case import Case
from quambench.core.errors import BadParameter, NotWritten, check_writable
from quambench.core.files import write
from quambench.core.plain_text import plain
from quambench.core.reading import is_folder

CONFTEST = '''"""Puts this repository's calibration code under quambench's gate: pytest suites/"""

pytest_plugins = ["quambench.pytest_plugin"]
'''
INI = """# pytest's root is here, wherever it is called and whatever paths are given to it: so is baselines/.
[pytest]
"""
SUITE = '''"""What is judged: each case a model of the gate's, times one line here."""

import pytest


@pytest.mark.cases(
{cases}
    quick=True,
)
def test_{name}(case, judge):
    judge(case)
'''
# Files by which pytest finds its root, and the section that they need for it.
CONFIGURING = {
    "pytest.ini": "", ".pytest.ini": "", "pytest.toml": "", ".pytest.toml": "", "pyproject.toml": "tool.pytest",
    "tox.ini": "pytest]", "setup.cfg": "tool:pytest]",
}  # fmt: skip
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
    configured = _configured(folder)
    if not configured:
        files[Path("pytest.ini")] = INI
    check_writable(folder / "suites")
    if out := [str(name) for name in files if not _stays_in(folder, name)]:
        raise BadParameter(f"nothing was written: {', '.join(out)} in {folder} is a link, or behind one, out of it")
    if there := [str(name) for name, text in files.items() if not _free(folder / name, text)]:
        raise BadParameter(f"nothing was written: {', '.join(there)} in {folder} would be replaced; move it away first")
    for path in _write({folder / name: text for name, text in files.items()}):
        print(f"written: {plain(str(path))}")
    if configured and configured.name != "pytest.ini":
        print(
            f"pytest is configured by {plain(str(configured))}, so no pytest.ini was written: its root is there already"
        )
    print(NEXT.format(folder=plain(str(folder.resolve()))), end="")
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


def _configured(folder: Path) -> Path | None:
    """The file of a folder that makes it pytest's root, if there is one."""
    for name, section in CONFIGURING.items():
        path = folder / name
        if path.is_file() and (not section or f"[{section}" in path.read_text(encoding="utf-8", errors="replace")):
            return path
    return None


def _stays_in(folder: Path, name: Path) -> bool:
    """Whether what is written there would be in the folder, whatever links there are on the way."""
    return (folder / name).resolve().is_relative_to(folder.resolve())


def _free(path: Path, text: str) -> bool:
    """Nothing is there, or what would be written."""
    if not path.exists():
        return not path.is_symlink()
    return path.is_file() and path.read_bytes() == text.encode()


def _write(files: Mapping[Path, str]) -> list[Path]:
    """All that are not there, or none. raises NotWritten"""
    written: list[Path] = []
    made = [d for d in dict.fromkeys(path.parent for path in files) if not d.exists()]
    try:
        for path, text in files.items():
            if path.exists():
                continue
            write(path, text)
            written.append(path)
    except BaseException as error:
        for path in written:
            path.unlink(missing_ok=True)
        for folder in reversed(made):
            with suppress(OSError):  # somebody else's by now
                folder.rmdir()
        if isinstance(error, NotWritten):
            raise NotWritten(f"nothing was written: {error}") from None
        raise
    return written


def _check(cases: Sequence[str]) -> None:
    for text in cases:
        Case.parse("model", text)


def _suite(name: str, cases: Sequence[str]) -> str:
    lines = "\n".join(f'    "{text}",' for text in cases)
    text = SUITE.format(cases=lines, name=name)
    return text.replace("quick=True,\n", 'quick=True,\n    architecture="mamba2",\n') if name == "grouping" else text
