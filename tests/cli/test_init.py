"""quambench init: what it writes is a suite that runs, and nothing that is there is lost."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from quambench.cli.main import main

OBSERVER = """
import torch

class Mine:
    def __init__(self, n_bits, clip_ratio, sym):
        self.largest = torch.tensor(1e-5)

    def update(self, w):
        self.largest = torch.maximum(self.largest, w.abs().amax())

    def get_quantization_parameters(self):
        return self.largest / 127, torch.zeros(())
"""


def init(*arguments):
    return main(["init", *map(str, arguments)])


@pytest.fixture
def repository(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "calib_of_init.py").write_text(OBSERVER)
    return tmp_path


def test_what_is_written_is_collected(pytester, capsys):
    pytester.makepyfile(calib_of_init=OBSERVER)
    assert init("--observer", "calib_of_init:Mine") == 0
    assert "pytest suites/ --qb-new-only" in capsys.readouterr().out
    assert len((pytester.path / "conftest.py").read_text().splitlines()) == 3
    found = pytester.runpytest_subprocess("suites", "--collect-only", "-q", "-p", "no:cacheprovider")
    assert "test_observer[mamba2-tiny/calib_of_init:Mine/1x1/quick]" in found.stdout.str()
    assert "test_observer[mamba-tiny/percentile/1x1/quick]" in found.stdout.str()


def test_the_root_is_the_folder_whatever_paths_are_given(pytester, capsys):
    """Without an ini file, a word that is a path moves pytest's root, and baselines with it."""
    pytester.makepyfile(calib_of_init=OBSERVER)
    (pytester.path.parent / "texts_of_init").mkdir(exist_ok=True)
    assert init("--observer", "calib_of_init:Mine") == 0
    found = pytester.runpytest_subprocess(
        "suites", "--collect-only", "-p", "no:cacheprovider", "../texts_of_init", "--ignore", "../texts_of_init"
    )
    assert f"rootdir: {pytester.path}" in found.stdout.str()
    assert "configfile: pytest.ini" in found.stdout.str()


@pytest.mark.parametrize(
    ("file", "content", "configures"),
    [
        ("pyproject.toml", "[tool.pytest.ini_options]\n", True),
        ("pyproject.toml", "[project]\nname = 'pytest'\n", False),
        ("tox.ini", "[pytest]\n", True),
        ("tox.ini", "[testenv]\ncommands = pytest\n", False),
        ("setup.cfg", "[tool:pytest]\n", True),
        (".pytest.ini", "", True),
    ],
)
def test_what_configures_pytest_already_is_said_and_left_alone(repository, capsys, file, content, configures):
    (repository / file).write_text(content)
    assert init() == 0
    out = capsys.readouterr().out
    assert (repository / "pytest.ini").exists() == (not configures)
    assert (f"pytest is configured by {file}" in out) == configures
    assert (repository / file).read_text() == content


@pytest.mark.parametrize("link", ["conftest.py", "pytest.ini", "suites", "suites/test_observer.py"])
@pytest.mark.parametrize("there", [True, False])
def test_no_link_is_followed_out_of_the_folder(repository, tmp_path_factory, capsys, link, there):
    outside = tmp_path_factory.mktemp("outside") / "target"
    if there:
        outside.mkdir() if link == "suites" else outside.write_text("theirs\n")
    (repository / link).parent.mkdir(exist_ok=True)
    (repository / link).symlink_to(outside)
    before = sorted(repository.rglob("*"))
    code = init()
    if link == "pytest.ini" and there:  # it configures pytest, and nothing is written to it
        assert (code, outside.read_text()) == (0, "theirs\n")
        return
    assert code == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert sorted(repository.rglob("*")) == before
    assert outside.exists() == there
    assert not outside.is_dir() or not list(outside.iterdir())


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_what_fails_half_way_leaves_nothing(repository, capsys, monkeypatch, error):
    rename = os.replace

    def full(old, new):
        if Path(new).name == "test_observer.py":
            raise error
        rename(old, new)

    monkeypatch.setattr(os, "replace", full)
    assert init() == (2 if isinstance(error, OSError) else 130)
    assert "nothing" in capsys.readouterr().err
    assert sorted(p.name for p in repository.iterdir() if p.name != "__pycache__") == ["calib_of_init.py"]


def test_another_kind_joins_later(repository, capsys):
    (repository / "more_of_init.py").write_text("def calibrate(model, data):\n    return []\n")
    assert init("--observer", "calib_of_init:Mine") == 0
    assert init("--calibration", "more_of_init:calibrate") == 0
    assert sorted(p.name for p in (repository / "suites").iterdir()) == ["test_calibration.py", "test_observer.py"]


def test_a_file_in_the_way_is_one_line_before_anything_is_written(repository, capsys):
    (repository / "suites").write_text("")
    assert init() == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert not (repository / "conftest.py").exists()


def test_nothing_that_is_there_is_replaced(repository, capsys):
    (repository / "conftest.py").write_text("mine = 1\n")
    assert init() == 2
    assert "conftest.py" in capsys.readouterr().err
    assert (repository / "conftest.py").read_text() == "mine = 1\n"
    assert not (repository / "suites").exists()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--observer", "calib_of_init:Nobody"], "no class in calib_of_init named 'Nobody'"),
        (["--grouping", "calib_of_init:Mine"], "must be a function"),
        (["--calibration", "not_there:f"], "cannot be imported"),
        (["calib_of_init.py"], "no folder"),
    ],
)
def test_what_cannot_be_is_one_line_and_writes_nothing(repository, capsys, arguments, says):
    assert init(*arguments) == 2
    error = capsys.readouterr().err
    assert says in error
    assert error.count("\n") == 1
    assert sorted(p.name for p in repository.iterdir() if p.name != "__pycache__") == ["calib_of_init.py"]
