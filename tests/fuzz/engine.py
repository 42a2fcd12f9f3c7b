"""Runs mutants: each from a random stream of its own, so that any of them can be made again by its number."""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import mmap
import os
import random
import resource
import shutil
import signal
import struct
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from quambench.core.errors import QuambenchError

PATIENCE = 20  # seconds that one mutant may take
MEMORY = 2 << 30  # bytes that one mutant may add to what the process has
PR_SET_PDEATHSIG = 1
CHUNK = 2000  # mutants of one process
ACCEPTED, REFUSED = "accepted", "refused"


class WrongAcceptance(Exception):
    """Something was taken that must be refused, or was taken and then does not work."""


class Hang(BaseException):
    """A mutant took longer than PATIENCE."""


@dataclass(frozen=True, slots=True)
class Kind:
    """make: an empty folder -> what all mutants start from. one: that and a stream of chance -> accepted or refused.

    What `one` raises but a QuambenchError, which is a refusal, is a finding.
    """

    name: str
    make: Callable[[Path], Any]
    one: Callable[[Any, random.Random], str]


@dataclass(slots=True)
class Told:
    """What came of a kind's mutants."""

    kind: str
    outcomes: Counter[str] = field(default_factory=Counter)
    findings: list[tuple[int, str]] = field(default_factory=list)  # number of the mutant, what happened


# --- Nothing outside of the folder


_ALLOWED: list[Path] = []
_PROGRAMS = ("os.system", "subprocess.Popen", "os.exec", "os.posix_spawn", "os.spawn", "os.fork")
_REACHES_OUT = (*_PROGRAMS, "socket.connect", "webbrowser.open")
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT
_FAST = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None  # in memory: a disk would be all that takes time


def _watch(event: str, arguments: tuple[Any, ...]) -> None:
    """Of the audit hook: while a mutant runs it starts no program, and writes in its folder alone."""
    if not _ALLOWED:
        return
    if event in _REACHES_OUT:
        raise WrongAcceptance(f"a mutant reached out: {event} {str(arguments)[:100]}")
    if event == "open" and isinstance(arguments[0], str | bytes | Path) and (arguments[2] or 0) & _WRITES:
        path = Path(os.fsdecode(arguments[0])).absolute()
        if not any(path.is_relative_to(folder) for folder in _ALLOWED):
            raise WrongAcceptance(f"a mutant opened {str(path)[:100]} to write")


_watching = False


@contextlib.contextmanager
def inside(folder: Path) -> Iterator[None]:
    """Around mutants: they may write to the folder, and to no other place."""
    global _watching
    if not _watching:
        sys.addaudithook(_watch)
        _watching = True
    before, tempfile.tempdir = Path.cwd(), str(folder)
    os.chdir(folder)
    _ALLOWED[:] = [folder.resolve(), Path("/dev/null")]
    try:
        yield
    finally:
        _ALLOWED.clear()
        os.chdir(before)
        tempfile.tempdir = None


# --- One mutant, and many


def run_one(kind: Kind, start: Any, seed: int, number: int) -> tuple[str, str]:
    """(outcome, what was found; "" where nothing was)."""
    chance = random.Random(f"{seed}/{kind.name}/{number}")
    began, before = time.perf_counter(), _peak()
    try:
        outcome, found = kind.one(start, chance), ""
    except QuambenchError as error:
        outcome, found = REFUSED, ""
        if not str(error).strip() or "\n" in str(error).strip():
            found = f"a message that is not one line: {str(error)[:300]!r}"
    except Hang:
        outcome, found = "hang", f"over {PATIENCE} s: {_where()}"
    except WrongAcceptance as error:
        outcome, found = "wrong acceptance", str(error)[:500]
    except BaseException as error:  # panics of other languages are no Exception
        if isinstance(error, KeyboardInterrupt):
            raise
        outcome, found = "traceback", f"{type(error).__name__}: {str(error)[:200]} | {_where()}"
    if not found and _peak() - before > MEMORY:
        outcome, found = "memory", f"{(_peak() - before) / 2**30:.1f} GiB"
    if not found and time.perf_counter() - began > PATIENCE:
        outcome, found = "hang", f"{time.perf_counter() - began:.0f} s"
    return outcome, found


