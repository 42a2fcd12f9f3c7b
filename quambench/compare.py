"""This code against another revision of it: same machine, same minutes, case by case in turn.

No stored baseline is needed: the other revision, in a git worktree of its own, measures what it
says, this one measures the same, and the gate judges the second against the first.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from quambench.errors import BadArtefact, BadParameter
from quambench.gate.baselines import read_baseline
from quambench.gate.record import Record
from quambench.gate.verdicts import Status, Verdict, judge
from quambench.gate.worker import Task

Progress = Callable[[str, int, int], None]


def compare(
    against: str,
    tasks: Sequence[Task],
    folder: Path,
    progress: Progress = lambda what, done, total: None,
) -> list[Verdict]:
    """Verdicts on the code in `folder`'s git checkout against revision `against` of it.

    raises BadParameter when there is no checkout or no such revision, or when that revision is too
    old to be asked
    """
    verdicts = []
    with _worktree(folder, against) as (ours, theirs), tempfile.TemporaryDirectory(prefix="quambench-") as out:
        for turn, task in enumerate(tasks):
            at = Path(out) / str(turn)
            with _worker(theirs, ours, task, at / "theirs") as old, _worker(ours, ours, task, at / "ours") as new:
                for number, observer in enumerate(task.observers):
                    progress(f"{task.model}: {against} and now, in turn", number, len(task.observers))
                    case = f"{task.model}/{observer}"
                    verdicts.append(_judge(case, old(number), new(number), len(task.observers), against))
    return verdicts


def _judge(case: str, old: Record | str, new: Record | str, n_cases: int, against: str) -> Verdict:
    if isinstance(new, str):
        return Verdict(case, Status.ERROR, new)
    if isinstance(old, str):
        return Verdict(new.case_id, Status.ERROR, f"{against}: {old}", metrics=new.metrics)
    return judge(new, old, n_cases)


@contextmanager
def _worktree(folder: Path, revision: str) -> Iterator[tuple[Path, Path]]:
    """(root of the checkout, root of its worktree at `revision`); the worktree goes away again."""
    try:
        root = Path(_git(folder, "rev-parse", "--show-toplevel"))
    except subprocess.CalledProcessError:
        raise BadParameter(f"{folder} is in no git checkout, so there is no other revision to compare with") from None
    except FileNotFoundError:
        raise BadParameter("git is not installed, and compare needs it for the other revision") from None
    try:
        commit = _git(root, "rev-parse", "--verify", "--quiet", f"{revision}^{{commit}}")
    except subprocess.CalledProcessError:
        raise BadParameter(f"{root} has no revision {revision!r}; git log shows those it has") from None
    with tempfile.TemporaryDirectory(prefix="quambench-worktree-") as parent:
        tree = Path(parent) / "tree"
        _git(root, "worktree", "add", "--detach", "--quiet", str(tree), commit)
        try:
            yield root, tree
        finally:
            subprocess.run(["git", "-C", str(root), "worktree", "remove", "--force", str(tree)], capture_output=True)


def _git(folder: Path, *arguments: str) -> str:
    done = subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=True)
    return done.stdout.strip()


@contextmanager
def _worker(code: Path, ours: Path, task: Task, out: Path) -> Iterator[Callable[[int], Record | str]]:
    """A process that runs `code`; call it with a case's number for its record, or for what went wrong.

    Where `code` has no quambench of its own (a fork's repository, with quambench installed), the
    installed one serves both sides, and what differs is the fork's observers.
    """
    elsewhere = [p for p in sys.path if p and not Path(p).resolve().is_relative_to(ours)]
    path = os.pathsep.join([str(code), str(code / "kernels"), *elsewhere])
    if (code / "quambench").is_dir() and not (code / "quambench" / "gate" / "worker.py").is_file():
        raise BadParameter("that revision is older than `quambench compare`; it cannot be asked")
    with subprocess.Popen(
        [sys.executable, "-m", "quambench.gate.worker"],
        cwd=code,
        env=os.environ | {"PYTHONPATH": path},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        _tell(process, task.to_json(out))
        try:
            yield lambda number: _ask(process, number)
        finally:
            process.kill()


def _tell(process: subprocess.Popen[str], line: str) -> None:
    """A process that is gone is noticed when it does not answer."""
    assert process.stdin
    try:
        process.stdin.write(line + "\n")
        process.stdin.flush()
    except BrokenPipeError:
        with suppress(BrokenPipeError):
            process.stdin.close()


def _ask(process: subprocess.Popen[str], number: int) -> Record | str:
    assert process.stdin
    assert process.stdout
    assert process.stderr
    if not process.stdin.closed:
        _tell(process, str(number))
    line = process.stdout.readline()
    if not line:
        said = process.stderr.read().strip().splitlines() or ["it said nothing"]
        return f"the process that measures it ended: {said[-1]}"
    answer = json.loads(line)
    if "error" in answer:
        return str(answer["error"])
    try:
        (record,) = read_baseline(Path(answer["file"])).values()
    except BadArtefact as error:
        return str(error)
    return record
