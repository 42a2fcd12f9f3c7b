"""`quambench COMMAND`: finds the command, turns errors into one line.

Exit codes: 0 done (all pass), 1 a verdict fails, 2 could not run.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from keyword import iskeyword

from quambench.errors import QuambenchError


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
}


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    parser = argparse.ArgumentParser(
        prog="quambench",
        description="Benchmark and regression suite for the INT8 calibration of Mamba and Mamba2 models.",
        epilog="The gate itself runs under pytest: pytest suites/ -k alpha",
    )
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    called = next((a for a in arguments if not a.startswith("-")), None)
    for name, command in COMMANDS.items():
        sub = subparsers.add_parser(
            name, help=command.help, description=command.help.capitalize() + ".", epilog=f"example: {command.example}"
        )
        if name == called:
            add, run = command.load(name)
            add(sub)
            sub.set_defaults(run=run)
    options = parser.parse_args(arguments)
    try:
        return options.run(options)
    except QuambenchError as error:
        print(f"quambench: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("quambench: interrupted; nothing half-written was left behind", file=sys.stderr)
        return 130
    except BrokenPipeError:
        sys.stderr.close()  # the reader went away, e.g. `quambench list | head`
        return 0


if __name__ == "__main__":
    sys.exit(main())
