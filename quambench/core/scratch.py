"""Folders for the time of one piece of work: private, gone with it, and swept by the next when a kill left them.

Whoever works in one holds a lock on its file `owner`. The system takes the lock back when the process ends, however it
does, so a folder whose lock is free is nobody's.
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
    """An empty folder in the temporary folder, which only this user can read; it goes away with the block."""
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
    """Remove the folders that processes of this user left when they were killed; nothing else, and without a word."""
    for folder in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        with suppress(OSError):  # its owner lives, or another sweeps it too
            if _is_left(folder):
                shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _owned(folder: Path) -> Iterator[None]:
    """The lock is there before the name is: who finds the file finds it locked."""
    with open(folder / f"{_OWNER}.new", "x", encoding="utf-8") as held:
        with suppress(OSError):  # a file system without locks; such a folder is swept by age
            fcntl.flock(held, fcntl.LOCK_EX)
            os.rename(held.name, folder / _OWNER)
        yield


def _is_left(folder: Path) -> bool:
    """Whether nobody works in it. raises BlockingIOError when somebody does"""
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
