"""Sphinx extension: docstrings as this project writes them, as reStructuredText.

A docstring here is plain text: `code` stands between single backticks, |x| is a magnitude, *shape an unpacked one, and
a block of lines "name   meaning" describes arguments. Sphinx would take these for markup of its own.
"""

from __future__ import annotations

import dataclasses
import inspect
import re
from typing import Any

ARGUMENT = re.compile(r"[\w*][\w*, ]*?\s{2,}\S")
FIELD = re.compile(r"    (?!def |class |return|@|\"|#)\w+: .+")


def setup(app: Any) -> dict[str, bool]:
    """Register the hook with Sphinx."""
    app.connect("autodoc-process-docstring", _process)
    return {"parallel_read_safe": True}


def _process(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    if what in ("class", "exception") and (lines[:1] and lines[0].startswith(f"{obj.__name__}(")):
        lines[:] = []  # a dataclass without a docstring: Python's own signature
    lines[:] = restructured(lines)
    if what in ("class", "exception") and dataclasses.is_dataclass(obj):
        lines += fields_of(obj)


def restructured(lines: list[str]) -> list[str]:
    """Return a docstring's lines as reStructuredText that shows them as they are meant."""
    text = "\n".join(lines).strip("\n")
    out: list[str] = []
    for block in re.split(r"\n\s*\n", text):
        rows = block.split("\n")
        if any(row.startswith("    ") for row in rows) and not ARGUMENT.match(rows[0]):
            out += _mixed(rows)
        elif ARGUMENT.match(rows[0]):
            out += ["::", "", *(f"    {row}" for row in rows), ""]
        else:
            out += [*(escaped(row) for row in rows), ""]
    return out


def _mixed(rows: list[str]) -> list[str]:
    """Return prose with indented lines in it: these become a block of their own."""
    out: list[str] = []
    for row in rows:
        if row.startswith("    "):
            if not (out and out[-1].startswith("    ")):
                out += ["", "::", ""]
            out.append(row)
        else:
            if out and out[-1].startswith("    "):
                out.append("")
            out.append(escaped(row))
    return [*out, ""]


def escaped(row: str) -> str:
    """Return a line of prose with `code` as literals and all else as plain letters."""
    parts = re.split(r"`+([^`]+)`+", re.sub(r"(^|\. )raises (?=[A-Z])", r"\1Raises ", row))
    shown = []
    for i, part in enumerate(parts):
        if i % 2:
            shown.append(f"``{part}``")
        else:  # a word that follows a literal directly is parted from it by an escaped space
            plain = re.sub(r"([\\*|_`])", r"\\\1", part)
            shown.append("\\ " + plain if i and re.match(r"\w", plain) else plain)
    return "".join(shown)


def fields_of(kind: type) -> list[str]:
    """Return the fields of a dataclass as its source writes them, comments included."""
    try:
        source = inspect.getsource(kind)
    except (OSError, TypeError):
        return []
    found = []
    for line in source.split("\n"):
        if re.match(r"    (?:def |@)", line):
            break
        if FIELD.match(line) and "ClassVar" not in line:
            found.append(line.strip())
    if not found:
        return []
    return ["", ".. code-block:: python", "", *(f"    {line}" for line in found), ""]
