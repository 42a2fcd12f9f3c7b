"""`quambench COMMAND`: finds the command, turns errors into one line.

Exit codes: 0 done (all pass), 1 a verdict fails, 2 could not run, 130 after Ctrl-C, 143 after TERM, 129 after HUP.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib import import_module
from keyword import iskeyword
from typing import NoReturn

import quambench
from quambench.core.errors import QuambenchError
from quambench.core.files import why
from quambench.core.plain_text import plain, print_anywhere
from quambench.core.stopping import as_interrupts, at_once, code_of


@dataclass(frozen=True, slots=True)
class Command:
    """One file of quambench/cli/. Its module is imported only when it is called: torch takes seconds."""

    help: str
    example: str

    def load(self, name: str) -> tuple[Callable[[argparse.ArgumentParser], None], Callable[..., int]]:
        module = import_module(f"quambench.cli.{name}_" if iskeyword(name) else f"quambench.cli.{name}")
        return module.arguments, module.run


COMMANDS = {
    "list": Command("what there is, by name: models, observers, policies and more", "quambench list observers"),
    "calibrate": Command("make the scales of a model and save them", "quambench calibrate mamba2-tiny --out scales/"),
    "quantize": Command("make the INT8 model and save it", "quambench quantize mamba2-tiny --out quantized/"),
    "eval": Command(
        "quantize a model and measure it against its float self",
        'quambench eval mamba2-tiny --observer running_max --observer "percentile[alpha=0.999]"',
    ),
    "export": Command(
        "saved scales as another program's quantizer takes them",
        "quambench export scales/ --format quamba --out quamba.pt",
    ),
    "import": Command(
        "scales from another program as saved scales",
        "quambench import quamba.pt --format quamba --model mamba2-tiny --out scales/",
    ),
    "sensitivity": Command(
        "what each site and each layer costs by itself", "quambench sensitivity mamba2-tiny --observer percentile/w8a6"
    ),
    "compare": Command(
        "this code against another revision of it, without baselines", "quambench compare --against main"
    ),
    "claims": Command("what the user's guide claims, against measurements", "quambench claims --out docs/claims.md"),
    "bench": Command(
        "what kernels and whole models cost, as ratios measured in turn", "quambench bench kernels --shape mamba2-130m"
    ),
    "report": Command("tabulate stored baselines", "quambench report baselines/alpha --format md"),
    "selftest": Command("plant faults, and see whether the gate sees them", "quambench selftest --fault 'q_max 126'"),
    "init": Command(
        "put a repository's own calibration code under the gate",
        "quambench init --observer calib.observer:SlowPercentile",
    ),
    "zoo": Command("train and check the bundled models", "quambench zoo check mamba2-tiny"),
    "completion": Command("print a script that completes commands in a shell", "quambench completion bash"),
}


class _Parser(argparse.ArgumentParser):
    """argparse, whose errors repeat words as they were typed."""

    def error(self, message: str) -> NoReturn:
        super().error(plain(message))


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    print_anywhere()
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        with as_interrupts():
            return _run(arguments)
    except QuambenchError as error:
        _say(str(error))
        return 2
    except KeyboardInterrupt as stopped:
        _say("interrupted; nothing half-written was left behind")
        return code_of(stopped)
    except BrokenPipeError:  # the reader went away, e.g. `quambench list | head`
        _drop_output()
        return 0
    except OSError as error:
        _say(f"{error.filename or 'the output'}: {why(error)}")
        _drop_output()
        return 2


class _Version(argparse.Action):
    """`--version`: the version is looked up where somebody asks for it."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> NoReturn:
        print(f"{parser.prog} {quambench.__version__}", flush=True)
        parser.exit()


def whole_parser() -> argparse.ArgumentParser:
    """The command line with the options of every command, whose modules it imports."""
    return _parser(called=COMMANDS)


def _run(arguments: Sequence[str]) -> int:
    parser = _parser(called=[next((a for a in arguments if not a.startswith("-")), None)])
    options = parser.parse_args(arguments)
    code: int = options.run(options)
    sys.stdout.flush()  # here, where what goes wrong is still told
    return code


def _parser(called: Collection[str | None]) -> argparse.ArgumentParser:
    """The command line, with the options of the commands that are called."""
    parser = _Parser(
        prog="quambench",
        description="Benchmark and regression suite for the INT8 calibration of Mamba and Mamba2 models.",
        epilog="The gate itself runs under pytest: pytest suites/ -k alpha",
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="show the version and exit")
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, command in COMMANDS.items():
        sub = subparsers.add_parser(
            name,
            help=command.help,
            description=f"{command.help[0].upper()}{command.help[1:]}.",
            epilog=f"example: {command.example}",
        )
        if name in called:
            with at_once():
                add, run = command.load(name)
            add(sub)
            sub.set_defaults(run=run)
    return parser


def _drop_output() -> None:
    """What is still in the buffer has nowhere to go, and Python would try once more when it ends."""
    with suppress(OSError, ValueError):
        sys.stdout.flush()
        return
    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _say(message: str) -> None:
    """One line, whatever the message holds; where nobody listens, the exit code says it."""
    with suppress(OSError):
        print(f"quambench: {plain(message)}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
