"""C++ beside an operation, built on this machine for this machine when it is first needed.

One file, one shared library, loaded through ctypes: nothing of PyTorch's headers is compiled, so a
build takes seconds. It is kept (kept.py) under a hash of everything that decides what it is: sources, flags,
and what the compiler understands by -march=native here. Threads are those of the OpenMP runtime that
PyTorch has loaded, so that there is one pool and torch.set_num_threads rules.
"""

from __future__ import annotations

import ctypes
import hashlib
import itertools
import os
import selectors
import shlex
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from quambench_kernels import kept

FOLDER = Path(__file__).parent  # the headers' folder
# A division, a square root, a rounding are what IEEE says; only the compiler's right to keep errno and
# floating-point traps is given up, without which no loop with rint or a comparison becomes vector code.
FLAGS = ("-std=c++17", "-O3", "-march=native", "-fno-math-errno", "-fno-trapping-math", "-fopenmp", "-fPIC")
PATIENCE = 300.0  # seconds that a compiler may take for a file; the slowest known takes 20
HEARD = 2**16  # bytes of what a compiler says that are listened to
_numbers = itertools.count()


class BuildError(RuntimeError):
    """A build that is impossible: there is no compiler, or it refused. The message is one line."""


@cache
def load(source: Path, *flags: str) -> ctypes.CDLL:
    """Load the library built from one C++ file, with these flags beside FLAGS. raises BuildError"""
    op = source.parent.name
    try:
        compiler = _compiler()
        text = b"\0".join(file.read_bytes() for file in (source, *sorted(FOLDER.glob("*.h"))))
        command = [*compiler, *FLAGS, *flags]
        decides = [text, " ".join(command).encode(errors="surrogateescape"), _target(tuple(compiler)), b"sealed"]
        key = hashlib.sha256(b"\0".join(decides)).hexdigest()[:20]
        name = f"{op}-{key}.so"
        found = kept.read(name)
        if found is not None:
            with suppress(OSError):  # whole, but a library that it needs is not here: build it again
                return _opened(name, found)
        made = _built(command, source)
        library = _opened(name, made)
        kept.keep(name, made)  # only after it has been loaded: one that cannot be would be kept and rebuilt every time
        return library
    except OSError as error:  # no folder to work in, or nothing may be loaded
        raise BuildError(f"{op}: {_one_line(str(error))}") from error


def _opened(name: str, contents: bytes) -> ctypes.CDLL:
    """Return a library loaded from memory, so that the bytes that were checked are those that run. raises OSError"""
    with suppress(AttributeError, OSError):  # no such memory on this system, or nothing may run from it
        at = os.memfd_create(name)
        try:
            with open(at, "wb", closefd=False) as memory:
                memory.write(contents)
            # The loader knows libraries by their paths, and numbers of descriptors come again: each path is new.
            return ctypes.CDLL(f"/proc/self/fd/{'./' * next(_numbers)}{at}")
        finally:
            os.close(at)
    with tempfile.TemporaryDirectory(prefix="quambench-kernels-") as folder:
        file = Path(folder) / name
        file.write_bytes(contents)
        return ctypes.CDLL(str(file))


def why_not(source: Path, *flags: str) -> Callable[[], str | None]:
    """Return a function that says why `load` fails here, or None; for dispatch.register."""

    @cache
    def reason() -> str | None:
        try:
            load(source, *flags)
        except BuildError as error:
            return str(error)
        return None

    return reason


def pointer(x: Tensor | None) -> ctypes.c_void_p:
    """Return the address of a tensor's first element; null for None."""
    return ctypes.c_void_p(None if x is None else x.data_ptr())


def strided(x: Tensor | None) -> tuple[ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64]:
    """Return address and strides of batch and position, as the kernels take a (B, L, ...) tensor; zeros for None."""
    if x is None:
        return pointer(None), ctypes.c_int64(0), ctypes.c_int64(0)
    return pointer(x), ctypes.c_int64(x.stride(0)), ctypes.c_int64(x.stride(1))


