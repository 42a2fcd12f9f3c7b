"""Kills everything that writes, at any moment, and looks whether what was there or what was to come is whole.

    tox run -e kills                            1,000 kills of each writer, 400 rounds of two and four writers at once
    python tests/kills/run.py --n 20            quickly
    python tests/kills/run.py --pytest 300      real runs of `pytest --qb-update`, a tenth of them with -n 2

A child is forked, writes, and is killed (SIGKILL) somewhere within the time that a write takes. After each kill the
version that is read must be the one before or the one that was written, and after the next write nothing may be left
beside the writer's own files. Exit 1 where anything was lost, unreadable, or left.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from tabulate import tabulate
from writers import WRITERS, Writer, baseline_ids, put_baseline

from quambench.core.files import LOCK

HEADINGS = ["writer", "kills", "old", "new", "unreadable", "lost", "left over", "ms a write"]
PAUSE = 0.03  # seconds between two readings beside writers, who would else wait for the reader's core


def forked(work: Callable[[], object]) -> int:
    """The process that does the work; its exit code is 0 where that ended well."""
    sys.stdout.flush()
    child = os.fork()
    if child:
        return child
    _end(work)


def _end(work: Callable[[], object]) -> NoReturn:
    code = 1
    try:
        work()
        code = 0
    except BaseException as error:  # a child may never come back into the parent's code
        print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
    finally:
        os._exit(code)


def ended(child: int) -> int:
    return os.waitpid(child, 0)[1]


def left_over(writer: Writer, folder: Path) -> int:
    found = {str(path.relative_to(folder)) for path in folder.rglob("*") if not path.is_dir()}
    return len(found - writer.files(folder)) + sum(name.endswith(LOCK) for name in found & writer.files(folder))


def kill_one(name: str, n_kills: int, seed: int) -> list[object]:
    """One writer's row."""
    writer, chance, counted = WRITERS[name], random.Random(f"{seed} {name}"), Counter[str]()
    with tempfile.TemporaryDirectory(prefix="kills-") as place:
        folder = Path(place)
        writer.write(folder, 1)
        begun = time.monotonic()
        for n in (2, 3, 4):
            assert ended(forked(lambda n=n: writer.write(folder, n))) == 0, f"{name} fails without any kill"
        took, before = (time.monotonic() - begun) / 3, 4
        for n in range(5, 5 + n_kills):
            child = forked(lambda n=n: writer.write(folder, n))
            time.sleep(chance.uniform(0, 1.1 * took))
            os.kill(child, signal.SIGKILL)
            ended(child)
            try:
                found = writer.read(folder)
            except Exception as error:
                counted["unreadable"] += 1
                print(f"{name}, kill {n}: {type(error).__name__}: {error}", file=sys.stderr)
                writer.write(folder, n)
                before = n
                continue
            counted["old" if found == before else "new" if found == n else "lost"] += 1
            before = found
            if n % 10 == 0:
                writer.write(folder, before)
                counted["left over"] += left_over(writer, folder)
    outcomes = [counted[key] for key in ("old", "new", "unreadable", "lost", "left over")]
    return [name, n_kills, *outcomes, f"{1e3 * took:.0f}"]


def at_once(n_writers: int, n_rounds: int) -> list[object]:
    """Writers of one baseline file that begin together, each with a case of its own; a reader beside them."""
    counted = Counter[str]()
    with tempfile.TemporaryDirectory(prefix="kills-") as place:
        folder = Path(place)
        put_baseline(folder, "first")
        writer = WRITERS["baseline"]
        for turn in range(n_rounds):
            ids = [f"{turn}-{w}" for w in range(n_writers)]
            children = [forked(lambda i=i: put_baseline(folder, i)) for i in ids]
            left = set(children)
            while left:
                try:
                    baseline_ids(folder)
                except Exception as error:
                    counted["unreadable"] += 1
                    print(f"{n_writers} writers, round {turn}: {error}", file=sys.stderr)
                left -= {child for child in left if os.waitpid(child, os.WNOHANG)[0]}
                time.sleep(PAUSE)
            counted["lost"] += len({f"m/{i}/1x1" for i in ids} - baseline_ids(folder))
            counted["left over"] += left_over(writer, folder)
            if turn % 5 == 4:  # a file of many cases is slow to write
                shutil.rmtree(folder / "alpha")
                put_baseline(folder, "first")
    return [f"{n_writers} writers at once", n_rounds, *[counted[key] for key in ("unreadable", "lost", "left over")]]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--n", type=int, default=1000, help="kills of each writer (default: 1000)")
    parser.add_argument("--rounds", type=int, help="of writers at once (default: 0.4 of --n)")
    parser.add_argument("--writer", action="append", choices=sorted(WRITERS), help="repeatable (default: all)")
    parser.add_argument("--pytest", type=int, default=0, metavar="N", help="kill N real runs of pytest --qb-update")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    rows, failed = [], False
    for name in options.writer or (WRITERS if options.n else ()):
        rows.append(kill_one(name, options.n, options.seed))
        failed |= any(rows[-1][4:7])
        print(f"{name}: {rows[-1][2:7]}", file=sys.stderr, flush=True)
    rounds = options.rounds if options.rounds is not None else options.n * 2 // 5
    together = [at_once(n, rounds) for n in (2, 4)] if rounds and not options.writer else []
    failed |= any(any(row[2:]) for row in together)
    if rows:
        print(tabulate(rows, HEADINGS))
    if together:
        print("\n" + tabulate(together, ["", "rounds", "unreadable", "lost", "left over"]))
    if options.pytest:
        from runs import kill_runs

        row = kill_runs(options.pytest, options.seed)
        failed |= any(row[3:])
        print("\n" + tabulate([row], ["", "kills", "changed", "unreadable", "lost", "left over"]))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
