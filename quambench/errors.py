"""Every exception that quambench raises on purpose.

Each message is written for the person who reads it in a terminal: what is wrong, what is known,
what to type next. The command line prints it as one line and exits with 2, pytest with 4.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class QuambenchError(Exception):
    """Base of all errors that are somebody's input, not a bug in quambench."""


class UnknownName(QuambenchError):
    """A name that no registry entry carries."""

    def __init__(self, kind: str, name: str, known: Iterable[str], home: str = "") -> None:
        names = sorted(known)
        close = difflib.get_close_matches(name, names, n=1, cutoff=0.4)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        place = f"; to add one: a module in {home}" if home else ""
        super().__init__(f"no {kind} named {name!r}.{hint} Known: {', '.join(names)}{place}")


class BadParameter(QuambenchError):
    """A parameter outside its domain; the message says `must be X (got Y)`."""


class BadCheckpoint(QuambenchError):
    """A model folder that cannot be read as what its config.json says it is."""


class BadCorpus(QuambenchError):
    """Text that is missing, altered, or too short for what is asked of it."""


class BadArtefact(QuambenchError):
    """A stored Calibration, baseline or evidence file that is corrupt or from another schema."""


class NonFinite(QuambenchError):
    """NaN or infinity in weights, activations or a measured number; names the place."""


class SiteUnseen(QuambenchError):
    """A site that no calibration data passed through."""


class MissingExtra(QuambenchError):
    """An optional dependency that is not installed; names the extra that brings it."""

    def __init__(self, package: str, extra: str) -> None:
        super().__init__(
            f"this needs the package {package!r}, which is not installed: pip install 'quambench[{extra}]'"
        )
