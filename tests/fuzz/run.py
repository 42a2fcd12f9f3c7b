"""Feeds broken input to every reader, by the hundred thousand: one line each, or something that works.

    tox run -e fuzz                                     500,000 mutants of all kinds
    tox run -e fuzz -- --n 20000 --kind spec --kind mix
    tox run -e fuzz -- --n 500000 --shard 1/4           every fourth, here and on three other machines
    tox run -e fuzz -- --kind argv --only 1234          one again, its traceback in full
    tox run -e fuzz -- --n 0 --cli 100 --forked 900     command lines, each in an interpreter of its own; in a fork

A mutant is its kind, the seed and its number: a finding says all three. Exit 1 where there is one: a traceback, a
message of more than a line, a process that died, 20 seconds, 2 GiB, something written elsewhere, or a wrong acceptance.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from pathlib import Path

os.environ |= {
    "OMP_NUM_THREADS": "1",
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "PYTHONDONTWRITEBYTECODE": "1",
}
sys.dont_write_bytecode = True

import torch  # noqa: E402 (its threads are counted on import)
from command_lines import forked, own, run  # noqa: E402
from engine import Kind, Told, in_children, inside  # noqa: E402
from kinds import KINDS  # noqa: E402

WEIGHTS = {
    "argv": 0.3,
    "baseline": 3,
    "baseline-signed": 0.5,
    "calibration-signed": 0.7,
    "checkpoint": 0.7,
    "checkpoint-mamba2": 0.3,
    "corpus": 3,
    "evidence": 3,
    "evidence-signed": 0.5,
    "latency": 2,
    "mix": 4,
    "places": 2,
    "probes": 2,
    "spec": 8,
}
"""Of a kind among all: the quick ones are more; 1 where nothing stands."""


def shares(names: list[str], n: int) -> dict[str, int]:
    """Kind -> how many of n."""
    whole = sum(WEIGHTS.get(name, 1) for name in names)
    return {name: round(n * WEIGHTS.get(name, 1) / whole) for name in names}


def again(kind: Kind, seed: int, number: int) -> None:
    with tempfile.TemporaryDirectory(prefix="fuzz-") as name:
        start = kind.make(Path(name))
        with inside(Path(name)):
            try:
                print(kind.one(start, random.Random(f"{seed}/{kind.name}/{number}")))
            except BaseException:
                traceback.print_exc()


def report(found: list[Told], seconds: dict[str, float]) -> int:
    columns = ["refused", "accepted", "left out", "traceback", "wrong acceptance", "hang", "memory", "crash"]
    print("\n| kind | mutants | " + " | ".join(columns) + " | one ms |\n|---|" + "--:|" * (len(columns) + 2))
    whole: Counter[str] = Counter()
    for told in found:
        n = sum(told.outcomes.values())
        whole += told.outcomes
        print(
            f"| {told.kind} | {n} | "
            + " | ".join(str(told.outcomes[c]) for c in columns)
            + f" | {1e3 * seconds[told.kind] / max(n, 1):.2f} |"
        )
    print(f"| all | {sum(whole.values())} | " + " | ".join(str(whole[c]) for c in columns) + " | |")
    return int(any(told.findings for told in found))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=500_000, help="mutants of all kinds asked for (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kind", action="append", choices=sorted(KINDS), help="repeatable; default: all")
    parser.add_argument(
        "--first", type=int, default=0, metavar="N", help="number of each kind's first mutant: to go on"
    )
    parser.add_argument("--shard", default="1/1", metavar="I/M", help="every M-th mutant from the I-th on")
    parser.add_argument("--only", type=int, metavar="N", help="this one, here, with its traceback")
    parser.add_argument(
        "--cli", type=int, default=0, metavar="N", help="command lines, each in an interpreter of its own"
    )
    parser.add_argument(
        "--forked", type=int, default=0, metavar="N", help="more of them, each in a fork that has imported everything"
    )
    parser.add_argument("--minutes", type=float, default=1e9, help="stop then, and report what was run")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that folders go
    names = asked.kind or sorted(KINDS)
    if asked.only is not None:
        again(KINDS[names[0]], asked.seed, asked.only)
        return 0
    shard, of = map(int, asked.shard.split("/"))
    began, found, seconds = time.time(), [], {}

    def late() -> bool:
        return time.time() - began > 60 * asked.minutes

    for name, count in shares(names, asked.n).items():
        if not count:
            continue
        start = time.time()
        told = in_children(
            KINDS[name],
            asked.seed,
            range(asked.first + shard - 1, asked.first + count, of),
            late,
        )
        seconds[name] = time.time() - start
        found.append(told)
        print(f"{name}: {sum(told.outcomes.values())} in {seconds[name]:.0f} s, {dict(told.outcomes)}", flush=True)
        for number, what in told.findings[:20]:
            print(f"  --kind {name} --seed {asked.seed} --only {number}: {what}", flush=True)
    number = asked.first
    for name, way, count in (("cli, own", own, asked.cli), ("cli, forked", forked, asked.forked)):
        if not count:
            continue
        start = time.time()
        told, number = run(name, way, asked.seed, number, count, late)
        seconds[name] = time.time() - start
        found.append(told)
        for which, what in told.findings[:20]:
            print(f"  {name}, --first {which}: {what}", flush=True)
    return report(found, seconds)


if __name__ == "__main__":
    sys.exit(main())
