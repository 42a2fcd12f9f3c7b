"""Options of the commands: none is dead, and of those that contradict each other one is refused, before any work."""

from __future__ import annotations

import argparse
import ast
import inspect
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import pytest

from quambench.cli.main import COMMANDS, main
from quambench.cli.options import note, show, write_each
from quambench.core.errors import NotWritten

BESIDE = {"eval": ["quambench.cli.eval_tasks"]}  # modules that read a command's options too


def actions(parser: argparse.ArgumentParser):
    """Every option and argument, those of subcommands too."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            yield action.dest
            for sub in action.choices.values():
                yield from actions(sub)
        elif action.dest != "help":
            yield action.dest


def read_by(module) -> set[str]:
    """Names that a module's functions take from their options, `options.name`."""
    found = set()
    for node in ast.walk(ast.parse(inspect.getsource(module))):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "options":
            found.add(node.attr)
    return found


@pytest.mark.parametrize("name", COMMANDS)
def test_no_option_is_dead(name):
    add, run = COMMANDS[name].load(name)
    parser = argparse.ArgumentParser()
    add(parser)
    modules = [inspect.getmodule(run), *map(import_module, BESIDE.get(name, []))]
    read = set().union(*map(read_by, modules))
    # Only a way out: quamba is the one format that there is, and says so in the file itself.
    unread = set(actions(parser)) - read - ({"format"} if name in ("export", "import") else set())
    assert not unread


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (
            "eval mamba2-tiny --calibration d --observer mse",
            "--calibration and --observer both say where scales come from",
        ),
        ("eval mamba2-tiny --observer mse/tasks=a+b:3", "eval asks tasks by --task alone: write --task a,b"),
        ("eval mamba-recall --corpus tests", "mamba-recall reads no texts, its sequences are made: leave --corpus out"),
        ("calibrate mamba-recall --corpus tests", "leave --corpus out"),
        ("sensitivity mamba-recall --corpus tests", "leave --corpus out"),
        ("compare --against HEAD --model mamba-recall --corpus tests", "leave --corpus out"),
        ("selftest --model mamba-recall --model mamba2-recall --corpus tests", "leave --corpus out"),
        ("compare --against HEAD --full --observer mse/quick", "both say how much is measured"),
        ("compare --against HEAD --observer mse/tasks=a", "compare asks no tasks"),
        ("sensitivity mamba2-tiny --observer percentile/gptq/w4a8", "gptq changes nothing here"),
        ("sensitivity mamba2-tiny --observer percentile/w4a8", "w4a8 changes nothing here"),
        ("sensitivity mamba2-tiny --observer percentile/w8a8-float_ssm_state", "float_ssm_state changes nothing here"),
        ("sensitivity mamba2-tiny --observer percentile/quick", "quick or full changes nothing here"),
        ("bench gate --shape mamba2-130m", "gate drills rows of its own: leave --shape out"),
        ("selftest --list --model mamba2-tiny", "--list names the faults and runs nothing: leave --model out"),
        ("selftest --list --error-rates 5", "leave --error-rates out"),
        ("selftest --list --no-clean", "leave --no-clean out"),
        (
            "selftest --error-rates 5 --jobs 2",
            "--error-rates simulates rows, and plants and measures nothing: leave --jobs",
        ),
        ("selftest --error-rates --corpus tests", "leave --corpus out"),
    ],
)
def test_what_contradicts_is_one_line_before_any_work(arguments, says, capsys, monkeypatch):
    for work in ("eval.load_checkpoint", "calibrate.load_checkpoint", "sensitivity.load_checkpoint", "compare.compare",
                 "selftest.selftest", "selftest.error_rates", "bench.drill"):  # fmt: skip
        monkeypatch.setattr(f"quambench.cli.{work}", lambda *_, **__: pytest.fail("the work was begun"))
    assert main(arguments.split()) == 2
    captured = capsys.readouterr()
    assert says in captured.err
    assert captured.err.count("\n") == 1
    assert not captured.out


def test_what_may_stand_together_does(capsys):
    assert main(["selftest", "--list", "--json"]) == 0
    assert '"fault"' in capsys.readouterr().out


def test_a_word_that_nobody_knows_is_one_line(capsys):
    for words in (["list", "observers", "a\x1b[31m\nb"], ["list", "sites", "--a\x1b[31m\nb"]):
        with pytest.raises(SystemExit) as stopped:
            main(words)
        assert stopped.value.code == 2
        assert r"unrecognized arguments: " in (last := capsys.readouterr().err.splitlines()[-1])
        assert last.endswith(r"a\x1b[31m\nb")


def test_a_report_with_a_name_of_control_characters_is_told_on_one_line(capsys):
    def fails(path):
        raise NotWritten(f"{path} cannot be written")

    write_each([Path("a\x1b[31m\nb")], lambda path: None)
    assert capsys.readouterr().out == "report: a\\x1b[31m\\nb\n"
    with pytest.raises(NotWritten):
        write_each([Path("x"), Path("a\x1b[31m\nb")], fails)
    assert capsys.readouterr().err == "quambench: a\\x1b[31m\\nb cannot be written\n"


def test_a_note_is_one_line(capsys):
    note("a folder 'a\x1b[31m\nb' is left out")
    assert capsys.readouterr().err == "a folder 'a\\x1b[31m\\nb' is left out\n"


@pytest.mark.parametrize("error", [BrokenPipeError, OSError, KeyboardInterrupt])
def test_what_cannot_be_shown_is_written_all_the_same(monkeypatch, error):
    def gone(text):
        raise error

    monkeypatch.setattr("sys.stdout", SimpleNamespace(write=gone))
    kept = []
    with pytest.raises(error):
        show("a table", lambda: kept.append(1))
    assert kept == [1]
