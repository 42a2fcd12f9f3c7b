"""The command: what it reads, writes and returns."""

from __future__ import annotations

import json

import pytest

from quambench.claims import FAMILIES
from quambench.cli.main import main


@pytest.fixture
def baselines(shelf, made, tmp_path):
    shelf(made("percentile[alpha=0.9995]"), made("percentile[alpha=1.0]", kl=[1.2, 1.4] * 4))
    return tmp_path


def call(capsys, *arguments) -> tuple[int, str, str]:
    code = main(["claims", *map(str, arguments)])
    said = capsys.readouterr()
    return code, said.out, said.err


def test_stored_claims_are_printed(baselines, capsys):
    code, out, _ = call(capsys, "--stored", "--model", "mamba-tiny", "--baselines", baselines)
    assert code == 0
    assert "Accuracy by α" in out
    assert "+3.00 [+2.11, +3.89]" in out
    assert "baselines alone were asked" in " ".join(out.split())


def test_the_document_is_written_and_json_printed(baselines, capsys, tmp_path):
    target = tmp_path / "claims.md"
    arguments = ("--stored", "--model", "mamba-tiny", "--baselines", baselines)
    code, out, _ = call(capsys, *arguments, "--out", target, "--json")
    assert code == 0
    titles = [family["title"] for family in json.loads(out)["families"]]
    headings = [line[3:] for line in target.read_text(encoding="utf-8").splitlines() if line.startswith("## ")]
    assert headings[1:] == titles  # the first is the rule's
    assert set(titles) == set(FAMILIES) - {"α where only the INT8 state can answer"}  # no recall model was asked for
    before = target.read_bytes()
    code, out, _ = call(capsys, *arguments, "--out", target)
    assert (code, out) == (0, f"written: {target}\n")
    assert target.read_bytes() == before


def test_what_was_read_decides_which_models_are_of_recall(shelf, made, tmp_path, capsys):
    record = made("percentile[alpha=0.9995]", model="other", recall__associative__asked=[1.0] * 8)
    shelf(record, model="other")
    code, out, _ = call(capsys, "--stored", "--model", "other", "--baselines", tmp_path)
    assert code == 0
    assert "α where only the INT8 state can answer" in out
    assert "Accuracy by α" not in out


def test_nothing_to_read_is_code_2(tmp_path, capsys):
    code, _, err = call(capsys, "--stored", "--model", "mamba-tiny", "--baselines", tmp_path)
    assert code == 2
    assert "holds no baseline of mamba-tiny" in err
    assert err.count("\n") == 1


def test_a_baseline_that_cannot_be_read_is_code_2(baselines, capsys):
    next(baselines.glob("s/*/mamba-tiny.json")).write_text("{")
    code, _, err = call(capsys, "--stored", "--model", "mamba-tiny", "--baselines", baselines)
    assert code == 2
    assert "is not a readable baseline" in err


def test_a_document_that_cannot_be_written_is_refused_before_the_work(baselines, capsys, monkeypatch, tmp_path):
    monkeypatch.setattr("quambench.cli.claims._sections", lambda sources: pytest.fail("the work was begun"))
    (tmp_path / "file").touch()
    arguments = ("--stored", "--model", "mamba-tiny", "--baselines", baselines)
    code, _, err = call(capsys, *arguments, "--out", tmp_path / "file" / "claims.md")
    assert code == 2
    assert "is no folder" in err
