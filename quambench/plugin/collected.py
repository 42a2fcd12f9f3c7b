"""What pytest collected, and what became of it: enough to tell what is gone from what is unknown.

A stored case that nothing produces is gone only where its suite is: the file is not there any more, or was
collected and ran whole without it. Not collected, skipped, left out, crashed: nobody knows.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path

PASSED, SKIPPED, XFAILED = "passed", "skipped", "xfailed"


@dataclass(frozen=True, slots=True)
class Item:
    """One test that was collected."""

    file: Path
    case_id: str = ""  # of the case that it is to judge
    model: str = ""
    asks: bool = False  # for a verdict, on a case or a probe


@dataclass(frozen=True, slots=True)
class Row:
    """One verdict, as far as the test that asked for it is concerned."""

    case_id: str
    status: str
    passes: bool


@dataclass
class Collected:
    """Facts of one run. Under xdist each worker has its own, and the controller merges them."""

    files: set[Path] = field(default_factory=set)
    broken: dict[Path, str] = field(default_factory=dict)  # file -> why not all of it was collected
    items: dict[str, Item] = field(default_factory=dict)  # by node id, before anything is taken away
    chosen: set[str] = field(default_factory=set)  # node ids that were to run
    ended: dict[str, str] = field(default_factory=dict)  # node id -> how
    called: set[str] = field(default_factory=set)  # node ids whose function was entered
    expected: dict[str, str] = field(default_factory=dict)  # node id -> the reason of its xfail
    rows: dict[str, list[Row]] = field(default_factory=dict)  # node id -> verdicts that it got
    early: bool = False  # the run was ended from inside
    lost: list[str] = field(default_factory=list)  # workers that did not say what they found

    def merge(self, other: Collected) -> None:
        """Take over what a worker found."""
        self.files |= other.files
        self.broken |= other.broken
        self.items |= other.items
        self.chosen |= other.chosen
        self.rows |= other.rows
        self.early |= other.early

    def judge(self, nodeid: str, row: Row) -> None:
        """A test got a verdict; of one that runs again, the last counts."""
        others = [other for other in self.rows_of(nodeid) if other.case_id != row.case_id]
        self.rows[nodeid] = [*others, row]

    def end(self, nodeid: str, outcome: str, called: bool, expected: str | None) -> None:
        """One phase of a test is over: set-up, the call, or tear-down.

        expected  the reason of its xfail, where that decided the outcome
        """
        if called:
            self.called.add(nodeid)
        if expected is not None:
            self.expected[nodeid] = expected
            outcome = XFAILED if outcome == SKIPPED else outcome
        if called or outcome != PASSED:
            self.ended[nodeid] = outcome

    def is_suite(self, file: Path) -> bool:
        """Whether a file that was collected is there to judge cases; one of which nothing is known, by its words."""
        own = [item for item in self.items.values() if item.file == file]
        return any(item.asks for item in own) or ((not own or file in self.broken) and _reads_as_suite(file))

    @property
    def left_out(self) -> list[str]:
        """Collected tests that did not run: deselected, or not reached."""
        return [nodeid for nodeid in self.items if nodeid not in self.ended]

    def unknown(self, files: Collection[Path]) -> str:
        """Why nobody can say which cases these files produce; "" where all were collected and ran whole."""
        if self.lost:
            return f"{self.lost[0]} crashed"
        for file in sorted(files):
            if file not in self.files:
                return f"{file.name} was not collected"
            if file in self.broken:
                return f"{file.name} {self.broken[file]}"
        own = [nodeid for nodeid, item in self.items.items() if item.file in files]
        for nodeid in own:
            if self.ended.get(nodeid) == SKIPPED:
                return f"{nodeid} was skipped"
            if nodeid not in self.called:
                return f"{nodeid} did not run"
        return ""

    def produced(self, files: Collection[Path], model: str = "") -> set[str]:
        """Ids of the cases that these files name, all of them or those of one model."""
        tests = [test for test in self.items.values() if test.case_id and test.file in files]
        return {test.case_id for test in tests if model in ("", test.model)}

    def judged(self, files: Collection[Path]) -> set[str]:
        """Ids of the cases of these files that got a verdict."""
        return {
            row.case_id for nodeid, item in self.items.items() if item.file in files for row in self.rows_of(nodeid)
        }

    def rows_of(self, nodeid: str) -> list[Row]:
        return self.rows.get(nodeid, [])

    @property
    def excused(self) -> Iterator[tuple[str, Row]]:
        """(reason, row) of verdicts that fail in tests whose author expects it: marked xfail."""
        return ((self.expected[n], row) for n, row in self._failing() if n in self.expected)

    @property
    def swallowed(self) -> Iterator[tuple[str, Row]]:
        """(node id, row) of verdicts that fail in tests that did not: somebody caught what `judge` raised."""
        return ((n, r) for n, r in self._failing() if n not in self.expected and self.ended.get(n) in (PASSED, SKIPPED))

    def _failing(self) -> Iterator[tuple[str, Row]]:
        return ((nodeid, row) for nodeid, rows in self.rows.items() for row in rows if not row.passes)


def suite_of(file: Path) -> str:
    """The name that a suite's results are stored under."""
    return file.stem.removeprefix("test_")


def standing(folder: Path) -> dict[str, set[Path]]:
    """Suite -> the files on disk that may be it, whether pytest would collect them or not."""
    found: dict[str, set[Path]] = {}
    for file in _modules(folder):
        found.setdefault(suite_of(file), set()).add(file)
    return found


def moved(root: Path, suite: str) -> Path | None:
    """A file anywhere below that may be this suite: of its name, and with the words of one."""
    for file in _modules(root):
        if suite_of(file) == suite and _reads_as_suite(file):
            return file
    return None


def _reads_as_suite(file: Path) -> bool:
    """Whether a file has the words of a suite."""
    text = file.read_bytes() if file.is_file() else b""
    return b"cases" in text and b"judge" in text


def _modules(folder: Path) -> Iterator[Path]:
    """Python files below, real paths; through links, as pytest goes, without hidden folders and environments."""
    seen: set[Path] = set()
    for place, folders, names in os.walk(folder, followlinks=True):
        here = Path(place).resolve()
        if here in seen:  # a link that leads back
            folders.clear()
            continue
        seen.add(here)
        folders[:] = sorted(n for n in folders if not n.startswith(".") and not (here / n / "pyvenv.cfg").exists())
        yield from ((here / name).resolve() for name in sorted(names) if name.endswith(".py"))
