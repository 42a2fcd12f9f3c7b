"""lm-evaluation-harness over float and INT8 models: its own tasks, its own evaluation, its own command line.

scoring.py and subject.py know nothing of the harness; what imports it, seconds long, is adapter.py, items.py
and running.py. The model is registered as "quambench" when adapter.py is imported.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from importlib import resources
from importlib.util import find_spec
from pathlib import Path

from quambench.core.errors import MissingExtra

MODEL_NAME = "quambench"  # lm_eval run --model quambench


def tasks_folder() -> Path:
    """Return the folder of the tasks' YAML files, which lm_eval's --include_path takes."""
    return Path(str(resources.files(__package__))) / "tasks"


@dataclass(frozen=True, slots=True)
class OfferedTask:
    """A task that comes with quambench."""

    name: str
    file: Path
    metric: str
    what: str  # its YAML's first line


def offered_tasks() -> list[OfferedTask]:
    """Return the tasks that come with quambench, by name; they are read without the harness."""
    found = []
    for file in sorted(tasks_folder().glob("*.yaml")):
        text = file.read_text(encoding="utf-8")
        metric = re.search(r"^ +- metric: (\w+)", text, re.MULTILINE)
        what = text.splitlines()[0].removeprefix("# ")
        found.append(OfferedTask(file.stem, file, metric[1] if metric else "", what))
    return found


def check_installed() -> None:
    """Check that lm-evaluation-harness is installed. raises MissingExtra"""
    if find_spec("lm_eval") is None:
        raise MissingExtra("lm-eval", "harness")
