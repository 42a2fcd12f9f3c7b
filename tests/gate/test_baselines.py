"""Stored results: read back equal, refused when harmed, never half written."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from quambench.errors import BadArtefact, NewerSchema
from quambench.gate.baselines import BaselineStore, read_baseline, write_baseline
from quambench.gate.migrations import SCHEMA, STEPS
from quambench.gate.verdicts import Status, judge
from quambench.metrics import METRICS, Measurement


@pytest.fixture
def path(tmp_path):
    return tmp_path / "alpha" / "cpu-x86_64-avx512" / "m.json"


@pytest.fixture
def stored(path, record, change):
    *_, make_record = change
    cases = {record.case_id: record, "m/other/1x1": make_record(1, "m/other/1x1")}
    write_baseline(path, cases)
    return cases


def test_reads_back_equal(path, stored):
    found = read_baseline(path)
    assert sorted(found) == sorted(stored)
    for case_id, record in found.items():
        assert judge(record, stored[case_id], 1).status is Status.SAME
        assert record.artefact_digest == stored[case_id].artefact_digest
        for name, array in stored[case_id].evidence.items():
            assert torch.equal(record.evidence[name], array), name


def test_the_same_cases_give_the_same_bytes_in_any_order(path, stored, tmp_path):
    again = tmp_path / "again" / "m.json"
    write_baseline(again, dict(reversed(stored.items())))
    assert again.read_bytes() == path.read_bytes()
    assert [p.name for p in sorted(again.parent.iterdir())] == [p.name for p in sorted(path.parent.iterdir())]


def test_a_diff_shows_one_line_per_field(path, stored):
    lines = path.read_text().splitlines()
    assert sum('"metrics":' in line for line in lines) == len(stored)
    assert json.loads(path.read_text())["schema"] == SCHEMA


def evidence_of(path: Path) -> Path:
    (found,) = path.parent.glob("*.safetensors")
    return found


@pytest.mark.parametrize("harm", ["json", "truncated", "swapped", "missing", "schema", "edited", "list"])
def test_a_harmed_baseline_is_one_line_that_names_it(path, stored, harm):
    if harm == "json":
        path.write_text(path.read_text()[:-20])
    elif harm == "truncated":
        evidence_of(path).write_bytes(evidence_of(path).read_bytes()[:-1])
    elif harm == "swapped":
        evidence_of(path).write_bytes(b"other")
    elif harm == "missing":
        evidence_of(path).unlink()
    elif harm == "schema":
        path.write_text(path.read_text().replace(f'"schema": {SCHEMA}', '"schema": 99'))
    elif harm == "edited":
        path.write_text(path.read_text().replace('"calib_length": 128', '"calib_length": 512'))
    else:
        path.write_text("[]")
    with pytest.raises(BadArtefact) as caught:
        read_baseline(path)
    assert path.stem in str(caught.value)
    assert "\n" not in str(caught.value)
    assert re.search("git checkout|update quambench", str(caught.value))  # what to type next


def test_writing_keeps_the_cases_that_did_not_run(tmp_path, path, stored, record):
    store = BaselineStore(tmp_path, "cpu-x86_64-avx512")
    store.write("alpha", "m", [record])
    assert sorted(read_baseline(path)) == sorted(stored)
    store.write("alpha", "m", [record], afresh=True)
    assert list(read_baseline(path)) == [record.case_id]


def test_removing_takes_a_case_out_of_every_class_and_a_file_without_cases_goes(tmp_path, path, stored, record):
    other = tmp_path / "alpha" / "cpu-x86_64-avx2" / "m.json"
    write_baseline(other, {record.case_id: record})
    neighbour = path.with_name("m.large.json")  # its evidence begins like m's
    write_baseline(neighbour, {record.case_id: record})
    written = BaselineStore(tmp_path, "cpu-x86_64-avx512").remove("alpha", "m", [record.case_id])
    assert sorted(written) == sorted([path, other])
    assert sorted(read_baseline(path)) == sorted(set(stored) - {record.case_id})
    assert list(other.parent.iterdir()) == []
    assert list(read_baseline(neighbour)) == [record.case_id]


def test_a_class_that_lacks_a_case_leaves_it_to_one_that_has_it(tmp_path, stored, record):
    (missing,) = set(stored) - {record.case_id}
    write_baseline(tmp_path / "alpha" / "cpu-x86_64-avx512" / "m.json", {record.case_id: record})
    write_baseline(tmp_path / "alpha" / "cpu-x86_64-avx2" / "m.json", stored)
    store = BaselineStore(tmp_path, "cpu-x86_64-avx512")
    assert not store.find("alpha", "m", record.case_id).portable
    assert store.find("alpha", "m", missing).portable
    assert store.find("alpha", "m", "unknown") is None


def test_a_newer_schema_is_neither_read_nor_replaced(tmp_path, path, stored, record):
    path.write_text(path.read_text().replace(f'"schema": {SCHEMA}', f'"schema": {SCHEMA + 1}'))
    before = path.read_bytes()
    with pytest.raises(NewerSchema, match="update quambench"):
        BaselineStore(tmp_path, "cpu-x86_64-avx512").write("alpha", "m", [record])
    assert path.read_bytes() == before


def test_a_metric_restated_from_the_same_evidence_is_told(path, record, monkeypatch):
    write_baseline(path, {record.case_id: replace(record, settings=record.settings | {"metric.kl": 1})})
    (before,) = read_baseline(path).values()
    assert before.restated == {}
    value = record.metrics["kl"].value
    monkeypatch.setitem(METRICS._entries, "kl", replace(METRICS["kl"], measure=lambda e: Measurement(2 * value, 0.0)))
    (after,) = read_baseline(path).values()
    assert list(after.restated) == ["kl"]
    assert after.restated["kl"] == (f"{value:.6g} ± {record.metrics['kl'].standard_error:.3g}", f"{2 * value:.6g} ± 0")
    verdict = judge(before, after, 1)
    assert (verdict.status, verdict.place) == (Status.DRIFTED, "kl")
    monkeypatch.setitem(METRICS._entries, "kl", replace(METRICS["kl"], version=2))
    assert next(iter(read_baseline(path).values())).restated == {}  # STALE tells of that


def test_old_evidence_goes_with_the_baseline_it_belonged_to(tmp_path, path, stored, record):
    BaselineStore(tmp_path, "cpu-x86_64-avx512").write("alpha", "m", [record], afresh=True)
    assert len(list(path.parent.iterdir())) == 2


def test_another_class_finds_the_nearest_and_says_so(tmp_path, stored, record):
    for machine in ("cpu-aarch64-default", "cpu-x86_64-default"):
        write_baseline(tmp_path / "alpha" / machine / "m.json", {record.case_id: record})
    found = BaselineStore(tmp_path, "cpu-x86_64-avx2").find("alpha", "m")
    assert found.portable
    assert "x86_64" in found.path.parent.name
    own = BaselineStore(tmp_path, "cpu-x86_64-avx512").find("alpha", "m")
    assert not own.portable
    assert BaselineStore(tmp_path, "cpu-x86_64-avx512").find("alpha", "unknown") is None


WRITER = """
import sys
from pathlib import Path
from quambench.gate.baselines import read_baseline, write_baseline
path = Path(sys.argv[1])
cases = read_baseline(path)
both = [cases, {k: v for k, v in cases.items() if "other" in k}]
print("ready", flush=True)
for turn in range(100_000):
    write_baseline(path, both[turn % 2])
