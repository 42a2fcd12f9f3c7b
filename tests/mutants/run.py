"""Asks of each small fault in the code that judges whether a test fails by it.

    tox run -e mutants                                       all of files.toml
    tox run -e mutants -- quambench/gate/stats.py            files by name or pattern
    tox run -e mutants -- quambench/gate/* --share 0.1       a tenth of each, drawn by a fixed seed

A mutant that no test fails by is killed by a better test, or is listed in equivalent.toml with the reason why no
test can. Exit 1 where one is neither, where a listed one is no mutant any more, or where under 95 % are killed.

A mutant's tests run up to the first failure: those that reach its lines first, of these the fastest file's.
Most mutants take milliseconds: a process that has collected the tests forks, and the child exchanges the code of the
functions at fault. What an import runs needs a child that imports and collects afresh, a second each.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import fnmatch
import gc
import importlib
import json
import os
import pkgutil
import random
import resource
import shutil
import signal
import sys
import tempfile
import threading
import time
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import CodeType, FrameType, FunctionType
from typing import Any, NoReturn

import pytest
from make import Key, Mutant, mutants

ROOT = Path.cwd()
FOLDER = ROOT / "tests" / "mutants"
ENOUGH = 0.95
SEED = 0
SLOWEST = 5.0  # seconds of processor time: a test that takes longer judges no mutant, unless files.toml allows it
PATIENCE, AT_LEAST = 10, 20  # a mutant may take twenty seconds and ten times its tests' time
PR_SET_PDEATHSIG = 1
MEMORY = 16 << 30  # bytes of address space
LEFT_BEHIND = shutil.ignore_patterns(".*", "__pycache__", "*.egg-info", "build")
PYTEST = ("-W", "error", "-W", "ignore:Module already imported", "-q", "-p", "no:cacheprovider", "--benchmark-disable")


@dataclass(slots=True)
class Outcome:
    """What became of one file's mutants."""

    file: str
    judged: list[Mutant]
    survivors: list[Mutant] = field(default_factory=list)
    listed: list[Mutant] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def killed(self) -> int:
        return len(self.judged) - len(self.survivors) - len(self.listed)


@dataclass(slots=True)
class Tests:
    """What one run of the tests over the file as it stands has shown; all of it goes through JSON."""

    seconds: dict[str, float]  # by node id
    reached: dict[str, list[int]]  # by node id: lines of the file
    imported: list[int]  # lines that run before any test
    failed: list[str]
    slowest: float

    def of(self, mutant: Mutant) -> list[str]:
        """All that may see it: first those that reached its lines, and of these the fastest file's first.

        The rest follow, since a test may rest on what a fixture or a cache that another test filled has computed.
        """
        lines = set(range(mutant.lines[0], mutant.lines[1] + 1))
        chosen = [name for name, seconds in self.seconds.items() if seconds <= self.slowest]
        if not any(not lines.isdisjoint(reached) for reached in (self.imported, *self.reached.values())):
            return []
        fastest: dict[str, float] = {}
        for name in chosen:
            module = name.partition("::")[0]
            fastest[module] = min(self.seconds[name], fastest.get(module, self.slowest))

        def order(name: str) -> tuple[bool, float, str, float]:
            module = name.partition("::")[0]
            return lines.isdisjoint(self.reached[name]), fastest[module], module, self.seconds[name]

        return sorted(chosen, key=order)

    def at_import(self, mutant: Mutant) -> bool:
        return not set(range(mutant.lines[0], mutant.lines[1] + 1)).isdisjoint(self.imported)

    def limit(self, names: Sequence[str]) -> int:
        return int(AT_LEAST + PATIENCE * sum(self.seconds[name] for name in names))


