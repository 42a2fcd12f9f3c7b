"""Git LFS pointers. In a clone without LFS, a short text stands for each large file, and every reader should say so."""

from __future__ import annotations

from pathlib import Path

from quambench.core.errors import QuambenchError

_BEGIN = b"version https://git-lfs.github.com/spec/"
_LONGEST = 1023  # bytes; the specification's


def check_fetched(path: Path, error: type[QuambenchError]) -> None:
    """Check that a file is itself and not a pointer to it, before it is read. raises `error`"""
    try:
        if not path.is_file() or path.stat().st_size > _LONGEST:
            return
        begin = path.read_bytes()[: len(_BEGIN)]
    except OSError:  # the reader will say what is wrong
        return
    if begin == _BEGIN:
        raise error(f"{path} is a git-lfs pointer, not the file that it stands for: git lfs pull fetches it")
