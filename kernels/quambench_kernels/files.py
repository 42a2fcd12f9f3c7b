"""Writing of files: whole or not at all, and never through a link.

A new file is written in a folder of its own beside the old one, flushed to the disk, and then takes its place in one
step. A process that is killed leaves its folder behind, with whatever a library had begun in it; the next one that
writes there sweeps it. The writer holds a lock on its folder, so that a living writer's is never swept.
"""

from __future__ import annotations

import os
import secrets
import shutil
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

try:
    import fcntl
except ImportError:  # no flock on this system: what was left is recognised by its age alone
    fcntl = None  # type: ignore[assignment]

MARK, SUFFIX = ".quambench-", ".partial"
ABANDONED_S = 24 * 3600.0  # age of a folder, where nothing tells whether its writer lives
_FOLDER = os.O_RDONLY | getattr(os, "O_DIRECTORY", 0) | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a new empty file to write to, which takes the place of `path` once the block ends well.

    Nothing that stood under either name is written through: a link at `path` is replaced, not followed. A file that
    is replaced hands its permissions on.
    raises OSError; `path` is then as it was
    """
    sweep(path.parent)
    folder, lock = _created(path.parent)
    partial = folder / path.name
    try:
        mode = _begin(partial, path)
        yield partial
        _flush(partial, mode)
        os.replace(partial, path)
        flush_folder(path.parent)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)


def is_begun(path: Path) -> bool:
    """Whether a path lies in a writer's own folder: what it had begun is nobody's to read, whole as it may look."""
    return any(part.startswith(MARK) and part.endswith(SUFFIX) for part in path.parts)


def sweep(folder: Path) -> list[Path]:
    """Remove what killed writers left in a folder; what cannot be removed stays. Returns the folders that were
    removed.
    """
    gone = []
    with suppress(OSError):
        for left in sorted(folder.glob(f"{MARK}*{SUFFIX}")):
            with suppress(OSError):
                if stat.S_ISDIR(left.lstat().st_mode) and _abandoned(left):
                    gone.append(left)
    return gone


def flush_folder(folder: Path) -> None:
    """Bring a folder's names to the disk, where the system can."""
    with suppress(OSError):  # some file systems refuse it: then a crash of the machine may show the old file
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _created(beside: Path) -> tuple[Path, int]:
    """Return a folder under a new name, and the descriptor that holds its lock for as long as it is needed."""
    while True:
        folder = beside / f"{MARK}{secrets.token_hex(8)}{SUFFIX}"
        try:
            folder.mkdir(0o700)
            descriptor = os.open(folder, _FOLDER)
        except (FileExistsError, FileNotFoundError):  # a name that is taken; or somebody swept it at once
            continue
        if _lock(descriptor) is not False and _is_at(descriptor, folder):
            return folder, descriptor
        os.close(descriptor)  # somebody swept it before it was locked


def _is_at(descriptor: int, folder: Path) -> bool:
    with suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(descriptor), folder.lstat())
    return False


def _begin(partial: Path, path: Path) -> int:
    """Make the file. Returns the permissions that it shall have: the old file's, or what the umask leaves."""
    descriptor = os.open(partial, os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_CLOEXEC", 0), 0o666)
    try:
        return stat.S_IMODE(_mode_of(path) or os.fstat(descriptor).st_mode)
    finally:
        os.close(descriptor)


def _lock(descriptor: int) -> bool | None:
    """Whether the lock is ours now; None where this file system has no locks."""
    if fcntl is None:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


def _abandoned(left: Path) -> bool:
    """Remove a folder if its writer is gone. Returns whether it was."""
    descriptor = os.open(left, _FOLDER)
    try:
        ours = _lock(descriptor)
        old = time.time() - os.fstat(descriptor).st_mtime > ABANDONED_S
        if ours or (ours is None and old):
            shutil.rmtree(left)
            return True
        return False
    finally:
        os.close(descriptor)


def _mode_of(path: Path) -> int | None:
    """Return the mode of a regular file; None where there is none, or where something else has its name."""
    with suppress(OSError):
        found = path.lstat().st_mode
        return found if stat.S_ISREG(found) else None
    return None


def _flush(partial: Path, mode: int) -> None:
    """Flush the file to disk, and set its mode: a library may have replaced it by another, for its owner alone."""
    descriptor = os.open(partial, os.O_RDWR | getattr(os, "O_NOFOLLOW", 0))
    try:
        os.fchmod(descriptor, mode)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
