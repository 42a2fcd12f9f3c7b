"""Every exception that quambench raises on purpose.

Each message is written for the person who reads it in a terminal: what is wrong, what is known,
what to type next. The command line prints it as one line and exits with 2, pytest with 4.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Self

from quambench.core.plain_text import plain

_LONGEST = 2000  # characters of a message; what is wrong stands at its begin, what to do at its end


class QuambenchError(Exception):
    """Base of all errors that are somebody's input, not a bug in quambench: a message of one line."""

    def __str__(self) -> str:
        line = plain(super().__str__())
        half = _LONGEST // 2
        return line if len(line) <= _LONGEST else f"{line[:half]} ... {line[-half:]}"

    def within(self, where: str) -> Self:
        """The same error, with what it is about in front: a case or an observer as it was written."""
        return type(self).__new__(type(self), f"{where}: {self}")


class UnknownName(QuambenchError):
    """A name that no registry entry carries."""

    def __init__(self, kind: str, name: str, known: Iterable[str], home: str = "", listed_by: str = "") -> None:
        """listed_by: the command that lists the names, where they are too many for one line."""
        names = sorted(known)
        close = difflib.get_close_matches(name, names, n=1, cutoff=0.4)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        place = f"; to add one: a module in {home}" if home else ""
        these = (
            f"{len(names)} are known, {listed_by} lists them" if listed_by else f"Known: {', '.join(names) or 'none'}"
        )
        super().__init__(f"no {kind} named {name!r}.{hint} {these}{place}")


class BadParameter(QuambenchError):
    """A parameter outside its domain; the message says `must be X (got Y)`."""


class BadCheckpoint(QuambenchError):
    """A model folder that cannot be read as what its config.json says it is."""


class BadCorpus(QuambenchError):
    """Text that is missing, altered, or too short for what is asked of it."""


class BadArtefact(QuambenchError):
    """A stored Calibration, baseline or evidence file that is corrupt or from another schema."""


class NewerSchema(BadArtefact):
    """A file that a later version wrote: nothing here may replace it."""


class NotWritten(QuambenchError, OSError):
    """A file that could not be written: a full disk, a folder that may not be written; what stood there stands.

    The system's refusal, in one line with the path and what to do.
    """


class NonFinite(QuambenchError):
    """NaN or infinity in weights, activations or a measured number; names the place."""


class BrokenJudge(QuambenchError):
    """What judges results does not tell right from wrong itself: no verdict of it can be trusted."""


class SiteUnseen(QuambenchError):
    """A site that no calibration data passed through."""


class OutsideFailed(QuambenchError):
    """Somebody else's code raised; the message has what and where, the cause is what it raised."""


class GitFailed(QuambenchError):
    """Something that git could not do; `words` are git's own, in one line."""

    def __init__(self, message: str, words: str = "") -> None:
        self.words = words
        super().__init__(f"{message} (git: {words})" if words else message)


class MissingExtra(QuambenchError):
    """An optional dependency that is not installed; names the extra that brings it."""

    def __init__(self, package: str, extra: str) -> None:
        super().__init__(
            f"this needs the package {package!r}, which is not installed: pip install 'quambench[{extra}]'"
        )


def check_name(path: Path) -> None:
    """Whether a file or folder can have such a name, there or not yet. raises BadParameter"""
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return
    except (OSError, ValueError) as error:  # too long, a loop of links; with a NUL byte
        why = error.strerror if isinstance(error, OSError) and error.strerror else "no file can have such a name"
        raise BadParameter(f"cannot write to {path}: {why}") from None


def check_writable(folder: Path) -> None:
    """Whether a folder, there or not yet, can be written to; before work that would end in it.

    raises BadParameter
    """
    check_name(folder)
    there = folder.absolute()
    while not (there.exists() or there.is_symlink()) and there != there.parent:
        there = there.parent
    if not there.is_dir() or not os.access(there, os.W_OK):
        what = "no folder" if not there.is_dir() else "not writable"
        raise BadParameter(f"cannot write to {folder}: {there} is {what}")
