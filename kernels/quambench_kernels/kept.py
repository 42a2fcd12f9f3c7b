"""Files kept from one run to the next, believed only where contents, owner and mode say so.

An entry ends with the sha256 of its name and contents: one that was cut, altered or put under another name is seen. It
belongs to the user or to root, nobody else may write to it or to its folder, and it is read whole: the bytes that were
checked are the bytes that are used. An entry that cannot be believed is made anew; a folder that cannot be trusted or
written is left alone, and the work is done for this process. Both are said on stderr, in a line.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
import stat
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from quambench_kernels.files import flush_folder

VARIABLE = "QUAMBENCH_KERNELS_CACHE"
LARGEST = 2**26  # bytes of an entry; the largest known is 200 kB
SEAL = 2 + 64  # a line with a sha256, at the end of every entry
PLACES = ("building-", "asking-")  # how names of folders begin that are gone after the work
ABANDONED = 24 * 3600  # seconds after which such a folder counts as abandoned, where no lock can tell


class UntrustedError(Exception):
    """The reason why an entry or a folder is not believed, as the end of a sentence that its path begins."""


def cache_folder() -> Path:
    """Return $QUAMBENCH_KERNELS_CACHE, or quambench/kernels in the user's cache folder. raises RuntimeError without
    a home
    """
    named = os.environ.get(VARIABLE)
    if named:
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "quambench" / "kernels"


def read(name: str) -> bytes | None:
    """Return the contents kept under a name. None where there are none, or where a line says why they cannot be
    believed.
    """
    folder = _trusted_folder()
    if folder is None:
        return None
    try:
        return _contents(folder / name)
    except FileNotFoundError:
        return None
    except (OSError, UntrustedError) as error:
        _say(f"{folder / name} {_reason(error)}: it is made anew")
        return None


def keep(name: str, contents: bytes) -> None:
    """Keep contents under a name, whole or not at all, until they are replaced; a failure is said in a line."""
    folder = _trusted_folder()
    if folder is None:
        return
    try:
        with _place_in(folder) as place:
            whole = place / name
            _write(whole, contents + _seal(name, contents))
            os.replace(whole, folder / name)
            flush_folder(folder)
    except OSError as error:
        _say(f"{folder / name} {_reason(error)}: it is made again next time")


@contextmanager
def workplace() -> Iterator[Path]:
    """Yield a private folder to work in, gone afterwards; the next process sweeps what a killed one left of its own.

    raises OSError where not even a temporary folder can be had
    """
    folder = _trusted_folder()
    with contextlib.ExitStack() as stack:
        place = None
        if folder is not None:
            with contextlib.suppress(OSError):  # the cache is read-only: a temporary folder does as well
                place = stack.enter_context(_place_in(folder))
        yield place or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="quambench-kernels-")))


def _trusted_folder() -> Path | None:
    try:
        return _checked(cache_folder(), os.geteuid())
    except RuntimeError as error:
        _say_once(f"there is no cache folder ({error}): what is built serves this process alone; ${VARIABLE} names one")
        return None


@cache
def _checked(folder: Path, user: int) -> Path | None:
    """Return the folder, made where it is missing and swept; None where it cannot be trusted, which is said in a
    line.
    """
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        _check(folder.stat(), user)
        _sweep(folder, user)
    except (OSError, UntrustedError) as error:
        _say(f"{folder} {_reason(error)}: what is built serves this process alone; ${VARIABLE} names another")
        return None
    return folder


def _contents(path: Path) -> bytes:
    """Return the contents of an entry. raises OSError, UntrustedError"""

    def opened(name: str, flags: int) -> int:  # neither through a link nor waiting for a pipe's other end
        return os.open(name, flags | os.O_NOFOLLOW | os.O_NONBLOCK)

    with open(path, "rb", opener=opened) as file:
        found = os.fstat(file.fileno())
        if not stat.S_ISREG(found.st_mode):
            raise UntrustedError("is no file")
        _check(found, os.geteuid())
        whole = file.read(LARGEST + 1)
    contents = whole[:-SEAL]
    if len(whole) > LARGEST or whole[len(contents) :] != _seal(path.name, contents):
        raise UntrustedError("is not what was kept under this name (its sha256 is another)")
    return contents


def _check(found: os.stat_result, user: int) -> None:
    """Check that nobody else can have written to a file or folder. raises UntrustedError"""
    if found.st_uid not in (user, 0):
        raise UntrustedError(f"belongs to somebody else (user {found.st_uid})")
    if found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise UntrustedError(f"can be written by others (mode {stat.S_IMODE(found.st_mode):04o}, chmod go-w)")


def _seal(name: str, contents: bytes) -> bytes:
    digest = hashlib.sha256(os.fsencode(name) + b"\0")
    digest.update(contents)
    return b"\n" + digest.hexdigest().encode() + b"\n"


def _write(path: Path, contents: bytes) -> None:
    with path.open("xb") as file:
        os.fchmod(file.fileno(), 0o644)  # whatever the umask is: an entry that others may write is not believed
        file.write(contents)
        file.flush()
        os.fsync(file.fileno())


@contextmanager
def _place_in(folder: Path) -> Iterator[Path]:
    """Yield a folder with a lock that ends with its process: whoever can take the lock knows that the folder is
    abandoned.
    """
    with tempfile.TemporaryDirectory(dir=folder, prefix=PLACES[0], ignore_cleanup_errors=True) as name:
        place = Path(name)
        with (place / "lock.new").open("xb") as lock:
            with contextlib.suppress(OSError):  # not every file system has locks; its age tells then
                fcntl.flock(lock, fcntl.LOCK_EX)
                (place / "lock.new").rename(place / "lock")  # seen only once it is held
            yield place


def _sweep(folder: Path, user: int) -> None:
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith(PLACES) and entry.is_dir(follow_symlinks=False):
                with contextlib.suppress(OSError):  # somebody else swept it first
                    if entry.stat(follow_symlinks=False).st_uid == user and _is_dead(Path(entry.path)):
                        shutil.rmtree(entry.path, ignore_errors=True)


def _is_dead(place: Path) -> bool:
    try:
        with (place / "lock").open("rb+") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
    except BlockingIOError:
        return False
    except OSError:
        return time.time() - place.stat().st_mtime > ABANDONED


def _reason(error: Exception) -> str:
    if isinstance(error, OSError):
        return f"cannot be used ({error.strerror or error})"
    return str(error)


@cache
def _say_once(line: str) -> None:
    _say(line)


def _say(line: str) -> None:
    """Print a line on stderr, and not as a warning, which a filter may turn into the end of the run."""
    with contextlib.suppress(OSError, ValueError):  # nobody may be listening
        sys.stderr.write(f"quambench kernels: {line}\n")