def threads() -> ctypes.c_int:
    """Return how many threads PyTorch may use now."""
    return ctypes.c_int(torch.get_num_threads())


@cache
def _compiler() -> list[str]:
    """Return $CXX, which may have arguments, or g++ or c++. The sources are for GCC. raises BuildError"""
    try:
        named = shlex.split(os.environ.get("CXX", ""))
    except ValueError as error:  # a quotation mark without its other
        raise BuildError(f"$CXX cannot be split into words ({error}): {_one_line(os.environ['CXX'])}") from None
    for command in [named] if named else [["g++"], ["c++"]]:
        if shutil.which(command[0]):
            return command
    what = f"$CXX is {_one_line(shlex.join(named))}" if named else "g++ or c++"
    raise BuildError(f"no C++ compiler ({what} was not found)")


@cache
def _target(compiler: tuple[str, ...]) -> bytes:
    """Return the meaning of -march=native here, and the compiler's version. raises BuildError"""
    asked = [*compiler, "-march=native", "-x", "c++", "-E", "-v", os.devnull, "-o", os.devnull]
    return _run(asked)[1]


def _built(command: list[str], source: Path) -> bytes:
    """Return the library that a compiler makes of a source. raises BuildError, OSError"""
    with kept.workplace() as folder:
        library, object_file = folder / "kernel.so", folder / "kernel.o"
        # Linked without -fopenmp: its symbols are then found in the runtime that PyTorch brought.
        _succeed([*command, f"-I{FOLDER}", "-c", str(source), "-o", str(object_file)], object_file)
        _succeed([*_compiler(), "-shared", str(object_file), "-o", str(library)], library)
        return library.read_bytes()


def _succeed(command: list[str], makes: Path) -> None:
    """Run a compiler that shall make a file. raises BuildError where it fails, or makes none"""
    compiler = _one_line(Path(command[0]).name)
    code, said = _run(command)
    if code:
        lines = [line for line in said.decode(errors="replace").splitlines() if line.strip()]
        errors = [line for line in lines if "error" in line] or lines or [f"it ended with {code} and said nothing"]
        raise BuildError(f"{compiler} failed: {_one_line(errors[0])}")
    if not makes.is_file():
        raise BuildError(f"{compiler} ended as if all were well and made no {makes.name}")


def _run(command: list[str]) -> tuple[int, bytes]:
    """Return the exit status and the beginning of what was said on stderr. raises BuildError where it does not end"""
    if _endless:
        raise BuildError(_endless[0])
    # A session of its own: what a compiler has started ends with it.
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True
    ) as running:
        until = time.monotonic() + PATIENCE
        try:
            said = _heard(running, until)
            return running.wait(max(until - time.monotonic(), 0.1)), said
        except BaseException as error:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(running.pid, signal.SIGKILL)
            if not isinstance(error, subprocess.TimeoutExpired):
                raise
            _endless.append(f"{_one_line(Path(command[0]).name)} did not end within {PATIENCE:.0f} s")
            raise BuildError(_endless[0]) from None


_endless: list[str] = []  # the message about a compiler that hung: it is not waited for twice


def _heard(running: subprocess.Popen[bytes], until: float) -> bytes:
    """Return what a compiler says until it ends or time is up; a server that outlives it is not waited for."""
    said = b""
    assert running.stderr is not None
    with selectors.DefaultSelector() as selector:
        selector.register(running.stderr, selectors.EVENT_READ)
        while time.monotonic() < until:
            if selector.select(timeout=0.05):
                piece = os.read(running.stderr.fileno(), HEARD)
                said += piece[: HEARD - len(said)]
                if not piece:
                    break
            elif running.poll() is not None:
                break
    return said


def _one_line(text: str) -> str:
    """Return what can be printed of a compiler's words, one line at most."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())[:200]
