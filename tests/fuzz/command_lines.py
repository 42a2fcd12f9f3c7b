"""Command lines as a user types them, each in a process with files for its output and an exit code of its own.

`own` starts an interpreter, which takes seconds to import torch. `forked` is the same from there on: a fork of this
process, which has imported everything, calls the entry of `quambench` as the interpreter would, and ends as it would.
"""

from __future__ import annotations

import atexit
import ctypes
import faulthandler
import itertools
import os
import random
import resource
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import IO, NoReturn

from engine import ACCEPTED, MEMORY, PATIENCE, PR_SET_PDEATHSIG, REFUSED, Told, WrongAcceptance
from kinds import _slow, arguments, argv_start, reads_back

from quambench.cli import main as entry

STARTING = 20  # seconds that an interpreter may take to import torch, beside others on the machine
LIMIT = 4 * MEMORY  # of address space: the machine is not ours alone
EXIT_CODES = (0, 1, 2)


@dataclass(frozen=True, slots=True)
class Ended:
    """A process that has ended; killed where it took too long."""

    code: int  # negative: the signal that ended it
    said: str  # on standard error
    told: str = ""  # on standard output
    peak: int = 0  # bytes resident
    killed: bool = False

    def judged(self) -> tuple[str, str]:
        """(outcome, what was found; "" where nothing was)."""
        last = self.said[-400:]
        if self.killed:
            return "hang", f"killed: {last}"
        if self.code < 0:
            return "crash", f"died of signal {-self.code}: {last}"
        if "Traceback (most recent call last)" in self.said or self.code not in EXIT_CODES:
            return "traceback", f"exit code {self.code}: {last}"
        if self.peak > MEMORY:
            return "memory", f"{self.peak / 2**30:.1f} GiB"
        if obeyed := {c for c in self.said + self.told if unicodedata.category(c) == "Cc"} - {"\n", "\r"}:
            return "wrong acceptance", f"a terminal gets {sorted(obeyed)} as they were typed"
        if self.code == 2:
            return REFUSED, "" if self._is_one_line() else f"a message that is not one line: {last!r}"
        return ACCEPTED, ""

    def _is_one_line(self) -> bool:
        lines = self.said.splitlines()
        if self.said.startswith("usage: "):  # argparse says how a command is called, and then what is wrong
            return ": error: " in lines[-1]
        return len(lines) == 1 and lines[0].startswith("quambench: ")


Run = Callable[[Sequence[str], Path], Ended]


def run(name: str, way: Run, seed: int, first: int, count: int, stop: Callable[[], bool]) -> tuple[Told, int]:
    """(what came of `count` lines, the number after the last), each in a folder made for it."""
    found = Told(name)
    for number in itertools.count(first):
        if sum(found.outcomes.values()) - found.outcomes["left out"] >= count or stop():
            return found, number
        words = arguments(random.Random(f"{seed}/cli/{number}"))
        if _slow(words) or any("\0" in word for word in words):
            found.outcomes["left out"] += 1  # no shell can say a NUL byte
            continue
        with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
            argv_start(Path(folder))
            outcome, what = way(words, Path(folder)).judged()
            if outcome == ACCEPTED:
                outcome, what = _as_read_back(words, Path(folder))
        found.outcomes[outcome] += 1
        if what:
            found.findings.append((number, f"{[word[:100] for word in words]}: {what}"))
    raise AssertionError


def _as_read_back(words: list[str], folder: Path) -> tuple[str, str]:
    try:
        reads_back(words, folder)
    except WrongAcceptance as error:
        return "wrong acceptance", str(error)[:400]
    return ACCEPTED, ""


def as_typed(words: Sequence[str]) -> list[bytes]:
    return [os.fsencode(word.encode(errors="surrogatepass")) for word in words]


def own(words: Sequence[str], folder: Path) -> Ended:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(p or str(Path.cwd()) for p in sys.path)}
    command = [sys.executable, "-m", "quambench.cli.main", *as_typed(words)]
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        process = subprocess.Popen(
            command,
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=err,
            start_new_session=True,
            preexec_fn=_limited,
        )
        process.returncode = 0  # waited for here, for what it took
        return _ended(process.pid, out, err, PATIENCE + STARTING)


def forked(words: Sequence[str], folder: Path, main: Callable[[], int] = entry.main) -> Ended:
    for name in entry.COMMANDS:
        entry.COMMANDS[name].load(name)
    for name in ("torch._dynamo", "torch.utils.cpp_extension"):  # what torch itself imports late
        import_module(name)
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err, open(os.devnull) as nothing:
        child = os.fork()
        if not child:
            _as_the_interpreter_does(words, folder, (nothing, out, err), main)
        return _ended(child, out, err, PATIENCE)


def _limited() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (LIMIT, -1))


def _ended(child: int, out: IO[bytes], err: IO[bytes], patience: float) -> Ended:
    since, killed = time.monotonic(), False
    while True:
        pid, status, used = os.wait4(child, os.WNOHANG)
        if pid:
            break
        if time.monotonic() - since > patience and not killed:
            os.killpg(child, signal.SIGKILL)
            killed = True
        time.sleep(0.005)
    for file in (out, err):
        file.seek(0)
    told, said = (file.read().decode(errors="replace") for file in (out, err))
    return Ended(os.waitstatus_to_exitcode(status), said, told, used.ru_maxrss * 1024, killed)


def _as_the_interpreter_does(
    words: Sequence[str], folder: Path, files: Sequence[IO[bytes] | IO[str]], main: Callable[[], int]
) -> NoReturn:
    """From `sys.exit(main())` to the end of the process."""
    code = 1
    try:
        _begin(words, folder, files)
        try:
            sys.exit(main())
        except SystemExit as stopped:
            code = stopped.code if isinstance(stopped.code, int) else 0 if stopped.code is None else 1
        except BaseException:
            traceback.print_exc()
        atexit._run_exitfuncs()
        try:
            sys.stdout.flush()
        except OSError:
            code = 120
    finally:
        os._exit(code & 0xFF)


def _begin(words: Sequence[str], folder: Path, files: Sequence[IO[bytes] | IO[str]]) -> None:
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)  # it does not outlive its parent
    atexit._clear()  # those of the parent are the parent's
    faulthandler.disable()
    _limited()
    os.setsid()
    os.chdir(folder)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    for number, file in enumerate(files):
        os.dup2(file.fileno(), number)
    sys.stdin, sys.stdout = os.fdopen(0, closefd=False), os.fdopen(1, "w", closefd=False)
    sys.stderr = os.fdopen(2, "w", buffering=1, errors="backslashreplace", closefd=False)
    sys.__stdin__, sys.__stdout__, sys.__stderr__ = sys.stdin, sys.stdout, sys.stderr
    sys.argv = ["quambench", *map(os.fsdecode, as_typed(words))]
