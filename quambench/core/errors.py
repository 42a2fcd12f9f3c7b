"""The exceptions that quambench raises on purpose.

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

_LONGEST = 2000  # characters of a message; what is wrong stands at its beginning, what to do at its end


class QuambenchError(Exception):
    """Base of all errors that come from somebody's input and not from a bug in quambench. Its message is one line."""

    def __str__(self) -> str:
        line = plain(super().__str__())
        half = _LONGEST // 2
        return line if len(line) <= _LONGEST else f"{line[:half]} ... {line[-half:]}"

    def within(self, where: str) -> Self:
        """Return the same error with `where` in front of its message: a case or an observer as it was written."""
        return type(self).__new__(type(self), f"{where}: {self}")


class UnknownName(QuambenchError):
    """A name that no registry entry carries."""

    def __init__(self, kind: str, name: str, known: Iterable[str], home: str = "", listed_by: str = "") -> None:
        """Say which names are known, and which of them is the nearest.

        known      the names that the registry has
        home       where a module with one more would go; "" where none can be added
        listed_by  the command that lists the names, where they are too many for one line
        """
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
    """A file that a later version wrote. This version must not replace it."""


class NotWritten(QuambenchError, OSError):
    """A file that could not be written, as on a full disk or in a read-only folder. The old file is still there,
    unchanged.

    The message is the system's refusal in one line, with the path and what to do.
    """


class NonFinite(QuambenchError):
    """NaN or infinity in weights, activations or a measured number; names the place."""


class BrokenJudge(QuambenchError):
    """A part that judges results fails its own self-test: it cannot tell right from wrong, so no verdict can be
    trusted.
    """


class SiteUnseen(QuambenchError):
    """A site that no calibration data passed through."""


class OutsideFailed(QuambenchError):
    """An error in somebody else's code. The message says what failed and where; the cause is the original exception."""


class GitFailed(QuambenchError):
    """A failure of git; `words` are git's own, in one line."""

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
    """Check that the file system allows a file or folder of this name, whether it exists or not. raises BadParameter"""
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return
    except (OSError, ValueError) as error:  # too long, a loop of links; with a NUL byte
        why = error.strerror if isinstance(error, OSError) and error.strerror else "no file can have such a name"
        raise BadParameter(f"cannot write to {path}: {why}") from None


def check_writable(folder: Path) -> None:
    """Check that a folder, which need not exist yet, can be written to. Called before long work that would end in it.

    raises BadParameter
    """
    check_name(folder)
    there = folder.absolute()
    while not (there.exists() or there.is_symlink()) and there != there.parent:
        there = there.parent
    if not there.is_dir() or not os.access(there, os.W_OK):
        what = "no folder" if not there.is_dir() else "not writable"
        raise BadParameter(f"cannot write to {folder}: {there} is {what}")
