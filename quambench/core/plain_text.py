"""Text from outside (names of models, reasons, messages), made fit to be shown on a terminal and in Markdown.

A reader sees the same text; characters that a terminal or a page would obey are spelled out.
"""

from __future__ import annotations

import codecs
import io
import os
import re
import sys
import unicodedata
from contextlib import suppress
from pathlib import Path

# Cc: control; Cs: half of a pair, which no encoding takes. And what turns the direction of writing around.
_OBEYED = ("Cc", "Cs")
_DIRECTIONS = frozenset("\u061c\u200e\u200f\u2028\u2029\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
_MARKDOWN = str.maketrans(
    {"&": "&amp;", "<": "&lt;", ">": "&gt;", "|": "&#124;", "`": "&#96;", "*": "\\*", "@": "&#64;", "\\": "\\\\"}
)


# What tables and reasons hold beside ASCII, for terminals that show nothing else.
_IN_ASCII = {"±": "+-", "→": "->", "α": "alpha", "σ": "sigma", "·": "*", "×": "x", "≤": "<=", "≥": ">=", "−": "-"}
_IN_ASCII |= {"–": "-", "…": "...", "√": "sqrt", "²": "^2", "µ": "u", "μ": "u", "Δ": "delta", "≈": "~", "∞": "inf"}


def print_anywhere() -> None:
    """Let both output streams take every text: characters that the locale lacks are spelled in ASCII, and nothing is
    lost.
    """
    codecs.register_error("quambench", _in_ascii)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.errors in ("strict", "surrogateescape", "backslashreplace"):
            stream.reconfigure(errors="quambench")


def spelled_for(encoding: str, text: str) -> str:
    """Return text as a stream of this encoding shows it: characters that the encoding lacks are spelled in ASCII."""
    codecs.register_error("quambench", _in_ascii)
    return text.encode(encoding, errors="quambench").decode(encoding)


def _in_ascii(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    found = error.object[error.start : error.end]
    return "".join(_IN_ASCII.get(c, _spelled(c)) for c in found), error.end


def plain(text: str) -> str:
    """Return text as a single line, with control characters and changes of direction spelled out: "\\x1b", "\\n"."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(_spelled(c) if _is_obeyed(c) else c for c in text)


def in_markdown(text: str) -> str:
    """Return text for a paragraph or for a table's cell: no markup, no link, no mention, no new cell."""
    return re.sub(r"\](?=[(\[:])|!(?=\[)", r"\\\g<0>", plain(text).translate(_MARKDOWN))


def as_code(text: str) -> str:
    """Return text as a code span of a paragraph. Its fence is longer than any that it holds."""
    shown = plain(text)
    fence = "`" * (max((len(run) for run in re.findall("`+", shown)), default=0) + 1)
    space = " " if shown.startswith("`") or shown.endswith("`") or not shown.strip() else ""
    return f"{fence}{space}{shown}{space}{fence}"


def posted(text: str) -> str:
    """Return text that may leave this machine: paths become relative to the current folder, the user's folder is
    "~".
    """
    for folder, name in _folders():
        text = re.sub(rf"(?<![\w./-]){re.escape(folder)}(?=[^\w-]|$)", name, text)
    return text


def _folders() -> list[tuple[str, str]]:
    found = [(os.path.expanduser("~"), "~")]
    with suppress(OSError):  # it may be gone
        found.insert(0, (os.getcwd(), "."))
    return [(folder, name) for folder, name in found if len(Path(folder).parts) > 1]


def _is_obeyed(c: str) -> bool:
    return unicodedata.category(c) in _OBEYED or c in _DIRECTIONS


def _spelled(c: str) -> str:
    return c.encode("unicode_escape").decode("ascii")