def _where() -> str:
    """The innermost frames of the error that is handled now."""
    frames = traceback.extract_tb(sys.exc_info()[2])
    return " < ".join(f"{Path(f.filename).name}:{f.lineno} {f.name}" for f in reversed(frames[-4:]))


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def run_here(
    kind: Kind, seed: int, numbers: Sequence[int], folder: Path, told: Callable[[int, str, str], None]
) -> None:
    """Mutants one after another in this process."""
    start = kind.make(folder)
    with inside(folder):
        for number in numbers:
            told(number, *run_one(kind, start, seed, number))


def in_process(kind: Kind, seed: int, count: int, folder: Path) -> Told:
    """As the tests run it: few mutants, no process of their own."""
    found = Told(kind.name)

    def tell(number: int, outcome: str, what: str) -> None:
        found.outcomes[outcome] += 1
        if what:
            found.findings.append((number, what))

    run_here(kind, seed, range(count), folder, tell)
    return found


def in_children(kind: Kind, seed: int, numbers: range, stop: Callable[[], bool] = lambda: False) -> Told:
    """CHUNK mutants a process: one that dies or hangs takes nobody with it, and the next goes on after it."""
    found, at = Told(kind.name), 0
    while at < len(numbers) and not stop():
        at += _chunk(kind, seed, numbers[at : at + CHUNK], found)
    return found


def _chunk(kind: Kind, seed: int, numbers: Sequence[int], found: Told) -> int:
    """How many of these were run; the last one too where the process died of it."""
    beat = mmap.mmap(-1, 16)  # how many are done, and since when the next one runs
    reader, writer = os.pipe()
    folder = Path(tempfile.mkdtemp(prefix="fuzz-", dir=_FAST))
    child = os.fork()
    if not child:
        os.close(reader)
        _in_child(kind, seed, numbers, folder, beat, writer)
    os.close(writer)
    try:
        killed = _wait(child, beat, reader, found)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    done = struct.unpack("q", beat[:8])[0]
    if done < len(numbers) and killed:
        found.outcomes[killed[0]] += 1
        found.findings.append((numbers[done], killed[1]))
        done += 1
    return done


def _in_child(kind: Kind, seed: int, numbers: Sequence[int], folder: Path, beat: mmap.mmap, writer: int) -> None:
    def alarm(*_: Any) -> None:
        raise Hang

    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + 3 * MEMORY, -1))  # what only reserves more is not at fault
    signal.signal(signal.SIGALRM, alarm)
    done = 0

    def tell(number: int, outcome: str, what: str) -> None:
        nonlocal done
        signal.alarm(PATIENCE)
        done += 1
        beat[:16] = struct.pack("qd", done, time.time())
        os.write(writer, f"{number}\t{outcome}\t{what.encode('unicode_escape').decode()}\n".encode())

    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)  # it does not outlive its parent
    faulthandler.disable()  # its parent tells
    code = 1
    try:
        with open(os.devnull, "r+") as nothing:
            for stream in range(3):
                os.dup2(nothing.fileno(), stream)
        run_here(kind, seed, numbers, folder, tell)
        code = 0
    except BaseException:
        os.write(writer, f"-1\tbroken\t{traceback.format_exc().encode('unicode_escape').decode()}\n".encode())
    finally:
        os._exit(code)


def _wait(child: int, beat: mmap.mmap, reader: int, found: Told) -> tuple[str, str] | None:
    """Take up what the child tells; what ended it, if it did not end by itself."""
    os.set_blocking(reader, False)
    left, last, since = b"", -1, time.time()
    while True:
        ended, status = os.waitpid(child, os.WNOHANG)
        with contextlib.suppress(BlockingIOError):
            while piece := os.read(reader, 1 << 16):
                left += piece
        *lines, left = left.split(b"\n")
        for line in lines:
            number, outcome, what = line.decode().split("\t", 2)
            if number == "-1":
                raise SystemExit(f"{found.kind}: the fuzzer itself broke: {what.encode().decode('unicode_escape')}")
            found.outcomes[outcome] += 1
            if what:
                found.findings.append((int(number), what))
        if ended:
            os.close(reader)
            return ("crash", f"the process died of signal {os.WTERMSIG(status)}") if os.WIFSIGNALED(status) else None
        done = struct.unpack("q", beat[:8])[0]
        if done != last:
            last, since = done, time.time()
        if time.time() - since > 2 * PATIENCE:  # in code that takes no signal
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            os.close(reader)
            return "hang", f"over {2 * PATIENCE} s, deaf to signals"
        time.sleep(0.02)
