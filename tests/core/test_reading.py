"""What is no file, is too large, or is JSON that no reader can take: one line each, and nobody waits."""

from __future__ import annotations

import json
import os
import zipfile
from pathlib import Path

import pytest
import torch

from quambench.calibration.scales import Calibration
from quambench.core.errors import BadArtefact, BadParameter, QuambenchError
from quambench.core.reading import (
    DEEPEST,
    MIB,
    Unreadable,
    check_archive,
    parse_json,
    read_bytes,
    read_json,
    read_pair,
    shown,
)
from quambench.data.corpus import load_corpus
from quambench.gate.baselines import BaselineStore, read_baseline
from quambench.grids.precision import Precision
from quambench.models.checkpoint import load_checkpoint
from quambench.models.weights import TorchFile


def a_pipe(path: Path) -> None:
    os.mkfifo(path)


def a_folder(path: Path) -> None:
    path.mkdir()


def a_loop(path: Path) -> None:
    path.symlink_to(path)


def a_huge_file(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(1 << 40)


NO_FILE = {
    a_pipe: "it is a pipe, not a file",
    a_folder: "it is a folder, not a file",
    a_loop: "Too many levels of symbolic links",
    a_huge_file: "it has 1,048,576 MiB, and at most 512 are read",
}


@pytest.mark.parametrize(("make", "why"), NO_FILE.items(), ids=lambda x: getattr(x, "__name__", ""))
def test_what_is_no_file_of_a_fitting_size_is_said(tmp_path, make, why):
    make(tmp_path / "x")
    with pytest.raises(Unreadable) as caught:
        read_bytes(tmp_path / "x")
    assert caught.value.why == why
    assert str(caught.value) == f"cannot read {tmp_path / 'x'}: {why}"


@pytest.mark.parametrize("name", ["x" * 300, "x/" * 3000, "a\0b", "\ud800"])
def test_a_name_that_no_file_can_have_is_one_short_line(tmp_path, name):
    with pytest.raises(Unreadable) as caught:
        read_bytes(tmp_path / name)
    assert len(str(caught.value)) < 500
    assert str(caught.value).isprintable()


def test_a_file_of_just_the_limit_is_read_whole_and_one_more_byte_is_not(tmp_path):
    (tmp_path / "x").write_bytes(b"a" * 7)
    assert read_bytes(tmp_path / "x", limit=7) == b"a" * 7
    with pytest.raises(Unreadable, match="at most 0 are read"):
        read_bytes(tmp_path / "x", limit=6)


def test_a_limit_is_no_promise_of_memory(tmp_path, monkeypatch):
    """A reader that allocates its limit fails here; what is added while one reads is read too."""
    (tmp_path / "x").write_bytes(b"a" * 7)
    assert read_bytes(tmp_path / "x", limit=1 << 60) == b"a" * 7
    real = os.fstat
    monkeypatch.setattr(os, "fstat", lambda fd: os.stat_result((*real(fd)[:6], 3, *real(fd)[7:10])))  # of before
    assert read_bytes(tmp_path / "x", limit=1 << 60) == b"a" * 7
    assert read_bytes(tmp_path / "x", limit=7) == b"a" * 7
    monkeypatch.setattr("quambench.core.reading.check_file", lambda path, limit: None)
    with pytest.raises(Unreadable, match="MiB that are read"):
        read_bytes(tmp_path / "x", limit=6)


def nested(depth: int) -> bytes:
    return b"[" * depth + b"]" * depth


JSON = {
    b"{'a': 1}": "it is not JSON",
    b"\xff": "it is not JSON",
    b'{"a": 1, "a": 2}': "the key 'a' stands twice in one object",
    b'{"a": {"b": 1, "c": 2, "b": 1}}': "the key 'b' stands twice in one object",
    b"1" * 5000: "a number of 5000 digits",
    b"[" + b"1" * 401 + b"]": "a number of 401 digits",
    rb'"\ud800"': "half a surrogate pair",
    nested(DEEPEST + 1): f"more than {DEEPEST} deep",
    nested(900): f"more than {DEEPEST} deep",
    nested(200_000): f"more than {DEEPEST} deep",
    b'{"a":' * 3000 + b"1" + b"}" * 3000: f"more than {DEEPEST} deep",
}


@pytest.mark.parametrize(("content", "why"), JSON.items(), ids=range(len(JSON)))
def test_json_that_readers_would_trip_over_or_take_differently_is_refused(content, why):
    with pytest.raises(Unreadable) as caught:
        parse_json(content, "x.json")
    assert why in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "means"),
    [
        (nested(2), [[]]),
        (b"\xef\xbb\xbf[1]", [1]),
        (b"[" + b"1" * 400 + b"]", [int("1" * 400)]),
        (b'{"digest": "' + b"1" * 5000 + b'"}', {"digest": "1" * 5000}),
        (rb'"\ud83d\ude00"', "😀"),
        (b'[{"a": 1}, {"a": 2}]', [{"a": 1}, {"a": 2}]),
        (b"[Infinity]", [float("inf")]),
    ],
)
def test_json_that_is_whole_is_read(content, means):
    assert parse_json(content, "x.json") == means


