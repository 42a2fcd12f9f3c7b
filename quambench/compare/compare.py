"""This code against another revision of it: same machine, same minutes, case by case in turn.

No stored baseline is needed: the other revision, its files in a folder of their own, measures what it
says, this one measures the same, and the gate judges the second against the first. So it is with
the probes: both answer this side's questions, and its answers are checked against the other's.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from textwrap import shorten

from quambench.compare.worker import Task
from quambench.core import git
from quambench.core.errors import BadArtefact, BadParameter
from quambench.core.scratch import scratch
from quambench.core.workers import Answer, Worker
from quambench.gate import probes
from quambench.gate.baselines import read_baseline
from quambench.gate.findings import Finding
from quambench.gate.record import Record
from quambench.gate.verdicts import Status, Verdict, judge

Progress = Callable[[str, int, int], None]
WORKERS = ("quambench.compare.worker", "quambench.gate.worker")
"""The module that measures, as revisions have had it, the newest first."""


def to_stderr(note: str) -> None:
    """What a reader should know beside the verdicts."""
    print(f"note: {note}", file=sys.stderr)


def compare(
    against: str,
    tasks: Sequence[Task],
    folder: Path,
    progress: Progress = lambda what, done, total: None,
    note: Callable[[str], None] = to_stderr,
) -> list[Verdict]:
    """Verdicts on the code in `folder`'s git checkout against revision `against` of it.

    raises GitFailed when there is no checkout or no such revision, BadParameter when that revision is too
    old to be asked
    """
    if untold := _untold(tasks):
        return untold
    verdicts = []
    with git.revision(folder, against) as (ours, theirs), scratch() as out:
        otherwise = _broken_probes(theirs, ours, out, against, progress, note)
        for turn, task in enumerate(tasks):
            jobs = [task.to_json(out / str(turn) / side) for side in ("theirs", "ours")]
            with _worker(theirs, ours, jobs[0]) as old, _worker(ours, ours, jobs[1]) as new:
                for number, observer in enumerate(task.observers):
                    progress(f"{task.model}: {against} and now, in turn", number, len(task.observers))
                    was, now = old.ask(number, "file"), new.ask(number, "file")
                    case = _id(task, observer)
                    verdicts.append(_judge(case, was, now, len(task.observers), against, otherwise))
    return verdicts


def _untold(tasks: Sequence[Task]) -> list[Verdict]:
    """ERROR of every case where this process, which judges both sides, does not judge as it did; else nothing."""
    of_the_judge = [p.name for p in probes.all_probes() if p.name.startswith(("metrics", "judge/"))]
    distrusted = probes.distrusted(probes.check(only=of_the_judge))
    if distrusted is None:
        return []
    reason = f"{distrusted.reason}; what judges is not as it was, so that no verdict can be trusted"
    cases = [_id(task, observer) for task in tasks for observer in task.observers]
    return [Verdict(case, Status.ERROR, reason, unit=distrusted.name) for case in cases]


def _id(task: Task, observer: str) -> str:
    """Of a case that nobody could measure; a report is posted, and names no folder of the user's."""
    return f"{Path(task.model).name}/{observer}"


def _judge(
    case: str, was: Answer | str, now: Answer | str, n_cases: int, against: str, otherwise: Sequence[Finding]
) -> Verdict:
    old, new = _record(was), _record(now)
    if isinstance(new, str):
        return Verdict(case, Status.ERROR, new)
    if isinstance(old, str):
        return Verdict(new.case_id, Status.ERROR, f"{against}: {old}", metrics=new.metrics)
    rests_on = now.get("rests_on", ()) if isinstance(now, dict) else ()
    return judge(new, old, n_cases, probe=next((f for f in otherwise if f.place in rests_on), None))


def _record(answer: Answer | str) -> Record | str:
    if isinstance(answer, str):
        return answer
    try:
        (record,) = read_baseline(Path(answer["file"])).values()
    except BadArtefact as error:
        return str(error)
    return record


def _broken_probes(
    theirs: Path, ours: Path, out: Path, against: str, progress: Progress, note: Callable[[str], None]
) -> list[Finding]:
    """Units of this side that answer otherwise than the other side's, in order of dependence.

    In processes of their own: a revision that knows no probes ends at such a question. Then this
    side's answers are checked against its stored ones.
    """
    if not any((code / "quambench").is_dir() for code in (theirs, ours)):
        return []  # a fork's repository: the installed units serve both sides
    progress(f"probes: {against} and now", 0, 1)
    own = ours / "quambench" / "gate" / "probes" / probes.STREAMS.name
    streams, answers = str(own if own.is_file() else probes.STREAMS), str(out / "answers.json")
    job = Task("", ()).to_json(out)
    with _worker(theirs, ours, job) as old, _worker(ours, ours, job) as new:
        was = old.ask({"streams": streams, "into": answers}, "answered")
        now = was if isinstance(was, str) else new.ask({"streams": streams, "against": answers}, "otherwise")
        if not isinstance(was, str) and not isinstance(now, str):
            by, told = f"the unit answers its probe otherwise than at {against}", set(was["answered"])
        else:
            why = shorten(str(now), 120)
            note(
                f"probes of {against} and now cannot be compared ({why}); now's are checked against the stored answers"
            )
            by, told = "the unit answers its probe otherwise than stored", None
            now = new.ask({"streams": streams, "against": ""}, "otherwise")
    progress(f"probes: {against} and now", 1, 1)
    if isinstance(now, str):
        note(f"nor do the stored answers serve ({shorten(now, 120)}): units are not probed")
        return []
    changed = [(name, reason) for name, reason in now["otherwise"] if told is None or name in told]
    # What judged there judges nothing here.
    return [Finding(name, f"{by} ({reason})") for name, reason in changed if not name.startswith("judge/")]


@contextmanager
def _worker(code: Path, ours: Path, job: str) -> Iterator[Worker]:
    """A process that runs `code`.

    Where `code` has no quambench of its own (a fork's repository, with quambench installed), the
    installed one serves both sides, and what differs is the fork's observers.
    """
    elsewhere = [p for p in sys.path if p and not Path(p).resolve().is_relative_to(ours)]
    path = os.pathsep.join([str(code), str(code / "kernels"), *elsewhere])
    no_repository = {} if code == ours else {"GIT_CEILING_DIRECTORIES": str(code.parent)}
    environment = {"PYTHONPATH": path, **no_repository}
    worker = Worker([sys.executable, "-m", _asked(code)], environment, cwd=code)
    try:
        worker.tell(job)
        yield worker
    finally:
        worker.close()


def _asked(code: Path) -> str:
    """The module that measures, where that code has it. raises BadParameter where it has none"""
    package = code / "quambench"
    there = [name for name in WORKERS if (code / f"{name.replace('.', '/')}.py").is_file()]
    if package.is_dir() and not there:
        raise BadParameter("that revision is older than `quambench compare`; it cannot be asked")
    return (there or WORKERS)[0]