class Watch:
    """Notes which lines of one file run."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)
        self.lines: set[int] = set()

    def __enter__(self) -> Watch:
        threading.settrace(self._enters)
        sys.settrace(self._enters)
        return self

    def __exit__(self, *_: object) -> None:
        sys.settrace(None)
        threading.settrace(None)  # type: ignore[arg-type]

    def taken(self) -> list[int]:
        lines, self.lines = sorted(self.lines), set()
        return lines

    def _enters(self, frame: FrameType, event: str, arg: Any) -> Any:
        return self._steps if frame.f_code.co_filename == self.path else None

    def _steps(self, frame: FrameType, event: str, arg: Any) -> Any:
        self.lines.add(frame.f_lineno)
        return self._steps


class InPlace:
    """pytest plug-in: once the tests are collected, a child for each mutant, with its functions' code exchanged."""

    def __init__(self, path: Path, todo: Sequence[Mutant], slowest: float, watch: Watch, answer: Path) -> None:
        self.path, self.todo, self.slowest, self.watch, self.answer = path, todo, slowest, watch, answer

    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        imported = self.watch.taken()
        self.watch.__exit__()
        if session.testsfailed:
            raise session.Interrupted("the tests cannot be collected")
        measured = self.answer.with_suffix(".tests")
        in_child(lambda: self._measure(session.items, imported, measured), 3600)
        tests = Tests(**json.loads(measured.read_text()), slowest=self.slowest)
        by_name = {item.nodeid: item for item in session.items}
        original, live = self.path.read_text(encoding="utf-8"), functions_of(self.path)
        for number, mutant in enumerate(self.todo):
            names = tests.of(mutant)
            exchange = None if tests.at_import(mutant) else exchanged(original, mutant.source, self.path, live)
            if not tests.failed and names and exchange is not None:
                items = [by_name[name] for name in names]
                survived = in_child(lambda e=exchange, i=items: self._judge(e, i), tests.limit(names)) == 0
                say(self.answer, number, survived)
            elif not names:
                say(self.answer, number, True)  # no test reaches it
        return True

    def _measure(self, items: Sequence[pytest.Item], imported: list[int], to: Path) -> None:
        seconds, reached, failed = {}, {}, Failed()
        items[0].config.pluginmanager.register(failed)
        with self.watch:
            for item, following in in_turn(items):
                start = busy()
                item.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
                seconds[item.nodeid], reached[item.nodeid] = busy() - start, self.watch.taken()
        to.write_text(
            json.dumps({"seconds": seconds, "reached": reached, "imported": imported, "failed": failed.names})
        )

    def _judge(self, exchange: Sequence[tuple[FunctionType, CodeType]], items: Sequence[pytest.Item]) -> None:
        for function, code in exchange:
            function.__code__ = code
        items[0].config.pluginmanager.register(Failed(at_once=True))
        for item, following in in_turn(items):
            item.config.hook.pytest_runtest_protocol(item=item, nextitem=following)


class Afresh:
    """pytest plug-in: the chosen tests alone, in their order; and those that were not there before."""

    def __init__(self, names: Sequence[str], known: Sequence[str]) -> None:
        self.rank, self.known = {name: i for i, name in enumerate(names)}, set(known)

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        kept = [item for item in items if item.nodeid in self.rank or item.nodeid not in self.known]
        items[:] = sorted(kept, key=lambda item: self.rank.get(item.nodeid, -1))


class Failed:
    """pytest plug-in: the tests that failed, or an end at the first."""

    def __init__(self, at_once: bool = False) -> None:
        self.at_once = at_once
        self.names: list[str] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            self.names.append(report.nodeid)
            if self.at_once:
                os._exit(1)


def busy() -> float:
    """Seconds of processor time so far, children's included: another's load does not make a test slow."""
    return sum(os.times()[:4])


def in_turn(items: Sequence[pytest.Item]) -> Iterator[tuple[pytest.Item, pytest.Item | None]]:
    """Each with the one after it, which pytest asks for."""
    return zip(items, (*items[1:], None), strict=True)


def in_child(work: Callable[[], int | None], limit: int) -> int:
    """Exit status of `work` in a child; below zero where a signal ended it."""
    sys.stdout.flush()
    pid = os.fork()
    if not pid:
        _be_child(work, limit)
    _, status = os.waitpid(pid, 0)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)  # whatever the tests left running
    return os.waitstatus_to_exitcode(status)


def _be_child(work: Callable[[], int | None], limit: int) -> NoReturn:
    status = 3
    try:
        os.setsid()
        if sys.platform == "linux":
            ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)  # an interrupted run leaves nothing behind
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(limit)
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, resource.getrlimit(resource.RLIMIT_AS)[1]))
        status = int(work() or 0)
    except BaseException as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
    finally:
        os._exit(status)


def functions_of(path: Path) -> list[FunctionType]:
    """All that live in this process."""
    found = (thing for thing in gc.get_objects() if isinstance(thing, FunctionType))
    return [function for function in found if function.__code__.co_filename == str(path)]


def exchanged(
    original: str, mutated: str, path: Path, live: Sequence[FunctionType]
) -> list[tuple[FunctionType, CodeType]] | None:
    """What code each living function gets; None where that would not be the mutant."""
    was, now = (list(_codes(compile(text, str(path), "exec", dont_inherit=True))) for text in (original, mutated))
    if [c.co_qualname for c in was] != [c.co_qualname for c in now]:
        return None
    changed = {}
    for old, new in zip(was, now, strict=True):
        if _own(old) == _own(new):
            continue
        if not old.co_flags & 0x02 or old.co_freevars != new.co_freevars:  # 0x02: of a function, not a class or module
            return None
        changed[old] = new
    inside = {old: new for old, new in zip(was, now, strict=True) if any(c in changed for c in _codes(old))}
    return [(function, inside[function.__code__]) for function in live if function.__code__ in inside] or None


