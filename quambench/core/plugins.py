"""Somebody else's code by name: `module:name`, or an entry point that a package installed.

A case's settings hold the name alone, so that changed code is compared with its former self and not called
STALE; `sources` tells the two apart.
"""

from __future__ import annotations

import hashlib
import inspect
import os
import sys
import traceback
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType
from typing import Any

from quambench.core.errors import BadParameter, OutsideFailed, UnknownName
from quambench.core.reading import shown

_sources: dict[str, dict[str, str]] = {}


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of thing that may come from outside: "observer", found by the entry points of "quambench.observers"."""

    name: str

    @property
    def plural(self) -> str:
        return f"{self.name}s"

    @property
    def group(self) -> str:
        return f"quambench.{self.plural}"

    @property
    def installed(self) -> dict[str, str]:
        """Return entry point -> module:name of each installed one. raises BadParameter when two packages claim one
        name
        """
        return installed(self)

    def find(self, name: str, known: Collection[str], home: str, of: str = "name") -> Any:
        """Return the thing behind `module:name`, or behind an installed entry point.

        known  the names that exist besides, for the message
        home   where a module with one more would go, for the message
        of     "class" or "function": what is looked for in a module, for the message
        raises UnknownName, BadParameter: each says in one line what is wrong
        """
        target = name if ":" in name else self.installed.get(name)
        if target is None:
            raise UnknownName(self.name, name, {*known, *self.installed}, f"{home}, or anywhere, named module:{of}")
        module, _, path = target.partition(":")
        found: Any = _imported(module, f"{self.name} {name}")
        for part in path.split("."):
            try:
                found = getattr(found, part)
            except AttributeError:
                wanted = inspect.isclass if of.lower() == "class" else inspect.isfunction
                there = [n for n, thing in getattr(found, "__dict__", {}).items() if wanted(thing)]
                raise UnknownName(f"{of.lower()} in {shown(module)}", shown(path), there) from None
            except Exception as error:  # a module or a class may answer in its own way
                raise BadParameter(f"{self.name} {shown(name)}: no {shown(part)}: {shown(one_line(error))}") from error
        return found

    def used(self, name: str, thing: Any) -> None:
        """Note for `sources` that this thing was used; things of quambench itself, as its probes use, are left out."""
        if name.startswith("quambench."):
            return
        _sources.setdefault(self.plural, {})[name] = _digest(thing)


def sources() -> dict[str, dict[str, str]]:
    """Return the code from outside that this process used: "observers" -> name -> 16 digits of its file's hash."""
    return {kind: dict(sorted(named.items())) for kind, named in sorted(_sources.items())}


@cache
def installed(kind: Kind) -> dict[str, str]:
    """Look up Kind.installed; the environment is asked once in a process."""
    found: dict[str, str] = {}
    for entry in entry_points(group=kind.group):
        value = f"{entry.module}:{entry.attr}"
        if found.setdefault(entry.name, value) != value:
            raise BadParameter(f"two packages install the {kind.name} {entry.name!r}: {found[entry.name]} and {value}")
    return found


@contextmanager
def calling(name: str) -> Iterator[None]:
    """Turn any exception in the block, a call of code from outside, into one line that says where it arose.

    raises OutsideFailed
    """
    try:
        yield
    except Exception as error:
        raise OutsideFailed(f"{name} failed at {place_of(error)}: {one_line(error)}") from error


def place_of(error: BaseException) -> str:
    """Return the file:line where an error arose: the innermost frame outside of any library, if there is one."""
    frames = traceback.extract_tb(error.__traceback__)
    if not frames:
        return ""
    own = [frame for frame in frames if not {"site-packages", "dist-packages"} & set(Path(frame.filename).parts)]
    at = (own or frames)[-1]
    return f"{Path(at.filename).name}:{at.lineno}"


def one_line(error: BaseException) -> str:
    """Return "ValueError: its message", without line breaks."""
    return " ".join(f"{type(error).__name__}: {error}".split())


def _imported(module: str, asked: str) -> ModuleType:
    try:
        with _current_folder_first():
            return import_module(module)
    except (Exception, SystemExit) as error:  # a module may fail in any way, or be a program
        raise BadParameter(f"{shown(asked)}: {shown(module)!r} cannot be imported: {one_line(error)}") from error


@contextmanager
def _current_folder_first() -> Iterator[None]:
    """Put the current folder first on the path, as `python -m` does.

    A console script then finds the same modules, so a name means one thing however quambench was started.
    """
    here = os.getcwd()
    sys.path.insert(0, here)
    try:
        yield
    finally:
        with suppress(ValueError):
            sys.path.remove(here)


def _digest(thing: Any) -> str:
    try:
        source = Path(inspect.getfile(thing)).read_bytes()
    except (OSError, TypeError):  # made without a file
        return "unknown"
    return hashlib.sha256(source).hexdigest()[:16]
