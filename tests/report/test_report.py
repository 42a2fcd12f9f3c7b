"""Reports: worst first, absent numbers absent, the same bytes every time."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path

import pytest

from quambench.core.errors import BadParameter, UnknownName
from quambench.gate.stats import Paired
from quambench.gate.verdicts import Comparison, Status, Verdict
from quambench.metrics import METRICS, Measurement
from quambench.report import REPORTS, check_report, format_of, terminal
from quambench.report.table import tables

VERDICTS = [
    Verdict(
        "b", Status.SAME, metrics={"kl": Measurement(0.00123, 0.0001), "worst_local_sqnr": Measurement(12.5, math.nan)}
    ),
    Verdict("a", Status.REGRESSED, "kl +1 at layers.0.z", "layers.0.z", metrics={"kl": Measurement(0.5, 0.01)}),
    Verdict("c", Status.ERROR, "cannot read"),
    Verdict("a2", Status.SAME, portable=True),
]
PROVENANCE = {"machine": "cpu-test", "dirty": False, "environment": {}}


def test_the_same_verdicts_give_the_same_bytes_on_a_terminal_too():
    """Registered formats are judged in tests/contract/test_reports.py."""
    assert terminal(VERDICTS) == terminal(list(reversed(VERDICTS)))


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
    with pytest.raises(BadParameter, match=r"\.json, \.md \(got 'x\.pdf'\)"):
        format_of(Path("x.pdf"))
    with pytest.raises(BadParameter, match=r"\.json, \.md \(got 'x\.pdf'\)"):
        check_report(Path("x.pdf"), "--report")
    with pytest.raises(UnknownName, match=r"no report format named 'pdf'(.|\n)*quambench/report/$"):
        REPORTS["pdf"]


def test_a_report_that_cannot_be_written_is_refused_beforehand(tmp_path, monkeypatch):
    check_report(tmp_path / "new" / "x.md", "--report")
    (tmp_path / "folder.md").mkdir()
    (tmp_path / "file").touch()
    with pytest.raises(BadParameter, match="--report must name a file"):
        check_report(tmp_path / "folder.md", "--report")
    with pytest.raises(BadParameter, match="file is no folder"):
        check_report(tmp_path / "file" / "x.md", "--report")
    (tmp_path / "old.md").touch()
    # root may write all
    monkeypatch.setattr("os.access", lambda path, mode: not (mode == os.W_OK and Path(path).name == "old.md"))
    with pytest.raises(BadParameter, match=r"old\.md: it is not writable"):
        check_report(tmp_path / "old.md", "--report")


def compared(detectable: float) -> tuple[Comparison, ...]:
    """Of two metrics; `detectable` is KL's."""
    return (
        Comparison("accuracy", Paired(0.0, 0.0, 1.0, 0.1, 80), 0.0, 0.0, 0.0, significant=False),
        Comparison("kl", Paired(0.0012, 0.0003, 0.004, detectable, 16), 0.0012, 1e-4, 2e-4, significant=True),
    )


REGRESSED = Verdict(
    "m/b", Status.REGRESSED, "kl +1 at layers.0.z", "observer/mse", "layers.0.z", comparisons=compared(0.00456),
    metrics={"kl": Measurement(12.5, 2.0), "loss_rise": Measurement(math.nan, math.nan),
             "accuracy": Measurement(0.5, 0.0)},
    stored={"kl": Measurement(0.5, 0.01)},
)  # fmt: skip
MANY = [
    Verdict(
        "m/a", Status.SAME, comparisons=compared(0.0),
        metrics={"kl": Measurement(0.00123, 0.0001), "worst_local_sqnr": Measurement(12.5, math.nan),
                 "task_arc": Measurement(0.25, 0.02), "task_arc_float": Measurement(0.5, 0.1),
                 "task_arc_nats": Measurement(-3.0, 0.1)},
    ),
    REGRESSED,
    Verdict("m/c", Status.ERROR, "cannot read"),
    Verdict(
        "m/d", Status.DRIFTED, "moved", place="layers.1.z", metrics={"kl": Measurement(0.001, 0.00005)},
        comparisons=compared(math.inf), portable=True, written=True,
    ),
    Verdict(
        "r/a", Status.NEW, "no stored baseline", portable=True,
        metrics={"recall_associative": Measurement(0.9375, 0.03), "kl": Measurement(0.002, 0.001)},
    ),
    Verdict("probe/grid/scale", Status.SAME),
    Verdict("probe/grid/ties", Status.REGRESSED, "8 bits: [3] 1 -> 2", "grid/ties"),
]  # fmt: skip


def test_the_terminals_table_as_people_see_it():
    """Two kinds of model; a place by unit or by site; what the comparison could see; quiet probes counted."""
    assert terminal(MANY).splitlines() == [
        "case             verdict                      place                    KL    accuracy      worst            arc    sees KL of",  # noqa: E501
        "                                                               mnat/token           %    SQNR dB          score    mnat/token",  # noqa: E501
        "---------------  ---------------------------  ------------  -------------  ----------  ---------  -------------  ------------",  # noqa: E501
        "m/c              ERROR                                                  -           -          -              -             -",  # noqa: E501
        "m/b              REGRESSED                    observer/mse   12500 ± 2000          50          -              -           4.6",  # noqa: E501
        "probe/grid/ties  REGRESSED                    grid/ties                 -           -          -              -             -",  # noqa: E501
        "m/d              DRIFTED (portable, written)  layers.1.z    1.000 ± 0.050           -          -              -             -",  # noqa: E501
        "m/a              SAME                                         1.23 ± 0.10           -       12.5  0.250 ± 0.020           any",  # noqa: E501
        "",
        "case    verdict                   KL      recall",
        "                          mnat/token    by key %",
        "------  --------------  ------------  ----------",
        "r/a     NEW (portable)     2.0 ± 1.0  93.8 ± 3.0",
        "",
        "ERROR m/c: cannot read",
        "REGRESSED m/b: kl +1 at layers.0.z",
        "REGRESSED probe/grid/ties: 8 bits: [3] 1 -> 2",
        "NEW r/a: no stored baseline",
        "1 probes of single units answer as stored",
    ]
    assert terminal(MANY).endswith("stored\n")


