"""A few kills of each writer, in seconds; `tox run -e kills` has thousands, and kills real runs of pytest."""

from __future__ import annotations

import importlib.util
import json
import os
import resource
import sys
from pathlib import Path
from types import ModuleType

import pytest

from quambench.core.errors import NotWritten


def module(file: str, name: str) -> ModuleType:
    """A file beside this one: a script's folder is first on its path, a test's is not."""
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(file))
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


WRITERS = module("writers.py", "writers").WRITERS
run = module("run.py", "kills_run")  # other scripts of tests have that name too


@pytest.mark.parametrize("name", WRITERS)
def test_a_killed_writer_leaves_what_was_there_or_what_was_to_come(name):
    kind, kills, old, new, *faults, _ = run.kill_one(name, 10, seed=1)
    assert (kind, kills, old + new) == (name, 10, 10)
    assert faults == [0, 0, 0]


@pytest.mark.parametrize("name", [name for name in WRITERS if "init" not in name])  # that is a command: situations.py
def test_what_the_system_refuses_of_any_writer_is_one_line_and_costs_nothing_that_was_there(name, tmp_path):
    """As on a full disk, which takes rights to have: no file may grow beyond a few bytes."""
    writer, told, into = WRITERS[name], *os.pipe()
    writer.write(tmp_path, 1)

    def refused():
        resource.setrlimit(resource.RLIMIT_FSIZE, (16, resource.RLIM_INFINITY))
        try:
            writer.write(tmp_path, 2)
        except NotWritten as error:
            os.write(into, str(error).encode())

    assert run.ended(run.forked(refused)) == 0
    os.close(into)
    with os.fdopen(told) as reader:
        said = reader.read()
    assert said.count("\n") == 0
    assert "File too large" in said
    assert str(tmp_path) in said
    assert writer.read(tmp_path) == 1
    assert run.left_over(writer, tmp_path) == 0


@pytest.mark.parametrize("n_writers", [2, 4])
def test_writers_at_once_lose_nothing(n_writers):
    assert run.at_once(n_writers, 5) == [f"{n_writers} writers at once", 5, 0, 0, 0]


class Careless:
    """A writer as it must not be: two files one after the other, each in place, and something left beside them."""

    @staticmethod
    def write(folder: Path, n: int) -> None:
        for name in ("a", "b"):
            text = json.dumps([n] * 200_000)
            (folder / name).write_text(text[: len(text) // 2])
            (folder / name).write_text(text)
        (folder / f"{n}.partial").touch()

    @staticmethod
    def read(folder: Path) -> int:
        a, b = (json.loads((folder / name).read_text())[0] for name in ("a", "b"))
        assert a == b, "a mixture"
        return a


def test_a_careless_writer_is_found_out(monkeypatch):
    writer = run.Writer(Careless.write, Careless.read, lambda folder: {"a", "b"})
    monkeypatch.setitem(WRITERS, "careless", writer)
    _, _, _, _, unreadable, _, left, _ = run.kill_one("careless", 30, seed=1)
    assert unreadable > 0
    assert left > 0
