"""The plug-in's options: those that contradict each other are refused in one line, whatever else there is."""

from __future__ import annotations

import argparse
import ast
import inspect
from pathlib import Path
from types import SimpleNamespace

import pytest

from quambench import pytest_plugin
from quambench.core.errors import BadParameter
from quambench.plugin import options
from quambench.plugin.options import asked_by, session_of

OUTSIDE = (
    "quambench.gate.record:scale_steps_apart"  # a function of two arguments; what it returns is told when it is called
)


def parsed(*arguments: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    pytest_plugin.pytest_addoption(
        SimpleNamespace(getgroup=lambda name: SimpleNamespace(addoption=parser.add_argument))
    )
    return parser.parse_args(arguments)


def asked(tmp_path: Path, *arguments: str):
    option = parsed(*arguments)
    return asked_by(option, session_of(option, tmp_path))


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--qb-update", "--qb-new-only"], "--qb-update replaces what is stored and --qb-new-only leaves it alone"),
        (["--qb-accept", "agreed"], "give --qb-update with it"),
        (["--qb-accept", ""], "--qb-accept must say why"),
        (["--qb-update", "--qb-accept", " \t"], "--qb-accept must say why"),
        (["--qb-limit", "3"], "--qb-limit is a number of documents of each --qb-task"),
        (["--qb-limit", "0", "--qb-task", "prose_lambada"], "1 or more"),
        (["--qb-limit", "0"], "1 or more"),
        (["--qb-observer", "mse", "--qb-calibration", OUTSIDE], "give one of them"),
        (
            ["--qb-calibration", OUTSIDE, "--qb-precision", "w8a4"],
            "makes scales of symmetric grids of 8 bits (got w8a4)",
        ),
        (["--qb-calibration", OUTSIDE, "--qb-grouping", "channel"], "has one scale per tensor, or groups such as 4x4"),
        (["--qb-model", "mamba-recall", "--qb-corpus", "texts"], "mamba-recall reads no texts"),
        (["--qb-model", "mamba-recall", "--qb-task", "prose_lambada"], "leave --qb-task out"),
    ],
)
def test_what_contradicts_is_one_line(tmp_path, monkeypatch, arguments, says):
    monkeypatch.setattr("quambench.harness.asking.Tasks.check", lambda self, names: None)
    with pytest.raises(BadParameter) as error:
        asked(tmp_path, *arguments)
    assert says in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("storing", ["--qb-update", "--qb-new-only"])
def test_a_reason_is_kept_without_the_space_around_it(tmp_path, storing):
    assert session_of(parsed(storing, "--qb-accept", " agreed\n"), tmp_path).accept == "agreed"


@pytest.mark.parametrize("precision", ["w8a8", "w4a8"])
def test_what_fits_is_taken(tmp_path, precision):
    found = asked(tmp_path, "--qb-calibration", OUTSIDE, "--qb-precision", precision, "--qb-grouping", "4x4")
    assert (found.precision, found.groupings) == (precision, ("4x4",))


def test_no_option_is_dead():
    read = set()
    for module in (options, pytest_plugin):
        for node in ast.walk(ast.parse(inspect.getsource(module))):
            if isinstance(node, ast.Attribute) and node.attr.startswith("qb_"):
                read.add(node.attr)
    assert set(vars(parsed())) == read
