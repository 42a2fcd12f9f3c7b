"""Reading of files that somebody else may have written: regular files of a bounded size, JSON of a bounded depth.

Every reader of a file goes through here, and turns Unreadable into its own error. So a pipe never makes one wait, a
huge file never fills the memory, and whatever a file or its name holds is one line.
"""

from __future__ import annotations

import json
import math
import os
import re
import stat
import sys
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from quambench.core.errors import BadArtefact, QuambenchError
from quambench.core.plain_text import plain

T = TypeVar("T")

MIB = 1 << 20
JSON_LIMIT = 64 * MIB  # bytes; the largest that comes with quambench has one
LIMIT = 512 * MIB  # bytes of a file that is read whole
DEEPEST = 64  # lists and objects inside each other; nothing that quambench reads has more than six
DIGITS = 400  # of a number; a float has no more than 309 before the point

_SHOWN = 300  # characters of a name, or of a reason
_KINDS = {
    stat.S_ISDIR: "it is a folder, not a file",
    stat.S_ISFIFO: "it is a pipe, not a file",
    stat.S_ISSOCK: "it is a socket, not a file",
    stat.S_ISCHR: "it is a device, not a file",
    stat.S_ISBLK: "it is a device, not a file",
}
_LONG_NUMBER = re.compile(rb"\d{%d}" % (DIGITS + 1))
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")


class Unreadable(QuambenchError):
    """A file that cannot be read, or that holds no JSON. `why` is the reason without the file's name."""

    def __init__(self, place: Path | str, why: str) -> None:
        super().__init__(f"cannot read {shown(place)}: {why}")
        self.why = why


def shown(text: object) -> str:
    """Return a name or a reason as messages show it: on one line, without control characters, not too long."""
    line = plain(str(text))
    return line if len(line) <= _SHOWN else f"{line[:_SHOWN]}..."


def is_file(path: Path) -> bool:
    """Whether a regular file is there. An impossible name (too long, with a NUL) gives False."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def is_folder(path: Path) -> bool:
    """Whether a folder is there. An impossible name gives False."""
    try:
        return path.is_dir()
    except (OSError, ValueError):
        return False


def check_file(path: Path, limit: int | None = None) -> None:
    """Check that `path` is a regular file of at most `limit` bytes, before somebody else's reader opens it by its name.

    raises Unreadable
    """
    try:
        about = path.stat()
    except OSError as error:
        raise Unreadable(path, error.strerror or type(error).__name__) from None
    except ValueError:  # a NUL byte, half a surrogate pair
        raise Unreadable(path, "no file has such a name") from None
    if not stat.S_ISREG(about.st_mode):
        raise Unreadable(path, next((why for kind, why in _KINDS.items() if kind(about.st_mode)), "it is no file"))
    if limit is not None and about.st_size > limit:
        raise Unreadable(path, f"it has {about.st_size / MIB:,.0f} MiB, and at most {limit / MIB:,.0f} are read")


def read_bytes(path: Path, limit: int = LIMIT) -> bytes:
    """Return the content of a regular file of at most `limit` bytes. raises Unreadable"""
    check_file(path, limit)
    try:
        # Opened so that it does not wait where a pipe has taken the file's place since.
        with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
            # read() allocates what it is asked for: first the known size, then whatever has been added since.
            content = file.read(min(os.fstat(file.fileno()).st_size, limit) + 1)
            while len(content) <= limit and (more := file.read(min(MIB, limit + 1 - len(content)))):
                content += more
    except OSError as error:
        raise Unreadable(path, error.strerror or type(error).__name__) from None
    if len(content) > limit:  # it grew
        raise Unreadable(path, f"it has more than the {limit / MIB:,.0f} MiB that are read")
    return content


def read_json(path: Path, limit: int = JSON_LIMIT) -> Any:
    """Return the document in a JSON file of at most `limit` bytes. raises Unreadable"""
    return parse_json(read_bytes(path, limit), path)


def parse_json(content: bytes, place: Path | str, any_text: bool = False) -> Any:
    """Return the document in UTF-8 JSON; `place` names it in messages.

    any_text  strings may hold half a surrogate pair, which no encoding can write
    raises Unreadable; also for a key that an object has twice, which readers take differently
    """
    whole = _whole if _LONG_NUMBER.search(content) else None
    try:
        document = json.loads(content.decode("utf-8-sig"), object_pairs_hook=_unique, parse_int=whole)
        if not any_text and _SURROGATE.search(content):
            json.dumps(document, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise Unreadable(place, "it is not JSON: a string has half a surrogate pair, which is no character") from None
    except ValueError as error:
        raise Unreadable(place, f"it is not JSON: {shown(error)}") from None
    except RecursionError:
        raise Unreadable(place, _TOO_DEEP) from None
    _check_depth(document, place)
    return document


_TOO_DEEP = f"it has lists or objects more than {DEEPEST} deep in each other"


def _unique(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"the key {twice!r} stands twice in one object")
    return found


def _whole(digits: str) -> int:
    if len(digits) > DIGITS:
        raise ValueError(f"a number of {len(digits)} digits")
    return int(digits)


def _check_depth(document: Any, place: Path | str) -> None:
    """Refuse a document nested deeper than DEEPEST; it goes level by level, so that no depth is too much for the check
    itself.
    """
    level = [document]
    for _ in range(DEEPEST + 1):
        inner = [part for part in level if isinstance(part, dict | list)]
        if not inner:
            return
        level = [part for whole in inner for part in (whole.values() if isinstance(whole, dict) else whole)]
    raise Unreadable(place, _TOO_DEEP)


def check_archive(path: Path) -> None:
    """Check that nothing in a zip archive is compressed: torch.save compresses nothing, and unpacking must not fill
    memory.

    A file that is no archive passes. raises Unreadable
    """
    check_file(path)
    try:
        if not zipfile.is_zipfile(path):
            return
        with zipfile.ZipFile(path) as archive:
            unpacked = sum(part.file_size for part in archive.infolist())
    except (OSError, ValueError, NotImplementedError, zipfile.BadZipFile) as error:
        raise Unreadable(path, f"its archive is corrupt ({shown(error)})") from None
    if unpacked > path.stat().st_size:
        raise Unreadable(path, f"its archive would unpack to {unpacked / MIB:,.0f} MiB, and torch.save packs nothing")


def read_pair(first: Callable[[], bytes], whole: Callable[[bytes], T]) -> T:
    """Return whole(first()): what two files say that change as one, `first` reading the one that names the other.

    Where that fails and the first file was replaced meanwhile, the new pair is read. raises BadArtefact
    """
    while True:
        before = first()
        try:
            return whole(before)
        except BadArtefact:
            if first() == before:
                raise


def mappings(document: Any, *keys: str) -> bool:
    """Whether a document is an object and so is each of its values under these keys."""
    return isinstance(document, dict) and all(isinstance(document.get(key), dict) for key in keys)


Check = Callable[[Any], bool]
"""A value of JSON -> whether it is of the type that its place needs."""


def number(value: Any) -> bool:
    """Whether a value is a number that a float can hold; true and false are none."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return isinstance(value, float) or abs(value) <= sys.float_info.max


def text(value: Any) -> bool:
    """Whether a value is a string."""
    return isinstance(value, str)


def scalar(value: Any) -> bool:
    """Whether a value is neither a list nor an object nor a number that JSON lacks (NaN, infinity)."""
    return not isinstance(value, dict | list) and (not isinstance(value, float) or math.isfinite(value))
