"""Stored results: read back equal, refused when harmed, never half written."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import hashlib
import json
import os
import re
import shutil
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load, save

from quambench.core.errors import BadArtefact, NewerSchema, NotWritten
from quambench.gate import baselines
from quambench.gate.baselines import BaselineStore, read_baseline, remove_baseline, write_baseline
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
            raise OSError(errno.ENOSPC, "No space left on device")
        return replace(*arguments)

    monkeypatch.setattr(os, "replace", failing)
    with pytest.raises(NotWritten, match=r"m\..*: No space left on device; the disk is full: free some space"):
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


def plain(x):
    """Everything in it, arrays with their dtypes, such that NaN is equal to NaN."""
    if isinstance(x, torch.Tensor):
        return f"{x.dtype} {x.tolist()}"
    if dataclasses.is_dataclass(x):
        return {field.name: plain(getattr(x, field.name)) for field in dataclasses.fields(x)}
    return {name: plain(value) for name, value in x.items()} if isinstance(x, Mapping) else repr(x)


def full(record):
    """With all that only some records have."""
    rest = {"prefill.kl": torch.ones(5, dtype=torch.float64), "items.correct": torch.zeros(7, dtype=torch.uint8)}
    return replace(record, accepted="faster by half", rest=rest, rest_digest="ab12")


@pytest.mark.parametrize("has_all", [False, True])
def test_every_field_reads_back_to_the_last_bit(path, record, has_all):
    stored = full(record) if has_all else record
    write_baseline(path, {record.case_id: stored})
    (found,) = read_baseline(path).values()
    assert plain(found) == plain(stored)
    assert list(found.artefacts.scales) == list(stored.artefacts.scales)
    assert ('"accepted"' in path.read_text()) == has_all


def test_a_stored_metric_that_no_code_knows_is_told(path, record):
    metrics = dict(record.metrics) | {"accuracy_of_old": Measurement(0.5, 0.25)}
    write_baseline(path, {record.case_id: replace(record, metrics=metrics)})
    (found,) = read_baseline(path).values()
    assert found.gone == ("accuracy_of_old",)
    assert plain(found.metrics) == plain(record.metrics)


def test_the_files_form_is_what_other_versions_read(path, record):
    """Names and dtypes of the arrays, the JSON's order and indentation; numbers that there are none of are null."""
    write_baseline(path, {record.case_id: full(record)})
    arrays = load(evidence_of(path).read_bytes())
    expected = dict(record.evidence) | {f"noise.{rows}": array for rows, array in record.noise.sites.items()}
    expected |= {f"rest.{name}": array for name, array in full(record).rest.items()}
    expected |= {
        "artefacts.scales": torch.tensor([0.01 * (i + 1) for i in range(5)]),
        "artefacts.sizes": torch.ones(5, dtype=torch.int32),
    }
    assert plain(arrays) == {f"m/running_max/1x1//{name}": plain(array) for name, array in expected.items()}
    text, digest = path.read_text(), hashlib.sha256(evidence_of(path).read_bytes()).hexdigest()
    of_cases = hashlib.sha256(json.dumps(json.loads(text)["cases"], sort_keys=True).encode()).hexdigest()
    assert text.startswith(
        f'{{\n "schema": 3,\n "evidence": {{\n  "file": "m.{digest[:12]}.safetensors",\n  "sha256": "{digest}"\n }},\n'
        f' "sha256": "{of_cases}",\n "cases": {{\n  "m/running_max/1x1": {{\n   "protocol": "'
    )
    assert text.endswith('"layers.1.x_proj:input"],\n   "accepted": "faster by half"\n  }\n }\n}\n')
    assert '"most_clipped": [0.0, null]' in text
    assert "NaN" not in text


def test_a_file_whose_keys_another_tool_has_sorted_is_the_same(path, stored):
    before = read_baseline(path)
    path.write_text(json.dumps(json.loads(path.read_text()), sort_keys=True))
    assert plain(read_baseline(path)) == plain(before)


