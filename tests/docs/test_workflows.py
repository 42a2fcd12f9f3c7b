"""Workflows may do little: of this project, and those that its pages tell users to write."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
OURS = {p.name: p.read_text(encoding="utf-8") for p in sorted((ROOT / ".github" / "workflows").glob("*.y*ml"))}


def _in_pages() -> Iterator[tuple[str, str]]:
    for page in [*ROOT.glob("*.md"), *sorted((ROOT / "docs").rglob("*.md"))]:
        for block in re.findall(r"(?:^    .*\n|^[ ]*\n)+", page.read_text(encoding="utf-8"), re.MULTILINE):
            if "runs-on:" in block:
                yield page.name, textwrap.dedent(block)


WORKFLOWS = OURS | dict(_in_pages())


def faults(text: str) -> list[str]:
    """What a workflow may do and must not."""
    flow = yaml.safe_load(text)
    jobs = flow["jobs"].values()
    steps = [step for job in jobs for step in job["steps"]]
    checkouts = [s for s in steps if s.get("uses", "").startswith("actions/checkout@")]
    pinned = r"[\w-]+/[\w./-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+"
    used = re.findall(r"^\s*(?:- )?uses: (.*)$", text, re.MULTILINE)
    found = {
        "more than reading": flow.get("permissions") != {"contents": "read"} or any("permissions" in j for j in jobs),
        "an action not pinned": not all(re.fullmatch(pinned, action) for action in used),
        "no timeout": not all(0 < job.get("timeout-minutes", 0) <= 180 for job in jobs),
        "credentials are kept": any(s.get("with", {}).get("persist-credentials") is not False for s in checkouts),
        "runs pile up": "group" not in flow.get("concurrency", {}),
        "code of a stranger with rights": "pull_request_target" in text or "workflow_run" in text,
        "words of a stranger in a command": any("${{" in step.get("run", "") for step in steps),
    }
    assert len(used) == sum("uses" in step for step in steps)
    return [what for what, true in found.items() if true]


@pytest.mark.parametrize("name", WORKFLOWS)
def test_a_workflow_may_do_no_more_than_it_must(name):
    assert faults(WORKFLOWS[name]) == []


def test_there_are_workflows_to_judge():
    assert {"ci.yml", "fork.md"} <= WORKFLOWS.keys()


@pytest.mark.parametrize(
    ("old", "new", "fault"),
    [
        ("contents: read", "contents: write", "more than reading"),
        ("permissions:\n  contents: read\n", "", "more than reading"),
        ("    timeout-minutes", "    permissions: write-all\n    timeout-minutes", "more than reading"),
        (r"checkout@\w+ # v[\d.]+", "checkout@v4", "an action not pinned"),
        (r"setup-python@\w+", "setup-python@0b93645", "an action not pinned"),
        ("    timeout-minutes: 120\n", "", "no timeout"),
        ("persist-credentials: false", "persist-credentials: true", "credentials are kept"),
        (r"        with:\n          persist-credentials: false\n", "", "credentials are kept"),
        (r"concurrency:\n(  .*\n)+", "", "runs pile up"),
        (", pull_request]", ", pull_request_target]", "code of a stranger with rights"),
        ("run: bash .ci/run", "run: echo ${{ github.event.head_commit.message }}", "words of a stranger in a command"),
    ],
)
def test_each_rule_sees_what_breaks_it(old, new, fault):
    planted, count = re.subn(old, new, OURS["ci.yml"])
    assert count == 1
    assert faults(planted) == [fault]