def _codes(code: CodeType) -> Iterator[CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _codes(constant)


def _own(code: CodeType) -> tuple[Any, ...]:
    """A code object without those inside it and without places in the source."""
    constants = [None if isinstance(c, CodeType) else repr(c) for c in code.co_consts]
    return code.co_code, constants, code.co_names, code.co_varnames, code.co_flags, code.co_argcount


def say(answer: Path, number: int, survived: bool) -> None:
    with answer.open("a") as file:
        file.write(f"{number} {int(survived)}\n")


def judge(row: Mapping[str, Any], todo: Sequence[Mutant], home: Path) -> Iterator[tuple[Mutant, bool]]:
    """Each mutant, and whether it survived; in a process that has not yet imported the file's package."""
    file, tests, slowest = row["path"], row["tests"], row.get("slowest", SLOWEST)
    path, answer = home / file, home / "answers"
    answer.write_text("")
    original = path.read_text(encoding="utf-8")

    def collected() -> int:
        quietly(home)
        watch = Watch(path)
        with watch:
            return pytest.main(
                [*PYTEST, f"--basetemp={home}/tmp", *tests], plugins=[InPlace(path, todo, slowest, watch, answer)]
            )

    status = in_child(collected, 24 * 3600)
    measured = answer.with_suffix(".tests")
    if status or not measured.exists():
        raise SystemExit(f"{file}: its tests cannot be run\n{end_of_log(home)}")
    found = Tests(**json.loads(measured.read_text()), slowest=slowest)
    if found.failed:
        raise SystemExit(f"{file}: tests fail without any mutant: {', '.join(found.failed[:3])}\n{end_of_log(home)}")
    done = {int(n): survived == "1" for n, survived in (line.split() for line in answer.read_text().splitlines())}
    for number, survived in done.items():
        yield todo[number], survived

    def afresh(names: Sequence[str]) -> int:
        quietly(home)
        files = sorted({name.partition("::")[0] for name in names})
        return pytest.main(
            [*PYTEST, "-x", f"--basetemp={home}/tmp", *files], plugins=[Afresh(names, list(found.seconds))]
        )

    rest = [(mutant, found.of(mutant)) for number, mutant in enumerate(todo) if number not in done]
    if rest and in_child(lambda: afresh(rest[0][1]), found.limit(rest[0][1])):
        raise SystemExit(f"{file}: tests fail in a process of their own without any mutant\n{end_of_log(home)}")
    for mutant, names in rest:
        path.write_text(mutant.source, encoding="utf-8")
        try:
            yield mutant, in_child(lambda n=names: afresh(n), found.limit(names)) == 0
        finally:
            path.write_text(original, encoding="utf-8")


def quietly(home: Path) -> None:
    """All output into a file, and every run of hypothesis the same."""
    log = os.open(home / "log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(log, 1)
    os.dup2(log, 2)
    from hypothesis import Phase, settings

    phases = (Phase.explicit, Phase.generate)  # what failed need not be made small
    settings.register_profile("mutants", derandomize=True, database=None, deadline=None, phases=phases)
    settings.load_profile("mutants")


def end_of_log(home: Path) -> str:
    return "\n".join((home / "log").read_text(encoding="utf-8", errors="replace").splitlines()[-40:])


def import_all_but(module: str, home: Path, first: Sequence[str]) -> None:
    """Import what does not rest on a module, so that children need not; `first` takes longest."""

    class Blocked:
        def find_spec(self, name: str, *_: object) -> None:
            if name == module:
                raise ImportError(name)

    blocked = Blocked()
    sys.meta_path.insert(0, blocked)  # type: ignore[arg-type]
    for name in first:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    for found in pkgutil.walk_packages([str(home)], onerror=lambda name: None):
        if found.name.split(".")[0] == module.split(".")[0] and not found.name.endswith("__main__"):
            with contextlib.suppress(ImportError):
                importlib.import_module(found.name)
    sys.meta_path.remove(blocked)  # type: ignore[arg-type]


def judge_file(row: Mapping[str, Any], containing: str, home: Path, listed: set[Key], first: Sequence[str]) -> Outcome:
    """In a child, so that the next file starts with nothing imported."""
    file, share = row["path"], row["share"]
    todo = mutants(file, (ROOT / file).read_text(encoding="utf-8"))
    chosen = sorted(random.Random(SEED).sample(range(len(todo)), max(1, round(share * len(todo)))) if todo else [])
    todo = [todo[i] for i in chosen if containing in f"{todo[i].scope} {todo[i].was}"]
    outcome, start, told = Outcome(file, todo), time.perf_counter(), home / "told"

    def work() -> None:
        os.chdir(home)
        module = ".".join(Path(file).with_suffix("").parts).removesuffix(".__init__")
        import_all_but(module, home, first)
        gc.freeze()
        told.write_text("")
        for mutant, survived in judge(row, todo, home):
            say(told, todo.index(mutant), survived)

    if todo:
        if in_child(work, 24 * 3600):
            raise SystemExit(f"{file}: not judged")
        for line in told.read_text().splitlines():
            number, survived = line.split()
            if survived == "1":
                mutant = todo[int(number)]
                (outcome.listed if mutant.key in listed else outcome.survivors).append(mutant)
    outcome.seconds = time.perf_counter() - start
    return outcome


def workplace(home: Path) -> None:
    """A copy in which files may be mutated, first on the import path of this process and its children."""
    shutil.copytree(ROOT, home, ignore=LEFT_BEHIND, dirs_exist_ok=True)
    os.environ |= {"PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    os.environ["PYTHONPATH"] = os.pathsep.join([str(home), str(home / "kernels")])
    sys.dont_write_bytecode = True
    sys.path[:0] = [str(home), str(home / "kernels")]


def as_line(mutant: Mutant) -> str:
    return f"  survived {mutant.file}:{mutant.lines[0]} {mutant.scope}\n    - {mutant.was}\n    + {mutant.now}"


def as_entry(mutant: Mutant) -> str:
    """As equivalent.toml would list it."""
    rows = (("file", mutant.file), ("scope", mutant.scope), ("was", mutant.was), ("now", mutant.now), ("reason", ""))
    return "[[equivalent]]\n" + "".join(f"{key} = {_quoted(value)}\n" for key, value in rows)


def _quoted(text: str) -> str:
    return f"'{text}'" if "'" not in text and text else json.dumps(text, ensure_ascii=False)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*", default=["*"], help="names or patterns; default: all of files.toml")
    parser.add_argument("--share", type=float, help="of each file's mutants; default: as files.toml says")
    parser.add_argument("--containing", default="", metavar="TEXT", help="mutants of lines or functions with this text")
    parser.add_argument("--entries", action="store_true", help="show survivors as equivalent.toml would list them")
    asked = parser.parse_args()

    table = tomllib.loads((FOLDER / "files.toml").read_text(encoding="utf-8"))
    entries = tomllib.loads((FOLDER / "equivalent.toml").read_text(encoding="utf-8")).get("equivalent", [])
    chosen = [row for row in table["files"] if any(fnmatch.fnmatch(row["path"], pattern) for pattern in asked.files)]
    if not chosen:
        raise SystemExit(f"no file of files.toml is named {' or '.join(asked.files)}")
    listed = {(e["file"], e["scope"], e["was"], e["now"]) for e in entries if e["reason"]}
    outcomes = []
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        home = Path(folder).resolve()
        workplace(home)
        for row in chosen:
            row["share"] = asked.share or row.get("share", 1.0)
            outcome = judge_file(row, asked.containing, home, listed, table["first"])
            outcomes.append(outcome)
            print(f"{outcome.file}: {outcome.killed} of {len(outcome.judged)} in {outcome.seconds:.0f} s", flush=True)
            for mutant in outcome.survivors:
                print(as_entry(mutant) if asked.entries else as_line(mutant), flush=True)
    whole = {row["path"] for row in chosen if row["share"] == 1 and not asked.containing}
    return report(outcomes, {key for key in listed if key[0] in whole})


def report(outcomes: Sequence[Outcome], listed: set[Key]) -> int:
    """The table, and what is wrong with it; 1 where something is. `listed`: of files judged in full."""
    head = ("file", "mutants", "killed", "equivalent", "survived", "seconds")
    rows = [(o.file, len(o.judged), o.killed, len(o.listed), len(o.survivors), f"{o.seconds:.0f}") for o in outcomes]
    mutants_, killed, equivalent, survived = (sum(row[i] for row in rows) for i in range(1, 5))
    rows.append(("all", mutants_, killed, equivalent, survived, f"{sum(o.seconds for o in outcomes):.0f}"))
    print("| " + " | ".join(head) + " |\n|---|--:|--:|--:|--:|--:|")
    for row in rows:
        print("| " + " | ".join(map(str, row)) + " |")
    wrong = []
    if survived:
        wrong.append(f"{survived} mutants survived and are not listed in equivalent.toml")
    if mutants_ and killed < ENOUGH * mutants_:
        wrong.append(f"{killed / mutants_:.1%} are killed, fewer than {ENOUGH:.0%}")
    stale = listed - {mutant.key for outcome in outcomes for mutant in outcome.listed}
    wrong += [f"listed as equivalent, but killed or no mutant any more: {' | '.join(key)}" for key in sorted(stale)]
    print("\n".join(wrong))
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
