"""How files are written: whole or not at all, and never through a link.

What is new is written under a name that nobody else has, flushed to the disk, and then takes its place in one
step. A process that is killed leaves its half behind under that name; the next one that writes in the folder
sweeps it. The writer holds a lock on what it writes, so that a living writer's file is never swept.
"""

from __future__ import annotations

import os
import secrets
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

try:
    import fcntl
except ImportError:  # no flock on this system: what was left is told by its age alone
    fcntl = None  # type: ignore[assignment]

MARK, SUFFIX = ".quambench-", ".partial"
ABANDONED_S = 24 * 3600.0  # age of a half file, where nothing tells whether its writer lives


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A new empty file beside `path` to write to, which takes its place once the block ends well.

    Nothing that stood under either name is written through: a link at `path` is replaced, not followed. A file that
    is replaced hands its permissions on.
    raises OSError; `path` is then as it was
    """
    sweep(path.parent)
    partial, descriptor = _created(path.parent)
    try:
        mode = stat.S_IMODE(_mode_of(path) or os.fstat(descriptor).st_mode)
        yield partial
        _flush(partial, mode)
        os.replace(partial, path)
        flush_folder(path.parent)
    finally:
        with suppress(OSError):
            partial.unlink(missing_ok=True)
        os.close(descriptor)


def sweep(folder: Path) -> list[Path]:
    """Remove what killed writers left in a folder; what cannot be removed stays. Returns what went."""
    gone = []
    with suppress(OSError):
        for left in sorted(folder.glob(f"{MARK}*{SUFFIX}")):
            with suppress(OSError):
                if stat.S_ISREG(left.lstat().st_mode) and _abandoned(left):
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


def _created(folder: Path) -> tuple[Path, int]:
    """A file under a new name, and the descriptor that holds its lock for as long as it is written."""
    while True:
        partial = folder / f"{MARK}{secrets.token_hex(8)}{SUFFIX}"
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0)
        try:
            descriptor = os.open(partial, flags, 0o666)  # less what the umask takes away
        except FileExistsError:
            continue
        if _lock(descriptor) is not False and os.fstat(descriptor).st_nlink:
            return partial, descriptor
        os.close(descriptor)  # somebody swept it before it was locked


def _lock(descriptor: int) -> bool | None:
    """Whether it is ours now; None where this file system has no locks."""
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
    """Remove a half file whose writer is gone. Returns whether it was so."""
    descriptor = os.open(left, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0))
    try:
        ours = _lock(descriptor)
        old = time.time() - os.fstat(descriptor).st_mtime > ABANDONED_S
        if ours or (ours is None and old):
            left.unlink()
            return True
        return False
    finally:
        os.close(descriptor)


def _mode_of(path: Path) -> int | None:
    """Of a regular file; None of anything else, or where there is none."""
    with suppress(OSError):
        found = path.lstat().st_mode
        return found if stat.S_ISREG(found) else None
    return None


def _flush(partial: Path, mode: int) -> None:
    """A library may have put another file in the place of the one that was made, and for its owner alone."""
    descriptor = os.open(partial, os.O_RDWR | getattr(os, "O_NOFOLLOW", 0))
    try:
        os.fchmod(descriptor, mode)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