def harm(path: Path, change) -> None:
    """A change of the document, with its hash as if it had been written so."""
    document = json.loads(path.read_text())
    change(document, *document["cases"].values())
    document["sha256"] = hashlib.sha256(json.dumps(document["cases"], sort_keys=True).encode()).hexdigest()
    path.write_text(json.dumps(document))


BY_HAND = "ValueError: m/running_max/1x1: settings or artefacts were edited by hand"
REFUSED = {
    "schema 0": (lambda d, c: d.update(schema=0), "ValueError: no schema is numbered 0"),
    "an older schema": (
        lambda d, c: d.update(schema=2),
        "ValueError: m/running_max/1x1 has what schema 3 brought, and the file says schema 2",
    ),
    "schema as text": (lambda d, c: d.update(schema="3"), "ValueError: no schema is numbered '3'"),
    "schema true": (lambda d, c: d.update(schema=True), "ValueError: no schema is numbered True"),
    "200 letters": (
        lambda d, c: d.update(schema="x" * 164),
        f"ValueError: no schema is numbered '{'x' * 164}'",
    ),
    "201 letters": (
        lambda d, c: d.update(schema="x" * 165),
        f"ValueError: no schema is numbered '{'x' * 165}...",
    ),
    "202 letters": (
        lambda d, c: d.update(schema="x" * 166),
        f"ValueError: no schema is numbered '{'x' * 165}...",
    ),
    "evidence elsewhere": (
        lambda d, c: d["evidence"].update(file="../m.safetensors"),
        "ValueError: the evidence must stand beside it (got '../m.safetensors')",
    ),
    "no floor": (
        lambda d, c: c["noise"]["means"].update(kl=None),
        "ValueError: the noise of kl must be a number of 0 or more (got nan)",
    ),
    "floor below 0": (
        lambda d, c: c["noise"]["units"].update(kl=-1),
        "ValueError: the noise of kl must be a number of 0 or more (got -1.0)",
    ),
    "floor without end": (
        lambda d, c: c["noise"]["arrays"].update({"prefill.kl": float("inf")}),
        "ValueError: the noise of prefill.kl must be a number of 0 or more (got inf)",
    ),
    "settings": (lambda d, c: c["settings"].update(act_bits=4), BY_HAND),
    "artefacts": (lambda d, c: c.update(artefacts="0" * 16), BY_HAND),
    "a scale too few": (lambda d, c: c["scales"].pop(), "ValueError: zip() argument 2 is longer than argument 1"),
    "a third number": (
        lambda d, c: c["metrics"].update(kl=[1, 2, 3]),
        "ValueError: the metric kl must be a number and its standard error (got [1, 2, 3])",
    ),
    "no cases": (lambda d, c: d.update(cases=[]), "AttributeError: 'list' object has no attribute 'items'"),
}
RESTORE = "git checkout . restores it, --qb-update records it anew"


@pytest.fixture
def here(tmp_path, monkeypatch, record) -> Path:
    """A baseline in the working directory, so that a message about it is the same on every machine."""
    monkeypatch.chdir(tmp_path)
    settings = record.settings | {"metric.kl": METRICS["kl"].version}
    write_baseline(Path("m.json"), {record.case_id: replace(record, settings=settings)})
    return Path("m.json")


@pytest.mark.parametrize(("change", "why"), REFUSED.values(), ids=REFUSED)
def test_a_refusal_says_which_file_and_why_and_what_to_type(here, change, why):
    harm(here, change)
    with pytest.raises(BadArtefact) as caught:
        read_baseline(here)
    assert str(caught.value) == f"m.json is not a readable baseline ({why}); {RESTORE}"


def a_folder_in_its_place(path, evidence):
    path.unlink()
    path.mkdir()
    return f"m.json is not a readable baseline (it is a folder, not a file); {RESTORE}"


def no_evidence(path, evidence):
    evidence.unlink()
    return f"m.json: {evidence.name} is missing; {RESTORE}"


