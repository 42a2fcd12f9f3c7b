"""C++ beside an operation, built on this machine for this machine when it is first needed.

One file, one shared library, loaded through ctypes: nothing of PyTorch's headers is compiled, so a
build takes seconds. It is kept in a cache folder under a hash of everything that decides what it
is: sources, flags, and what the compiler understands by -march=native here. Threads are those of
the OpenMP runtime that PyTorch has loaded, so that there is one pool and torch.set_num_threads rules.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

FOLDER = Path(__file__).parent  # of the headers
# A division, a square root, a rounding are what IEEE says; only the compiler's right to keep errno and
# floating-point traps is given up, without which no loop with rint or a comparison becomes vector code.
FLAGS = ("-std=c++17", "-O3", "-march=native", "-fno-math-errno", "-fno-trapping-math", "-fopenmp", "-fPIC")


class BuildError(RuntimeError):
    """There is no compiler, or it refused; one line."""


def cache_folder() -> Path:
    """$QUAMBENCH_KERNELS_CACHE, or quambench/kernels in the user's cache folder."""
    named = os.environ.get("QUAMBENCH_KERNELS_CACHE")
    if named:
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "quambench" / "kernels"


@cache
def load(source: Path, *flags: str) -> ctypes.CDLL:
    """The library built from one C++ file, with these flags beside FLAGS. raises BuildError"""
    try:
        compiler = _compiler()
        text = b"\0".join(file.read_bytes() for file in (source, *sorted(FOLDER.glob("*.h"))))
        command = [*compiler, *FLAGS, *flags]
        key = hashlib.sha256(b"\0".join([text, " ".join(command).encode(), _target(tuple(compiler))])).hexdigest()[:20]
        kept = cache_folder() / f"{source.parent.name}-{key}.so"
        if not kept.exists():
            _build(command, source, kept)
        try:
            return ctypes.CDLL(str(kept))
        except OSError:  # damaged: once more, from the source
            _build(command, source, kept)
            return ctypes.CDLL(str(kept))
    except (OSError, RuntimeError) as error:  # no home, a folder that cannot be written, nothing may be loaded from it
        raise error if isinstance(error, BuildError) else BuildError(f"{source.parent.name}: {error}") from error


def why_not(source: Path, *flags: str) -> Callable[[], str | None]:
    """For dispatch.register: the reason why `load` fails here, or None."""

    @cache
    def reason() -> str | None:
        try:
            load(source, *flags)
        except BuildError as error:
            return str(error)
        return None

    return reason


def pointer(x: Tensor | None) -> ctypes.c_void_p:
    """The address of a tensor's first element; null for None."""
    return ctypes.c_void_p(None if x is None else x.data_ptr())


def strided(x: Tensor | None) -> tuple[ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64]:
    """Address and strides of batch and position, as the kernels take a (B, L, ...) tensor; zeros for None."""
    if x is None:
        return pointer(None), ctypes.c_int64(0), ctypes.c_int64(0)
    return pointer(x), ctypes.c_int64(x.stride(0)), ctypes.c_int64(x.stride(1))


def threads() -> ctypes.c_int:
    """How many PyTorch may use now."""
    return ctypes.c_int(torch.get_num_threads())


@cache
def _compiler() -> list[str]:
    """$CXX, which may have arguments, or g++ or c++. The sources are for GCC."""
    named = shlex.split(os.environ.get("CXX", ""))
    for command in [named] if named else [["g++"], ["c++"]]:
        if shutil.which(command[0]):
            return command
    raise BuildError(f"no C++ compiler ({f'$CXX is {shlex.join(named)}' if named else 'g++ or c++'} was not found)")


@cache
def _target(compiler: tuple[str, ...]) -> bytes:
    """What -march=native means here, and which compiler says so."""
    asked = [*compiler, "-march=native", "-x", "c++", "-E", "-v", os.devnull, "-o", os.devnull]
    return subprocess.run(asked, capture_output=True, check=False).stderr


def _build(command: list[str], source: Path, kept: Path) -> None:
    """Into a file of its own, then moved: whoever comes at the same time finds all of it or nothing."""
    kept.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=kept.parent, prefix="building-") as folder:
        built, object_file = Path(folder) / kept.name, Path(folder) / "kernel.o"
        # Linked without -fopenmp: its symbols are then found in the runtime that PyTorch brought.
        _run([*command, f"-I{FOLDER}", "-c", str(source), "-o", str(object_file)])
        _run([*_compiler(), "-shared", str(object_file), "-o", str(built)])
        os.replace(built, kept)


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        errors = [line for line in done.stderr.splitlines() if "error" in line] or done.stderr.splitlines() or ["?"]
        raise BuildError(f"{Path(command[0]).name} failed: {errors[0].strip()}")
