"""Every command that writes, as a user runs it, where something is against it: what it says, its exit code, what stays.

    python tests/kills/situations.py                       every command in every situation (needs root to mount)
    python tests/kills/situations.py --command calibrate --situation "disk full"

A full disk and a read-only one are mounted for the command alone. Exit 1 where a traceback was printed, an exit code is
not the documented one, a line does not name the path, or a file is half written or left beside the others.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from runs import SUITE, make_project
from tabulate import tabulate

from quambench.core.files import is_begun
from quambench.gate.baselines import read_baseline

ENTRY = "import sys; from quambench.cli.main import main; sys.exit(main())"
SCRATCH = "quambench-run-*"  # in the temporary folder: what a command has while it runs


@dataclass(frozen=True)
class Command:
    """A command line in the project's folder, and the folder there in which it writes."""

    arguments: Sequence[str]
    target: str  # what is to be there afterwards, in that folder
    place: str = "out"
    is_pytest: bool = False
    endless: float = 0.0  # seconds after which a run that would take hours is stopped, in every situation
    env: dict[str, str] = field(default_factory=dict)

    @property
    def line(self) -> list[str]:
        start = ["-m", "pytest"] if self.is_pytest else ["-c", ENTRY]
        return [sys.executable, *start, *self.arguments]


SMALL = ("--corpus", "corpus", "--observer", "percentile")
GATE = ("suites", "-q", "--qb-model", "tiny", "--qb-corpus", "corpus", "--qb-update")
COMMANDS = {
    "pytest --qb-update": Command(GATE, "one", "baselines", is_pytest=True),
    "pytest --qb-update -n 2": Command([*GATE, "-n", "2"], "one", "baselines", is_pytest=True),
    "pytest --qb-report": Command([*GATE[:-1], "--qb-report", "out/r.md"], "r.md", is_pytest=True),
    "calibrate": Command(["calibrate", "tiny", "--out", "out/scales", *SMALL], "scales"),
    "quantize": Command(["quantize", "tiny", "--out", "out/quantized", *SMALL], "quantized"),
    "export": Command(["export", "scales", "--format", "quamba", "--out", "out/q.pt"], "q.pt"),
    "import": Command(["import", "quamba.pt", "--format", "quamba", "--model", "tiny", "--out", "out/again"], "again"),
    "claims": Command(["claims", "--stored", "--model", "tiny", "--baselines", "stored", "--out", "out/c.md"], "c.md"),
    "bench": Command(["bench", "kernels", "--shape", "mamba-130m", "--out", "out/b.json"], "b.json"),
    "compare": Command(["compare", "--against", "HEAD", "--model", "tiny", *SMALL, "--report", "out/c.md"], "c.md"),
    "init": Command(["init", "out"], "conftest.py"),
    "zoo train": Command(["zoo", "train", "mamba-recall", "--out", "out/zoo"], "zoo", endless=25.0),
}


@dataclass(frozen=True)
class Ended:
    code: int
    said: str
    seconds: float


# --- what may be against it -----------------------------------------------------------------------------


@contextmanager
def plain(place: Path) -> Iterator[None]:
    yield


@contextmanager
def mounted(place: Path, *, read_only: bool) -> Iterator[None]:
    """The folder on a file system of its own, which is full or may not be written to."""
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", place], check=True)
    try:
        if read_only:
            subprocess.run(["mount", "-o", "remount,ro", place], check=True)
        else:
            fill(place / "full")
        yield
    finally:
        subprocess.run(["umount", "-l", place], check=True)


def fill(path: Path) -> None:
    with path.open("wb", buffering=0) as file:
        try:
            while file.write(b"0" * 4096):
                pass
        except OSError:
            return


@contextmanager
def few_descriptors(place: Path) -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


ASCII = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


@dataclass(frozen=True)
class Situation:
    around: Callable[[Path], object] = plain
    env: dict[str, str] = field(default_factory=dict)
    signal: int = 0
    fails: bool = False  # the command cannot do what it is to do

    def codes(self, command: Command) -> set[int]:
        """The exit codes that are documented."""
        if self.signal:
            # It may have ended before the signal came, or be ending: a shell calls -15 and 143 by one name.
            return {0, -self.signal, 2 if command.is_pytest else 128 + self.signal}
        if self.fails:
            return {1, 4} if command.is_pytest else {2}  # 4: seen before any work
        return {0} if not command.endless else {128 + signal.SIGINT}


SITUATIONS = {
    "nothing": Situation(),
    "read-only": Situation(lambda p: mounted(p, read_only=True), fails=True),
    "disk full": Situation(lambda p: mounted(p, read_only=False), fails=True),
    "64 descriptors": Situation(few_descriptors),
    "ASCII locale": Situation(env=ASCII),
    "TERM": Situation(signal=signal.SIGTERM),
    "HUP": Situation(signal=signal.SIGHUP),
    "Ctrl-C": Situation(signal=signal.SIGINT),
}


# --- a run, and what is wrong with it -------------------------------------------------------------------


