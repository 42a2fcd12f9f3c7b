"""Temporary folders for one piece of work: private, removed after it, and swept by the next run if a kill left them.

Every process that works in one holds a lock on its file `owner`. The system frees the lock when the process ends,
however it ends, so a folder whose lock is free is in use by no process.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_PREFIX, _OWNER = "quambench-run-", "owner"
_LONG = 7 * 86_400.0  # s; a folder that never had a lock: left in the moment in which it was made, or no locks here


@contextmanager
def scratch() -> Iterator[Path]:
    """Yield an empty folder in the temporary folder, which only this user can read. It goes away with the block."""
    sweep()
    folder = Path(tempfile.mkdtemp(prefix=_PREFIX))
    try:
        with _owned(folder):
            work = folder / "work"
            work.mkdir()
            yield work
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def sweep() -> None:
    """Remove, silently, the folders that killed processes of this user left behind, and nothing else."""
    for folder in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        with suppress(OSError):  # its owner lives, or another sweeps it too
            if _is_left(folder):
                shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _owned(folder: Path) -> Iterator[None]:
    """Hold the lock of a folder during the block. It is taken before the file has its name: whoever finds it finds it
    locked.
    """
    with open(folder / f"{_OWNER}.new", "x", encoding="utf-8") as held:
        with suppress(OSError):  # a file system without locks; such a folder is swept by age
            fcntl.flock(held, fcntl.LOCK_EX)
            os.rename(held.name, folder / _OWNER)
        yield


def _is_left(folder: Path) -> bool:
    """Whether no process works in the folder. raises BlockingIOError when one does"""
    about = folder.lstat()
    if not stat.S_ISDIR(about.st_mode) or about.st_uid != os.getuid():
        return False
    try:
        held = os.open(folder / _OWNER, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        return time.time() - about.st_mtime > _LONG
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    finally:
        os.close(held)
    return True
