"""Git LFS: in a clone without it, a short text stands for each large file, and readers say that it is one."""

from __future__ import annotations

from pathlib import Path

from quambench.core.errors import QuambenchError

_BEGIN = b"version https://git-lfs.github.com/spec/"
_LONGEST = 1023  # bytes; the specification's


def check_fetched(path: Path, error: type[QuambenchError]) -> None:
    """Whether a file that is about to be read is itself, and no pointer to it. raises `error`"""
    try:
        if not path.is_file() or path.stat().st_size > _LONGEST:
            return
        begin = path.read_bytes()[: len(_BEGIN)]
    except OSError:  # for the reader to tell
        return
    if begin == _BEGIN:
        raise error(f"{path} is a git-lfs pointer, not the file that it stands for: git lfs pull fetches it")