def run(command: Command, situation: Situation, project: Path, usual: float, chance: random.Random) -> Ended:
    stop_after = command.endless or None
    if situation.signal:
        stop_after = chance.uniform(0.4, 0.95) * (usual or command.endless)
    environment = os.environ | {"TMPDIR": str(scratch_of(project))} | command.env | situation.env
    with (project / "said").open("w+b") as said, situation.around(project / command.place):
        begun = time.monotonic()
        process = subprocess.Popen(
            command.line, cwd=project, stdin=subprocess.DEVNULL, stdout=said, stderr=subprocess.STDOUT,
            env=environment, start_new_session=True, preexec_fn=_as_at_a_terminal,
        )  # fmt: skip
        try:
            process.wait(stop_after)
        except subprocess.TimeoutExpired:
            os.kill(process.pid, situation.signal or signal.SIGINT)
            process.wait()
        seconds = time.monotonic() - begun
        said.seek(0)
        return Ended(process.returncode, said.read().decode("utf-8", "backslashreplace"), seconds)


def _as_at_a_terminal() -> None:
    """What runs in the background has inherited that Ctrl-C and HUP are ignored, and would ignore them."""
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)


def judge(command: Command, situation: Situation, ended: Ended, project: Path) -> list[str]:
    """What is wrong, a line each."""
    wrong, place = [], project / command.place
    if "Traceback (most recent call last)" in ended.said or "INTERNALERROR" in ended.said:
        wrong.append("a traceback")
    if ended.code not in situation.codes(command):
        wrong.append(f"exit code {ended.code}")
    if situation.fails and not any(command.place in line for line in ended.said.splitlines()[-8:]):
        wrong.append("no line names the path")
    if not situation.fails and ended.code == 0 and not (place / command.target).exists():
        wrong.append(f"{command.place}/{command.target} is not there")
    left_over = [*place.rglob(".quambench*"), *scratch_of(project).glob(SCRATCH)]
    return wrong + [f"left over: {path.name}" for path in left_over] + unreadable(place)


def scratch_of(project: Path) -> Path:
    """The temporary folder of the commands, which others on this machine do not share."""
    (project.parent / "tmp").mkdir(exist_ok=True)
    return project.parent / "tmp"


def unreadable(place: Path) -> list[str]:
    wrong = []
    for path in sorted(file for file in place.rglob("*.json") if not is_begun(file.relative_to(place))):
        try:
            read_baseline(path) if place.name == "baselines" else json.loads(path.read_text(encoding="utf-8"))
        except Exception as error:
            wrong.append(f"{path.name}: {type(error).__name__}: {error}")
    return wrong


# --- the project ----------------------------------------------------------------------------------------


def prepare(place: Path) -> Path:
    """A repository under git with a tiny model, saved scales, a file for Quamba and stored baselines."""
    project = make_project(place)
    (project / "suites" / "test_one.py").write_text(SUITE.format(alpha="0.999", name="one"))
    for line in (
        ["calibrate", "tiny", "--out", "scales", *SMALL],
        ["export", "scales", "--format", "quamba", "--out", "quamba.pt"],
    ):
        subprocess.run(Command(line, "").line, cwd=project, check=True, stdout=subprocess.DEVNULL)
    subprocess.run(Command(GATE, "", is_pytest=True).line, cwd=project, check=True, stdout=subprocess.DEVNULL)
    (project / "baselines").rename(project / "stored")
    git = ["git", "-c", "user.name=n", "-c", "user.email=e@example.org"]
    for line in (["init", "-q"], ["add", "-A"], ["commit", "-q", "-m", "all"]):
        subprocess.run([*git, *line], cwd=project, check=True)
    return project


def renew(project: Path, command: Command) -> None:
    """The folder in which the command writes is empty, and what is stored beside it is as it was."""
    for name in ("out", "baselines"):
        shutil.rmtree(project / name, ignore_errors=True)
    shutil.copytree(project / "stored", project / "baselines")
    if command.place == "baselines":
        shutil.rmtree(project / "baselines")
    (project / command.place).mkdir()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--command", action="append", choices=list(COMMANDS), help="repeatable (default: all)")
    parser.add_argument("--situation", action="append", choices=list(SITUATIONS), help="repeatable (default: all)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--show", action="store_true", help="print the last lines that each run says")
    options = parser.parse_args()
    # What a killed run leaves behind it, and is adopted by this process, is found by waiting for any child.
    ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER
    chance, rows, failed = random.Random(options.seed), [], False
    with tempfile.TemporaryDirectory(prefix="kills-") as place:
        project = prepare(Path(place))
        for name in options.command or COMMANDS:
            usual, row = 0.0, [name]
            for title in ["nothing", *(s for s in options.situation or SITUATIONS if s != "nothing")]:
                renew(project, COMMANDS[name])
                ended = run(COMMANDS[name], SITUATIONS[title], project, usual, chance)
                usual = usual or ended.seconds
                wrong = judge(COMMANDS[name], SITUATIONS[title], ended, project) + survivors()
                failed |= bool(wrong)
                row.append("; ".join(wrong) or str(ended.code))
                last = "\n    ".join(ended.said.splitlines()[-6:] if options.show or wrong else [])
                print(f"{name} · {title} ({ended.seconds:.0f} s): {row[-1]}\n    {last}".rstrip(), flush=True)
            rows.append(row)
    titles = ["nothing", *(s for s in options.situation or SITUATIONS if s != "nothing")]
    print("\n" + tabulate(rows, ["exit code", *titles]))
    return 1 if failed else 0


def survivors() -> list[str]:
    """Processes that outlived the command that started them."""
    time.sleep(0.2)
    try:
        pid, _ = os.waitpid(-1, os.WNOHANG)
    except ChildProcessError:
        return []
    return [] if pid else ["a process outlives it"]


if __name__ == "__main__":
    sys.exit(main())
