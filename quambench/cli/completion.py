"""quambench completion: a script that lets a shell complete commands and options.

The script is plain shell. It knows every option already, so that no Python starts when a user presses Tab.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

from quambench.core.errors import MissingExtra

SHELLS = ("bash", "zsh")


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("shell", choices=SHELLS, help="the shell that reads the script")


def run(options: argparse.Namespace) -> int:
    from quambench.cli.main import whole_parser

    print(script(whole_parser(), options.shell))
    return 0


def script(parser: argparse.ArgumentParser, shell: str) -> str:
    """The completion script of a command line.

    shell    one of SHELLS
    raises   MissingExtra where shtab is missing
    """
    try:
        import shtab
    except ImportError:
        raise MissingExtra("shtab", "completion") from None
    for action in _actions(parser):
        if action.type is Path:
            action.complete = shtab.DIRECTORY if action.metavar == "DIR" else shtab.FILE  # type: ignore[attr-defined]
    return str(shtab.complete(parser, shell=shell))


def _actions(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    for action in parser._actions:
        yield action
        if isinstance(action, argparse._SubParsersAction):
            for sub in action.choices.values():
                yield from _actions(sub)