def other_evidence(path, evidence):
    evidence.write_bytes(save({name: array + 1 for name, array in load(evidence.read_bytes()).items()}))
    return f"{evidence.name} is not the evidence that m.json names; {RESTORE}"


def another_provenance(path, evidence):
    path.write_text(path.read_text().replace('"cpu-test"', '"cpu-best"'))
    return f"m.json was edited by hand; {RESTORE}"


def another_provenance_of_schema_2(path, evidence):
    harm(path, lambda document, case: (document.update(schema=2), case["noise"].pop("arrays"), case.pop("rest")))
    assert read_baseline(path)
    return another_provenance(path, evidence)


def schema_4(path, evidence):
    harm(path, lambda document, case: document.update(schema=SCHEMA + 1))
    return (
        f"m.json has schema {SCHEMA + 1}, this version of quambench reads 1 to {SCHEMA}:"
        " update quambench, or restore the file from git"
    )


@pytest.mark.parametrize(
    "spoil",
    [
        a_folder_in_its_place,
        no_evidence,
        other_evidence,
        another_provenance,
        another_provenance_of_schema_2,
        schema_4,
    ],
)
def test_a_file_that_is_not_what_was_written_is_refused_in_whole_words(here, spoil):
    message = spoil(here, evidence_of(here))
    with pytest.raises(BadArtefact) as caught:
        read_baseline(here)
    assert str(caught.value) == message


def test_a_reviewer_reads_what_went_wrong_in_the_evidence_itself(here):
    evidence_of(here).write_bytes(b"?")
    harm(here, lambda document, case: document["evidence"].update(sha256=hashlib.sha256(b"?").hexdigest()))
    with pytest.raises(BadArtefact, match=r"^m\.json is not a readable baseline \(SafetensorError: .*\); git checkout"):
        read_baseline(here)


NAN = float("nan")


@pytest.mark.parametrize(
    ("was", "now", "told"),
    [
        (1.0000000044, 1.0000000044, False),  # of which nine digits are stored
        (1.0, 1 + 5e-7, False),
        (1.0, 1 + 2e-6, True),
        (0.0, 5e-13, False),
        (0.0, 5e-12, True),
        (1.0, NAN, True),
        (NAN, 1.0, True),
        (NAN, NAN, False),
    ],
)
def test_a_number_is_restated_from_its_sixth_digit_on_or_where_one_is_none(here, record, monkeypatch, was, now, told):
    stored = {"value": Measurement(was, 0.5), "error": Measurement(0.5, was)}
    today = {"value": Measurement(now, 0.5), "error": Measurement(0.5, now)}
    for which in ("value", "error"):
        old = replace(record, metrics=dict(record.metrics) | {"kl": stored[which]})
        write_baseline(here, {record.case_id: replace(old, settings=record.settings | {"metric.kl": 1})})
        changed = replace(METRICS["kl"], measure=lambda e, which=which: today[which])
        monkeypatch.setitem(METRICS._entries, "kl", changed)
        (found,) = read_baseline(here).values()
        assert (list(found.restated) == ["kl"]) == told
        if told and which == "error":
            both = (was, now)
            assert found.restated["kl"] == tuple("0.5" if x != x else f"0.5 ± {x:.3g}" for x in both)


def test_a_metric_of_another_version_is_as_stored_also_where_it_has_no_error(here, record, monkeypatch):
    name = "most_clipped"
    old = replace(record, metrics=dict(record.metrics) | {name: Measurement(0.25, NAN)})
    write_baseline(here, {record.case_id: replace(old, settings=record.settings | {f"metric.{name}": 1})})
    monkeypatch.setitem(METRICS._entries, name, replace(METRICS[name], version=2))
    (found,) = read_baseline(here).values()
    assert plain(found.metrics[name]) == {"value": "0.25", "standard_error": "nan"}


# --- the store ------------------------------------------------------------------------------------------


