"""Pages about options, made from the parsers themselves: they cannot say anything else than the program does."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator
from typing import Any

from quambench.cli.main import COMMANDS
from quambench.pytest_plugin import pytest_addoption

WIDTH = 100  # columns of a usage line


def commands_page() -> str:
    """Return the page of `quambench`, one section per command and one table of its arguments."""
    parts = [
        "# The command line",
        "",
        "This page is made from the parsers of the program itself. `quambench COMMAND --help` prints the same.",
        "",
        "Exit codes: 0 where the command did its work and everything passes, 1 where a verdict fails, 2 where it could",
        "not run, 130 after Ctrl-C, 143 after TERM and 129 after HUP.",
        "",
        "| command | what it is for |",
        "|---|---|",
        *(f"| [`{name}`](#quambench-{name}) | {_cell(command.help)} |" for name, command in COMMANDS.items()),
        "",
    ]
    for name, command in COMMANDS.items():
        parser = argparse.ArgumentParser(prog=f"quambench {name}", formatter_class=_Wide)
        add, _ = command.load(name)
        add(parser)
        parts += [f"## quambench {name}", "", f"{_sentence(command.help)}", "", "Example:", ""]
        parts += ["```sh", command.example, "```", "", *_body(parser, f"quambench {name}", 3)]
    return "\n".join(parts) + "\n"


def pytest_page() -> str:
    """Return the page of the options that the plug-in adds to pytest."""
    recorder = _Recorder()
    pytest_addoption(recorder)  # type: ignore[arg-type]
    parts = [
        "# pytest's options",
        "",
        "The plug-in adds these options to pytest. This page is made from the plug-in itself.",
        "[Reading the gate](gate.md) says what a verdict means and when to store it.",
        "",
        *_table(recorder.rows),
    ]
    return "\n".join(parts) + "\n"


class _Wide(argparse.HelpFormatter):
    def __init__(self, prog: str) -> None:
        super().__init__(prog, width=WIDTH)


class _Recorder:
    """A stand-in for the parser that pytest hands to pytest_addoption."""

    def __init__(self) -> None:
        self.rows: list[tuple[str, str]] = []

    def getgroup(self, *_: Any) -> _Recorder:
        return self

    def addoption(self, name: str, **about: Any) -> None:
        value = "" if about.get("action") == "store_true" else about.get("metavar") or name.strip("-").upper()
        self.rows.append((f"{name} {value}".strip(), about.get("help", "")))


def _body(parser: argparse.ArgumentParser, prog: str, level: int) -> Iterator[str]:
    usage = re.sub(r"^usage: ", "", parser.format_usage()).rstrip()
    yield from ("```text", usage, "```", "")
    inner = [a for a in parser._actions if isinstance(a, argparse._SubParsersAction)]
    rows = [(_name(a), _help(a)) for a in parser._actions if a not in inner and a.dest != "help"]
    if rows:
        yield from _table(rows)
    for action in inner:
        helps = {choice.dest: choice.help or "" for choice in action._choices_actions}
        for name, sub in action.choices.items():
            yield from (f"{'#' * level} {prog} {name}", "")
            if helps.get(name):
                yield from (_sentence(helps[name]), "")
            yield from _body(sub, f"{prog} {name}", level + 1)


def _name(action: argparse.Action) -> str:
    value = action.metavar or (f"{{{','.join(map(str, action.choices))}}}" if action.choices else action.dest.upper())
    if not action.option_strings:
        return str(action.metavar or action.dest)
    takes = "" if action.nargs == 0 else f" {value}"
    return ", ".join(f"{option}{takes}" for option in action.option_strings)


def _help(action: argparse.Action) -> str:
    text = (action.help or "") % {**vars(action), "prog": ""} if action.help else ""
    if action.choices and not action.option_strings:
        text += f"{'; ' if text else ''}one of {', '.join(map(str, action.choices))}"
    if action.required and action.option_strings:
        text += f"{' ' if text else ''}(required)"
    return text


def _table(rows: list[tuple[str, str]]) -> Iterator[str]:
    yield from ("| argument | meaning |", "|---|---|")
    yield from (f"| `{_bars(name)}` | {_cell(text)} |" for name, text in rows)
    yield ""


def _bars(text: str) -> str:
    return text.replace("|", "\\|")


def _cell(text: str) -> str:
    """Return a cell's text as markdown that shows it letter by letter."""
    return re.sub(r"([|*_<>\[\]])", r"\\\1", text)


def _sentence(text: str) -> str:
    return _cell(text[0].upper() + text[1:].rstrip(".") + ".")
