"""quambench report: what was accepted as worse says so, in every format."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from quambench_kernels.files import replacing

from quambench.cli.main import main
from quambench.gate.baselines import read_baseline, write_baseline

STORED = sorted((Path(__file__).parents[2] / "baselines" / "alpha").glob("*/mamba-tiny.json"))[0]
CASE = "mamba-tiny/running_max/1x1"
WHY = "faster by half, agreed"


@pytest.fixture(scope="module")
def accepted(tmp_path_factory):
    """Baselines in which one case was stored although it was worse."""
    file = tmp_path_factory.mktemp("stored") / "alpha" / "here" / STORED.name
    shutil.copytree(STORED.parent, file.parent)
    cases = read_baseline(file)
    write_baseline(file, cases | {CASE: replace(cases[CASE], accepted=WHY)})
    return file


def report(capsys, file, *arguments):
    assert main(["report", str(file), *arguments]) == 0
    return capsys.readouterr().out


def test_the_table_says_so_first_and_why(accepted, capsys):
    out = report(capsys, accepted)
    rows = [line.split()[:2] for line in out.splitlines() if line.startswith("mamba-tiny/")]
    assert rows[0] == [CASE, "ACCEPTED"]
    assert {word for _, word in rows[1:]} == {"SAME"}
    assert out.rstrip().splitlines()[-1] == f"ACCEPTED {CASE}: stored although it was worse: {WHY}"


def test_markdown_says_so(accepted, capsys):
    out = report(capsys, accepted, "--format", "md")
    assert f"- **ACCEPTED** `{CASE}`: stored although it was worse: {WHY}" in out
    assert out.count("ACCEPTED") == 2


def test_json_says_so(accepted, capsys):
    (document,) = json.loads(report(capsys, accepted, "--format", "json"))["files"].values()
    found = {v["case"]: (v["status"], v["accepted"]) for v in document["verdicts"]}
    assert found.pop(CASE) == ("ACCEPTED", WHY)
    assert set(found.values()) == {("SAME", "")}


def test_what_was_not_worse_stays_the_same(capsys):
    assert "ACCEPTED" not in report(capsys, STORED)


def test_a_files_name_is_one_line(accepted, tmp_path, capsys):
    file = tmp_path / "a\x1b[2J\nb" / STORED.name
    shutil.copytree(accepted.parent, file.parent)
    out = report(capsys, file)
    assert out.splitlines()[0].endswith(rf"a\x1b[2J\nb/{STORED.name}")


def test_what_a_killed_writer_had_begun_is_not_read(accepted, tmp_path, capsys):
    """A kill may leave a whole-looking JSON file in the writer's folder, whose evidence was never there."""
    stored = tmp_path / "baselines"
    shutil.copytree(accepted.parents[1], stored)
    before = report(capsys, stored)
    with pytest.raises(KeyboardInterrupt), replacing(stored / "here" / accepted.name) as partial:
        shutil.copy(accepted, partial)
        shutil.copytree(partial.parent, left := partial.parent.with_name(".quambench-0.partial"))
        raise KeyboardInterrupt
    assert (left / accepted.name).is_file()
    assert report(capsys, stored) == before
