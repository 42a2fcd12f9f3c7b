"""Report formats by file suffix. To add one: a module beside this one; import it in __init__.py."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from quambench.core.errors import BadParameter, check_writable
from quambench.core.files import check_replaceable, write
from quambench.core.plain_text import posted
from quambench.core.registry import Registry
from quambench.gate.verdicts import Verdict

Renderer = Callable[[Sequence[Verdict], Mapping[str, Any]], str]
"""(verdicts, provenance) -> the report's text"""

REPORTS: Registry[Renderer] = Registry("report format", "quambench/report/")


def format_of(path: Path) -> str:
    """The format named by a path's suffix: "md" or "json".

    raises BadParameter for a suffix without a format
    """
    suffix = path.suffix.removeprefix(".")
    if suffix not in REPORTS:
        known = ", ".join(f".{name}" for name in sorted(REPORTS))
        raise BadParameter(f"a report's format follows its suffix, {known} (got {str(path)!r})")
    return suffix


def check_report(path: Path, option: str) -> None:
    """Whether a report can be written to `path`; before the work that it would report on.

    raises BadParameter, NotWritten
    """
    format_of(path)
    check_writable(path.parent)
    if path.is_dir():
        raise BadParameter(f"{option} must name a file (got the folder {path})")
    if path.exists() and not os.access(path, os.W_OK):
        raise BadParameter(f"cannot write to {path}: it is not writable")
    check_replaceable(path)


def write_report(path: Path, verdicts: Sequence[Verdict], provenance: Mapping[str, Any]) -> None:
    """In the format that the path's suffix names; without the paths of this machine, since reports are posted.

    raises NotWritten
    """
    shown = [
        replace(v, case_id=posted(v.case_id), reason=posted(v.reason), place=posted(v.place), unit=posted(v.unit))
        for v in verdicts
    ]
    made = {name: posted(value) if isinstance(value, str) else value for name, value in provenance.items()}
    write(path, REPORTS[format_of(path)](shown, made))
