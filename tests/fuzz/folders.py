"""A folder as it was: what one mutant has written, moved or replaced is gone before the next."""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

LARGE = 1 << 30  # bytes: a file of more is sparse, and not kept


@dataclass(frozen=True, slots=True)
class Entry:
    """One name in the folder."""

    kind: int
    stamp: tuple[int, ...]  # changes where the content does
    content: bytes | str | None  # of a file, or where a link leads


def entries(folder: Path) -> dict[Path, Entry]:
    return {path: _entry(path) for path in _paths(folder)}


def restore(folder: Path, before: dict[Path, Entry]) -> None:
    """Parents come before what is in them, in `before` and on the way here."""
    for path in _paths(folder):
        if path in before and stat.S_IFMT(path.lstat().st_mode) == before[path].kind:
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    for path, was in before.items():
        if not os.path.lexists(path) or (stat.S_ISREG(was.kind) and _stamp(path) != was.stamp):
            _make(path, was)
            before[path] = _entry(path) if was.content is None else Entry(was.kind, _stamp(path), was.content)


def _paths(folder: Path) -> Iterator[Path]:
    for here, folders, files in os.walk(folder):
        yield from (Path(here, name) for name in sorted(folders + files))


def _stamp(path: Path) -> tuple[int, ...]:
    found = path.lstat()
    return found.st_mtime_ns, found.st_size, found.st_ino, found.st_mode


def _entry(path: Path) -> Entry:
    found, content = path.lstat(), None
    if stat.S_ISREG(found.st_mode) and found.st_size < LARGE:
        content = path.read_bytes()
    elif stat.S_ISLNK(found.st_mode):
        content = os.readlink(path)
    return Entry(stat.S_IFMT(found.st_mode), _stamp(path), content)


def _make(path: Path, was: Entry) -> None:
    path.unlink(missing_ok=True)
    if stat.S_ISDIR(was.kind):
        path.mkdir()
    elif stat.S_ISLNK(was.kind):
        path.symlink_to(str(was.content))
    elif stat.S_ISREG(was.kind):
        path.write_bytes(was.content if isinstance(was.content, bytes) else b"")
        if was.content is None:
            os.truncate(path, was.stamp[1])
    else:
        os.mknod(path, was.kind | 0o600)  # a pipe, a socket
