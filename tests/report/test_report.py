"""Reports: worst first, absent numbers absent, the same bytes every time."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from quambench.errors import BadParameter
from quambench.gate.verdicts import Status, Verdict
from quambench.metrics import Measurement
from quambench.report import REPORTS, check_report, format_of, terminal

VERDICTS = [
    Verdict(
        "b", Status.SAME, metrics={"kl": Measurement(0.00123, 0.0001), "worst_local_sqnr": Measurement(12.5, math.nan)}
    ),
    Verdict("a", Status.REGRESSED, "kl +1 at layers.0.z", "layers.0.z", metrics={"kl": Measurement(0.5, 0.01)}),
    Verdict("c", Status.ERROR, "cannot read"),
    Verdict("a2", Status.SAME, portable=True),
]
PROVENANCE = {"machine": "cpu-test", "dirty": False, "environment": {}}


@pytest.mark.parametrize("render", [terminal, *(lambda v, f=f: f(v, PROVENANCE) for f in REPORTS.values())])
def test_the_same_verdicts_give_the_same_bytes(render):
    assert render(VERDICTS) == render(list(reversed(VERDICTS)))


def test_worst_comes_first():
    rows = [line.split()[0] for line in terminal(VERDICTS).splitlines()[3:7]]
    assert rows == ["c", "a", "a2", "b"]


def test_an_absent_number_is_a_dash_and_units_are_scaled():
    lines = terminal(VERDICTS).splitlines()
    row_b = next(line for line in lines if line.startswith("b "))
    assert "1.23 ± 0.10" in row_b  # milli-nats
    assert next(line for line in lines if line.startswith("a ")).split()[-1] == "-"
    assert "SAME (portable)" in next(line for line in lines if line.startswith("a2 "))


def test_a_column_that_no_row_measured_is_left_out():
    assert "accuracy" not in terminal(VERDICTS)
    assert "place" not in terminal([VERDICTS[0]])
    assert "layers.0.z" in next(line for line in terminal(VERDICTS).splitlines() if line.startswith("a "))


def test_reasons_follow_the_table_and_written_rows_need_none():
    assert "REGRESSED a: kl +1 at layers.0.z" in terminal(VERDICTS)
    assert "why" not in terminal([Verdict("x", Status.NEW, "why", written=True)])


def test_markdown_is_one_table_with_equal_columns():
    lines = REPORTS["md"](VERDICTS, PROVENANCE).splitlines()
    table = [line for line in lines if line.startswith("|")]
    assert len(table) == 2 + len(VERDICTS)
    assert len({line.count("|") for line in table}) == 1


def test_json_has_no_nan_and_every_verdict():
    document = json.loads(REPORTS["json"](VERDICTS, PROVENANCE), parse_constant=pytest.fail)
    assert [v["case"] for v in document["verdicts"]] == ["c", "a", "a2", "b"]
    assert document["verdicts"][3]["metrics"]["worst_local_sqnr"]["se"] is None


def test_a_suffix_without_a_format_is_refused():
    assert format_of(Path("x.md")) == "md"
    with pytest.raises(BadParameter, match=r"\.json, \.md"):
        format_of(Path("x.pdf"))


def test_a_report_that_cannot_be_written_is_refused_beforehand(tmp_path, monkeypatch):
    check_report(tmp_path / "new" / "x.md", "--report")
    (tmp_path / "folder.md").mkdir()
    (tmp_path / "file").touch()
    with pytest.raises(BadParameter, match="--report must name a file"):
        check_report(tmp_path / "folder.md", "--report")
    with pytest.raises(BadParameter, match="file is no folder"):
        check_report(tmp_path / "file" / "x.md", "--report")
    (tmp_path / "old.md").touch()
    monkeypatch.setattr("os.access", lambda path, mode: Path(path).name != "old.md")  # root may write all
    with pytest.raises(BadParameter, match=r"old\.md: it is not writable"):
        check_report(tmp_path / "old.md", "--report")
