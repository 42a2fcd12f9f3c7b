"""README and docs say what is true: links lead somewhere, commands and options exist."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from quambench.cli.main import COMMANDS
from quambench.gate.verdicts import Status
from quambench.metrics import METRICS
from quambench.models.checkpoint import bundled_names
from quambench.observers import OBSERVERS

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    p
    for p in ROOT.rglob("*.md")
    if not any(part.startswith(".") or part == "build" for part in p.relative_to(ROOT).parts)
)
PLUGIN = (ROOT / "quambench" / "pytest_plugin.py").read_text(encoding="utf-8")


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_links_inside_the_project_lead_somewhere(page):
    for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), target


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_options_and_commands_exist(page):
    text = page.read_text(encoding="utf-8")
    for option in set(re.findall(r"--qb-[\w-]+", text)):
        assert f'"{option}"' in PLUGIN, option
    for command in set(re.findall(r"`quambench (\w+)", text)):
        assert command in COMMANDS, command


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_files_named_in_the_text_exist(page):
    for name in set(
        re.findall(r"`((?:quambench|kernels|suites|tests|baselines)/[\w./-]+)`", page.read_text(encoding="utf-8"))
    ):
        assert (ROOT / name).exists(), name


def test_the_gates_page_explains_every_verdict():
    text = (ROOT / "docs" / "gate.md").read_text(encoding="utf-8")
    assert all(f"| {status} |" in text for status in Status)


def test_the_readme_names_models_and_both_commands():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert all(name in text for name in bundled_names())
    ci = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    commands = [line for line in re.findall(r"^    (.*tox run.*)$", text, re.MULTILINE)]
    assert len(commands) == 2
    for command in commands:
        run = shlex.split(command.split("&&")[-1].strip())
        assert " ".join(run) in ci


def test_what_is_registered_is_documented():
    text = (ROOT / "docs" / "quantization.md").read_text(encoding="utf-8")
    missing = [name for name in OBSERVERS if f"`{name}`" not in text]
    assert not missing, f"docs/quantization.md lists every observer: add a row for `{missing[0]}`"
    metrics = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")
    missing = [name for name in METRICS if f"`{name}`" not in metrics]
    assert not missing, f"docs/metrics.md lists every metric: add a row for `{missing[0]}`"