def test_a_run_that_found_nothing_has_a_table_and_no_notes():
    assert terminal([Verdict("m/a", Status.SAME)]) == "case    verdict\n------  ---------\nm/a     SAME\n"


def test_markdown_as_people_see_it():
    text = REPORTS["md"](MANY[1:3] + MANY[4:5], PROVENANCE | {"note": "", "gpu": None})
    assert text.splitlines() == [
        "| case   | verdict   | place        |   KL mnat/token |   accuracy % |   sees KL of mnat/token |",
        "|--------|-----------|--------------|-----------------|--------------|-------------------------|",
        "| m/c    | ERROR     |              |               - |            - |                       - |",
        "| m/b    | REGRESSED | observer/mse |    12500 ± 2000 |           50 |                     4.6 |",
        "",
        "| case   | verdict        |   KL mnat/token |   recall by key % |",
        "|--------|----------------|-----------------|-------------------|",
        "| r/a    | NEW (portable) |       2.0 ± 1.0 |        93.8 ± 3.0 |",
        "",
        "- **ERROR** `m/c`: cannot read",
        "- **REGRESSED** `m/b`: kl +1 at layers.0.z",
        "- **NEW** `r/a`: no stored baseline",
        "",
        "_machine cpu-test, dirty False_",
    ]
    assert text.endswith("_\n")
    quiet = REPORTS["md"](MANY[:1], PROVENANCE)
    assert quiet.endswith("any |\n\n_machine cpu-test, dirty False_\n")


def test_json_as_machines_read_it():
    text = REPORTS["json"]([REGRESSED], PROVENANCE)
    document = json.loads(text)
    assert text == json.dumps(document, indent=1) + "\n"  # a line for each number, to be read in a diff
    units = document.pop("units")
    assert set(units) == set(METRICS)
    assert units["kl"] == {"unit": "nats/token", "better": "lower"}
    assert document == {
        "schema": 1,
        "provenance": PROVENANCE,
        "verdicts": [
            {
                "case": "m/b",
                "status": "REGRESSED",
                "reason": "kl +1 at layers.0.z",
                "unit": "observer/mse",
                "place": "layers.0.z",
                "portable": False,
                "written": False,
                "accepted": "",
                "metrics": {
                    "kl": {"value": 12.5, "se": 2.0},
                    "loss_rise": {"value": None, "se": None},
                    "accuracy": {"value": 0.5, "se": 0.0},
                },
                "stored": {"kl": {"value": 0.5, "se": 0.01}},
                "comparisons": {
                    "accuracy": {
                        "difference": 0.0,
                        "standard_error": 0.0,
                        "p_value": 1.0,
                        "detectable": 0.1,
                        "floor": 0.0,
                        "margin": 0.0,
                        "significant": False,
                    },
                    "kl": {
                        "difference": 0.0012,
                        "standard_error": 0.0003,
                        "p_value": 0.004,
                        "detectable": 0.00456,
                        "floor": 1e-4,
                        "margin": 2e-4,
                        "significant": True,
                    },
                },
            }
        ],
    }


def test_digits_stand_as_they_were_written_also_where_a_column_has_numbers_alone():
    far = [Verdict("m/a", Status.SAME, metrics={"kl": Measurement(12.345, math.nan)})]
    for text in (terminal(far), REPORTS["md"](far, PROVENANCE)):
        assert "1.23e+04" in text


def test_of_two_tables_with_equal_verdicts_prose_comes_first():
    recall, prose = (
        Verdict(name, Status.SAME, metrics={metric: Measurement(0.5, 0.1)})
        for name, metric in (("a", "recall_associative"), ("b", "kl"))
    )
    assert [cells[0][0] for _, cells in tables([recall, prose])] == ["b", "a"]


def test_json_refuses_what_is_no_json():
    with pytest.raises(ValueError, match="not JSON compliant"):
        REPORTS["json"]([REGRESSED], {"seconds": math.nan})


def test_every_column_in_its_unit():
    shown = {
        "loss_rise": ("loss rise\nmnat/token", "2"), "kl": ("KL\nmnat/token", "2"), "kl_p99": ("KL 99 %\nmnat", "2"),
        "decode_kl": ("decode KL\nmnat/token", "2"), "agreement": ("top-1\nagree %", "0.2"),
        "accuracy": ("accuracy\n%", "0.2"), "recall_associative": ("recall\nby key %", "0.2"),
        "recall_induction": ("recall\ninduct %", "0.2"), "recall_selective_copy": ("recall\ncopy %", "0.2"),
        "state_error": ("long state\nerror", "0.002"), "worst_local_sqnr": ("worst\nSQNR dB", "0.002"),
        "most_clipped": ("most\nclipped %", "0.2"),
    }  # fmt: skip
    all_equal = {name: Measurement(0.002, math.nan) for name in METRICS}
    ((headings, cells),) = tables([Verdict("m/a", Status.SAME, metrics=all_equal)])
    more = [m.name for m in METRICS.values() if m.column and m.name not in shown]
    assert not more, f"a column of {more[0]} is new: write its heading, and 0.002 as it shows it, into `shown` above"
    assert headings == ["case", "verdict", *(heading for heading, _ in shown.values())]
    assert cells == [["m/a", "SAME", *(cell for _, cell in shown.values())]]