"""


@pytest.mark.skipif(os.name != "posix", reason="SIGKILL is a POSIX signal")
def test_a_write_killed_at_any_moment_leaves_a_whole_baseline(path, stored):
    allowed = [sorted(stored), [k for k in stored if "other" in k]]
    for moment in range(8):
        writer = subprocess.Popen([sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE, text=True)
        assert writer.stdout.readline() == "ready\n"
        time.sleep(0.003 * moment)  # not a deadline: only spreads the kills over the write
        writer.send_signal(signal.SIGKILL)
        writer.wait()
        writer.stdout.close()
        assert sorted(read_baseline(path)) in [sorted(a) for a in allowed]


@pytest.mark.parametrize("call", range(2))
def test_a_failure_at_either_replacement_leaves_the_old_one(path, stored, record, monkeypatch, call):
    before, calls = path.read_bytes(), []
    replace = os.replace

    def failing(*arguments):
        calls.append(arguments)
        if len(calls) == call + 1:
            raise OSError("disk full")
        return replace(*arguments)

    monkeypatch.setattr(os, "replace", failing)
    with pytest.raises(OSError, match="disk full"):
        write_baseline(path, {record.case_id: record})
    assert path.read_bytes() == before
    assert sorted(read_baseline(path)) == sorted(stored)


def test_a_file_of_schema_1_is_read_and_what_it_did_not_measure_is_unknown(tmp_path):
    """tests/gate/schema1 was written by the last version of that schema."""
    shutil.copytree(Path(__file__).parent / "schema1", tmp_path / "old")
    (record,) = read_baseline(tmp_path / "old" / "m.json").values()
    assert record.metrics["kl"].value > 0
    assert record.metrics["kl_p99"].value == pytest.approx(0.1)
    assert "kl_p50" not in record.metrics
    assert record.noise.means == {"kl": 0.001, "accuracy": 0.0}
    states = record.evidence["decode.accumulated"]
    assert [bool(row.isnan().all()) for row in states] == [not site.endswith("ssm_state") for site in record.sites]
    assert judge(record, record, 1).status is Status.SAME
    write_baseline(tmp_path / "new" / "m.json", {record.case_id: record})
    assert json.loads((tmp_path / "new" / "m.json").read_text())["schema"] == SCHEMA


@pytest.mark.parametrize("schema", ["null", "0", '"x"', "[1]", "true", "1.5"])
def test_what_is_no_schema_is_unreadable_and_may_be_replaced(tmp_path, path, stored, record, schema):
    path.write_text(path.read_text().replace(f'"schema": {SCHEMA}', f'"schema": {schema}'))
    with pytest.raises(BadArtefact, match="--qb-update") as caught:
        read_baseline(path)
    assert not isinstance(caught.value, NewerSchema)
    BaselineStore(tmp_path, "cpu-x86_64-avx512").write("alpha", "m", [record], afresh=True)
    assert list(read_baseline(path)) == [record.case_id]


def test_a_metric_of_another_version_is_stale_also_where_its_evidence_is_gone(path, record, monkeypatch):
    def measure(evidence):
        raise KeyError("evidence that only the new version stores")

    settings = record.settings | {"metric.kl": METRICS["kl"].version}
    write_baseline(path, {record.case_id: replace(record, settings=settings)})
    monkeypatch.setitem(METRICS._entries, "kl", replace(METRICS["kl"], version=2, measure=measure))
    (stored,) = read_baseline(path).values()
    assert stored.metrics["kl"].value == pytest.approx(record.metrics["kl"].value, rel=1e-8)
    verdict = judge(replace(record, settings=settings | {"metric.kl": 2}), stored, 1)
    assert verdict.status is Status.STALE
    assert "metric.kl 1 -> 2" in verdict.reason


def test_every_schema_has_its_step():
    assert sorted(STEPS) == list(range(1, SCHEMA))


def test_why_a_worse_result_was_stored_is_kept(path, record):
    write_baseline(path, {record.case_id: replace(record, accepted="faster by half")})
    assert read_baseline(path)[record.case_id].accepted == "faster by half"
    assert '"accepted": "faster by half"' in path.read_text()


def mutations(text: str):
    """A file as a slip of the hand, a bad merge or a broken disk may leave it."""
    places = st.integers(0, len(text))
    cut = st.builds(lambda i, j: text[: min(i, j)] + text[max(i, j) :], places, places)
    insert = st.builds(lambda i, s: text[:i] + s + text[i:], places, st.text(max_size=20))
    values = st.sampled_from(["null", "[]", "{}", "-1", '"x"', "1e999", "NaN", "true", '"../../etc"'])
    numbers = [m.span() for m in re.finditer(r'"[^"]*"|-?\d[\d.e+-]*|null', text)]
    swap = st.builds(lambda span, v: text[: span[0]] + v + text[span[1] :], st.sampled_from(numbers), values)
    anything = st.text(max_size=200)
    return st.one_of(cut, insert, swap, anything)


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(data=st.data())
def test_no_input_gives_a_traceback(path, stored, data):
    whole = path.read_text()
    path.write_text(data.draw(mutations(whole)), encoding="utf-8")
    try:
        message = refusal(path)
    finally:
        path.write_text(whole)
    assert not message or path.stem in message
    assert "\n" not in message


def refusal(path: Path) -> str:
    """What reading a file is refused with; "" when it reads, and then it can be judged."""
    try:
        found = read_baseline(path)
    except BadArtefact as error:
        return str(error)
    assert all(judge(r, r, 1).status is Status.SAME for r in found.values())
    return ""


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(data=st.data())
def test_no_evidence_gives_a_traceback(path, stored, data):
    """Evidence and its hash changed together, so that only the arrays themselves can be refused."""
    whole, blob = path.read_text(), evidence_of(path).read_bytes()
    i = data.draw(st.integers(0, len(blob) - 1))
    harmed = blob[:i] + data.draw(st.binary(max_size=8)) + blob[i + data.draw(st.integers(0, 8)) :]
    file = evidence_of(path)
    file.write_bytes(harmed)
    path.write_text(whole.replace(hashlib.sha256(blob).hexdigest(), hashlib.sha256(harmed).hexdigest()))
    try:
        with contextlib.suppress(BadArtefact):
            read_baseline(path)
    finally:
        file.write_bytes(blob)
        path.write_text(whole)