@pytest.fixture
def store(tmp_path, stored) -> BaselineStore:
    """Beside what is stored: a later model of another class, and an earlier suite."""
    for name in ("alpha/cpu-x86_64-amx-avx512/m.json", "alpha/gpu/a.json", "Beta/gpu/n.json"):
        write_baseline(tmp_path / name, {"m/third/1x1": replace(stored["m/other/1x1"], case_id="m/third/1x1")})
    return BaselineStore(tmp_path, "cpu-x86_64-avx512")


def test_suites_and_models_are_those_that_any_class_has_stored(store):
    assert store.suites() == ["Beta", "alpha"]
    assert store.models("alpha") == ["a", "m"]
    assert store.models("none") == []


def test_a_classs_own_file_comes_first_even_where_anothers_name_has_all_its_words(store, path):
    assert store.files("alpha", "m") == [path, path.parent.with_name("cpu-x86_64-amx-avx512") / "m.json"]
    assert not store.find("alpha", "m").portable


@pytest.mark.parametrize(
    "spoil",
    [
        lambda blob: blob,
        lambda blob: blob[:-8] + b"\xff\xfe",  # cut, and no text
        lambda blob: blob.replace(b"\n", b"\r\n"),
    ],
)
def test_the_cases_that_a_file_names_are_known_although_it_cannot_be_read(store, path, spoil):
    path.write_bytes(spoil(path.read_bytes()))
    assert store.named("alpha", "m") == {"m/running_max/1x1", "m/other/1x1"}
    assert store.named("alpha", "a") == set()  # another class's
    assert store.named("Beta", "m") == set()


def test_what_is_written_or_removed_is_not_remembered_as_it_was(store, path, stored, record):
    assert sorted(store.find("alpha", "m").cases) == sorted(stored)
    store.write("alpha", "m", [record], afresh=True)
    assert list(store.find("alpha", "m").cases) == [record.case_id]
    assert store.write("alpha", "m", [stored["m/other/1x1"]]) == (path, [])
    assert store.remove("alpha", "m", ["m/other/1x1"]) == [path]
    assert list(store.find("alpha", "m").cases) == [record.case_id]


def test_a_class_without_the_case_does_not_keep_it_from_being_removed_from_the_next(store, path):
    other = path.parent.with_name("cpu-x86_64-amx-avx512") / "m.json"
    assert store.remove("alpha", "m", ["m/third/1x1"]) == [other]
    assert not other.exists()


def test_removing_what_is_gone_takes_the_evidence_that_it_left(path, stored):
    path.unlink()
    remove_baseline(path)
    assert list(path.parent.iterdir()) == []


def test_a_file_is_whole_on_the_disk_before_it_takes_the_old_ones_name(path, monkeypatch):
    """And what is not yet whole has a name that nothing looks for."""
    seen, fsync, rename = [], os.fsync, os.replace

    def to_the_disk(descriptor):
        found = os.fstat(descriptor)
        seen.append("folder" if stat.S_ISDIR(found.st_mode) else found.st_size)
        fsync(descriptor)

    def renamed(old, new):
        assert old.stat().st_size == seen.pop()
        assert old.parent.name.endswith(".partial")
        rename(old, new)

    monkeypatch.setattr(os, "fsync", to_the_disk)
    monkeypatch.setattr(os, "replace", renamed)
    write_baseline(path, {})
    assert seen == ["folder", "folder"]  # the names too, of the evidence and of the JSON
    assert read_baseline(path) == {}


def test_who_writes_reads_again_what_is_there_by_now(tmp_path, store, path, stored, record):
    """Another run may have stored since this one looked."""
    assert len(store.find("alpha", "m").cases) == 2
    third = replace(record, case_id="m/third/1x1")
    BaselineStore(tmp_path, "cpu-x86_64-avx512").write("alpha", "m", [third])
    store.write("alpha", "m", [replace(record, case_id="m/fourth/1x1")])
    assert sorted(read_baseline(path)) == sorted([*stored, "m/third/1x1", "m/fourth/1x1"])
    store.remove("alpha", "m", ["m/fourth/1x1"])
    assert sorted(read_baseline(path)) == sorted([*stored, "m/third/1x1"])