def test_json_as_deep_as_may_be_is_read_and_one_deeper_is_not():
    assert parse_json(nested(DEEPEST), "x")
    with pytest.raises(Unreadable):
        parse_json(nested(DEEPEST + 1), "x")


def test_an_archive_that_unpacks_to_more_than_it_is_is_refused(tmp_path):
    packed, plain = tmp_path / "packed.bin", tmp_path / "plain.bin"
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", b"\0" * (64 * MIB))
    with pytest.raises(Unreadable, match="would unpack to 64 MiB"):
        check_archive(packed)
    with pytest.raises(QuambenchError, match="would unpack"):
        TorchFile(packed)
    torch.save({"x": torch.ones(3)}, plain)
    check_archive(plain)


def test_what_is_shown_of_a_name_is_short_and_obeyed_by_no_terminal():
    assert shown("a\x1b[31m\nb") == r"a\x1b[31m\nb"
    assert shown("x" * 301) == "x" * 300 + "..."
    assert shown(Path("ü/± ✓")) == "ü/± ✓"


def test_an_errors_message_is_one_line_whatever_a_name_holds():
    assert str(BadParameter("a\nb\x1b[0m\ud800 ±")) == r"a\nb\x1b[0m\ud800 ±"
    long = str(BadParameter(f"what {'x' * 10_000} to do"))
    assert len(long) < 2100
    assert (long[:5], long[-6:]) == ("what ", " to do")


READERS = {
    "baseline": read_baseline,
    "calibration": lambda path: Calibration.load(path.parent),
    "checkpoint": lambda path: load_checkpoint(str(path.parent)),
    "corpus": lambda path: load_corpus(path.parent),
    "jsonl": lambda path: load_corpus(path),
    "mix": lambda path: Precision.parse(f"mix[{path}]"),
}
NAMES = {
    "calibration": "calibration.json",
    "checkpoint": "config.json",
    "corpus": "a.txt",
    "jsonl": "a.jsonl",
    "mix": "m.json",
}


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("make", NO_FILE, ids=lambda x: x.__name__)
def test_every_reader_refuses_what_is_no_file(tmp_path, reader, make):
    path = tmp_path / "in" / NAMES.get(reader, "m.json")
    path.parent.mkdir()
    make(path)
    with pytest.raises(QuambenchError) as caught:
        READERS[reader](path)
    assert "\n" not in str(caught.value)


def test_a_models_name_is_no_pattern(tmp_path):
    store = BaselineStore(tmp_path, "cpu")
    for name in ("m", "m[1]"):
        (tmp_path / "s" / "gpu").mkdir(parents=True, exist_ok=True)
        (tmp_path / "s" / "gpu" / f"{name}.json").write_text(json.dumps({}))
    assert [path.name for path in store.files("s", "m[1]")] == ["m[1].json"]
    assert store.files("s", "*") == []
    assert store.files("s", "x" * 300) == []


def test_read_json_says_which_file(tmp_path):
    (tmp_path / "x.json").write_text("{")
    with pytest.raises(Unreadable, match=r"cannot read .*x\.json: it is not JSON"):
        read_json(tmp_path / "x.json")


def test_a_pair_that_changed_meanwhile_is_read_again_and_a_broken_one_is_told():
    firsts = iter([b"old", b"new", b"new"])

    def whole(first):
        if first == b"old":
            raise BadArtefact("the second file is the new one's")
        return first

    assert read_pair(lambda: next(firsts), whole) == b"new"
    with pytest.raises(BadArtefact, match="the second file"):
        read_pair(lambda: b"old", whole)
