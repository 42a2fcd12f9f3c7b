"""The only way in which anything here is written: whole or not at all, in UTF-8, one writer of a folder at a time.

A refusal by the system becomes a NotWritten: one line with the path, what is wrong and what to do.
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
    """Replace a file; its folder is made where it is missing. raises NotWritten, and then the file is as it was"""
    with making(path) as partial:
        partial.write_bytes(content.encode("utf-8") if isinstance(content, str) else content)


@contextmanager
def making(path: Path) -> Iterator[Path]:
    """Yield a path to write to, whose file replaces `path` when the block ends; for libraries that write to a path.

    The folder is made where it is missing. raises NotWritten
    """
    with told(path):
        check_replaceable(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as partial:
            yield partial


def check_replaceable(path: Path) -> None:
    """Check that `path` is free or a regular file: devices, pipes and folders are never replaced. raises NotWritten"""
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
    """Hold the lock of a folder during the block, so that one process at a time works in it. The folder is made if
    missing.

    raises NotWritten where another process holds it longer than any write takes
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
        # Removed while held: a process that waits for it sees that the name is gone and starts over (filelock >= 3.24).
        with suppress(OSError):
            (folder / LOCK).unlink()
        lock.release()


def remove(path: Path) -> None:
    """Remove a file, if there is one. raises NotWritten"""
    with told(path):
        path.unlink(missing_ok=True)


@contextmanager
def told(path: Path) -> Iterator[None]:
    """Turn the system's refusals inside of the block into one line about `path`. raises NotWritten"""
    try:
        yield
    except NotWritten:
        raise
    except OSError as error:
        raise NotWritten(f"cannot write {path}: {why(error)}") from error
    except Exception as error:
        if number := re.search(r"\(os error (\d+)\)", str(error)):  # a library in Rust raises a type of its own
            meant = OSError(int(number[1]), os.strerror(int(number[1])))
            raise NotWritten(f"cannot write {path}: {why(meant)}") from error
        raise


def why(error: OSError) -> str:
    """Return what the system says went wrong, and what to do about it."""
    said = error.strerror or str(error) or type(error).__name__
    remedy = REMEDIES.get(error.errno or 0)
    return f"{said}; {remedy}" if remedy else said