def test_what_another_run_has_stored_meanwhile_is_not_new(store, path, stored, record):
    fresh = replace(record, accepted="anew")
    third = replace(record, case_id="m/third/1x1")
    assert store.write("alpha", "m", [fresh, third], new_only=True) == (path, [record.case_id])
    assert read_baseline(path)[record.case_id].accepted == ""
    assert "m/third/1x1" in read_baseline(path)
    before = path.read_bytes()
    assert store.write("alpha", "m", [fresh], new_only=True) == (path, [record.case_id])
    assert path.read_bytes() == before


def test_a_reader_beside_a_writer_reads_the_old_pair_or_the_new_one(path, stored, record, monkeypatch):
    """The JSON is read, then the evidence that it names: between the two, somebody may replace both."""
    parsed, turns = baselines._parsed, []

    def late(path, text):
        if len(turns) < 3:
            turns.append(None)
            write_baseline(path, {record.case_id: replace(record, accepted="x" * len(turns))})
            more = replace(
                record, evidence=record.evidence | {"prefill.kl": record.evidence["prefill.kl"] * len(turns)}
            )
            write_baseline(path, {record.case_id: more})
        return parsed(path, text)

    monkeypatch.setattr(baselines, "_parsed", late)
    assert list(read_baseline(path)) == [record.case_id]
    assert len(turns) == 3
    next(path.parent.glob("*.safetensors")).unlink()
    with pytest.raises(BadArtefact, match="is missing"):
        read_baseline(path)


WRITERS = """
import sys
from dataclasses import replace
from pathlib import Path
from quambench.gate.baselines import BaselineStore
root, name, n = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
store = BaselineStore(root, "cpu-x86_64-avx512")
record = next(iter(store.find("alpha", "m").cases.values()))
print("ready", flush=True)
sys.stdin.readline()
for i in range(n):
    store.write("alpha", "m", [replace(record, case_id=f"m/{name}-{i}/1x1")])
"""


@pytest.mark.parametrize("n_writers", [2, 4])
def test_of_writers_at_once_none_loses_what_it_wrote(tmp_path, path, stored, n_writers):
    command = [sys.executable, "-c", WRITERS, str(tmp_path)]
    writers = [
        subprocess.Popen([*command, f"w{w}", "12"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for w in range(n_writers)
    ]
    for writer in writers:
        assert writer.stdout.readline() == "ready\n"
    for writer in writers:
        writer.stdin.write("go\n")
        writer.stdin.flush()
    while any(writer.poll() is None for writer in writers):
        assert len(read_baseline(path)) >= 2  # beside them, whole at any moment
    for writer in writers:
        writer.communicate()
        assert writer.returncode == 0
    expected = {f"m/w{w}-{i}/1x1" for w in range(n_writers) for i in range(12)} | set(stored)
    assert set(read_baseline(path)) == expected
    assert len(list(path.parent.iterdir())) == 2  # the file and its evidence: no lock, no half file


def test_ids_are_known_as_they_are_and_not_as_json_spells_them(store, path, record):
    odd = 'my "модель"/running_max/1x1'
    write_baseline(path, {odd: replace(record, case_id=odd)})
    assert store.named("alpha", "m") == {odd}


def test_a_link_that_somebody_committed_is_not_written_through(path, stored, record, tmp_path):
    mine = tmp_path / "mine.txt"
    mine.write_text("mine")
    for name in (f"{path.name}.partial", f"{path.stem}.json.tmp"):
        (path.parent / name).symlink_to(mine)
    path.unlink()
    path.symlink_to(mine)
    write_baseline(path, {record.case_id: record})
    assert mine.read_text() == "mine"
    assert not path.is_symlink()


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
