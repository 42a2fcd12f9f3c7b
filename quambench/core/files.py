"""The one way in which anything here is written: whole or not at all, in UTF-8, one writer of a folder at a time.

What the system refuses is a NotWritten: one line with the path, what is wrong and what to do.
"""

from __future__ import annotations

import errno
import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout
from quambench_kernels.files import flush_folder, is_begun, replacing, sweep

from quambench.core.errors import NotWritten

__all__ = [
    "check_replaceable",
    "flush_folder",
    "is_begun",
    "locked",
    "making",
    "remove",
    "sweep",
    "told",
    "why",
    "write",
]

LOCK = ".quambench.lock"
WAIT_S = 120.0  # for another writer; a write takes seconds
REMEDIES = {
    errno.ENOSPC: "the disk is full: free some space and run it again",
    errno.EDQUOT: "your quota is used up: free some space and run it again",
    errno.EROFS: "the file system is read-only: name another place",
    errno.EACCES: "you may not write there: name another place, or change its permissions",
    errno.EPERM: "you may not write there: name another place, or change its permissions",
    errno.ENAMETOOLONG: "the name is too long for the file system: name a shorter one",
    errno.EMFILE: "too many files are open: raise the limit (ulimit -n)",
    errno.ENFILE: "too many files are open on this machine",
    errno.ENOTDIR: "a part of the path is a file, not a folder",
    errno.EISDIR: "a folder has that name: name another file",
    errno.ENOENT: "the folder is gone",
    errno.EIO: "the disk failed: look at the system's log",
}


def write(path: Path, content: str | bytes) -> None:
    """Replace a file, in a folder that is made where there is none. raises NotWritten; the file is then as it was"""
    with making(path) as partial:
        partial.write_bytes(content.encode("utf-8") if isinstance(content, str) else content)


@contextmanager
def making(path: Path) -> Iterator[Path]:
    """`replacing`, for a library that writes to a path; the folder is made. raises NotWritten"""
    with told(path):
        check_replaceable(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as partial:
            yield partial


def check_replaceable(path: Path) -> None:
    """Whether a file can take a path's place: a device, a pipe, a folder is nobody's to replace. raises NotWritten"""
    with told(path):
        try:
            found = path.stat()  # through links: one to a device stands for it
        except FileNotFoundError:
            return
        if not stat.S_ISREG(found.st_mode):
            kind = "a folder" if stat.S_ISDIR(found.st_mode) else "a device or a pipe"
            raise NotWritten(f"cannot write {path}: it is {kind}, not a file; name another file")


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """One process at a time in this block for this folder, which is made where there is none.

    raises NotWritten where another holds it for longer than any write takes
    """
    with told(folder):
        folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / LOCK, timeout=WAIT_S)
    with told(folder):
        try:
            lock.acquire()
        except Timeout:
            raise NotWritten(
                f"cannot write to {folder}: another run has held {folder / LOCK} for {WAIT_S:.0f} s; "
                "wait for it, or remove the file if no run is left"
            ) from None
        except NotImplementedError as error:
            raise NotWritten(f"cannot write to {folder}: its file system has no locks ({error})") from None
    try:
        yield
    finally:
        # While it is held: who waits for the lock sees that the name is gone, and begins anew (filelock >= 3.24).
        with suppress(OSError):
            (folder / LOCK).unlink()
        lock.release()


def remove(path: Path) -> None:
    """A file that need not be there. raises NotWritten"""
    with told(path):
        path.unlink(missing_ok=True)


@contextmanager
def told(path: Path) -> Iterator[None]:
    """What the system refuses, as one line. raises NotWritten"""
    try:
        yield
    except NotWritten:
        raise
    except OSError as error:
        raise NotWritten(f"cannot write {path}: {why(error)}") from error
    except Exception as error:
        if number := re.search(r"\(os error (\d+)\)", str(error)):  # of a library in Rust, which has a type of its own
            meant = OSError(int(number[1]), os.strerror(int(number[1])))
            raise NotWritten(f"cannot write {path}: {why(meant)}") from error
        raise


def why(error: OSError) -> str:
    """What the system says, and what to do about it."""
    said = error.strerror or str(error) or type(error).__name__
    remedy = REMEDIES.get(error.errno or 0)
    return f"{said}; {remedy}" if remedy else said
