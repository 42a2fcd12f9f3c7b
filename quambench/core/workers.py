"""Worker processes that take requests and answer them, each as a line of JSON.

A `Worker` is one such process; a `Crew` does jobs in several of them at once. `serve` is their side of it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Lock, Thread
from typing import Any

from quambench.core.git import without_repository
from quambench.core.processes import Child

Answer = dict[str, Any]


class Worker:
    """A process that takes requests and answers them. It ends when this process does, by whatever signal."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str], cwd: Path | None = None) -> None:
        """Start the command. `environment` comes on top of this process's own, without what a git hook put there."""
        self.lost = ""  # the reason why it can no longer be asked; "" while it can
        self._said = tempfile.TemporaryFile()  # noqa: SIM115  (a pipe that nobody reads would block it once full)
        try:
            self._child = Child(
                command,
                cwd=cwd,
                env=without_repository(os.environ) | dict(environment),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._said,
                encoding="utf-8",
                errors="replace",
            )
        except OSError:
            self._said.close()
            raise
        self.process = self._child.process

    def tell(self, line: str) -> None:
        """Send a line. If the process is gone, `ask` notices that no answer comes."""
        assert self.process.stdin
        try:
            self.process.stdin.write(line + "\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            with suppress(BrokenPipeError):
                self.process.stdin.close()

    def ask(self, request: int | Mapping[str, Any], wanted: str) -> Answer | str:
        """Return the answer, which has the field `wanted`, or else what went wrong in one line."""
        assert self.process.stdin
        assert self.process.stdout
        if self.lost:
            return self.lost
        if not self.process.stdin.closed:
            self.tell(json.dumps(request))
        line = self.process.stdout.readline()
        if not line:
            self.lost = f"the process that measures it ended: {self._last_words()}"
            return self.lost
        try:
            answer = json.loads(line)
        except ValueError:
            answer = None
        if isinstance(answer, dict) and "error" in answer:
            return str(answer["error"])
        if isinstance(answer, dict) and wanted in answer:
            return answer
        # From here on an answer could belong to another request.
        self.lost = f"the process that measures it printed {line.strip()[:80]!r} where its answer was due"
        return self.lost

    def kill(self) -> None:
        """End the process and those that it started. Whoever waits for its answer hears that it ended."""
        self._child.kill()

    def close(self) -> None:
        """Kill the process and close all that is open. Nobody may be waiting for its answer."""
        self._child.close()
        self._said.close()

    def _last_words(self) -> str:
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(timeout=10)
        self._said.seek(max(self._said.seek(0, os.SEEK_END) - 10_000, 0))
        lines = self._said.read().decode(errors="replace").strip().splitlines()
        code = self.process.poll()
        return (lines[-1] if lines else "it said nothing") + (f" (signal {-code})" if code and code < 0 else "")


@dataclass(frozen=True, slots=True)
class Job:
    """A request, and the environment of the worker that it needs, on top of the crew's."""

    request: Mapping[str, Any]
    wanted: str  # the answer's field
    environment: Mapping[str, str] = field(default_factory=dict)


class Crew:
    """A group of at most `size` workers of one command. They end when the context does.

    A worker stays for the next job. It is replaced if it died or if the next job needs another environment.
    """

    def __init__(self, command: Sequence[str], size: int, environment: Mapping[str, str]) -> None:
        self._command, self._size, self._environment = command, size, environment
        self._workers: dict[int, tuple[Worker, Mapping[str, str]]] = {}
        self._threads: list[Thread] = []
        self._todo: SimpleQueue[tuple[int, Job]] = SimpleQueue()
        self._starting = Lock()
        self._ended = False

    def __enter__(self) -> Crew:
        return self

    def __exit__(self, *_: object) -> None:
        with self._starting:
            self._ended = True
            for worker, _environment in self._workers.values():
                worker.kill()
        for thread in self._threads:
            thread.join()
        for worker, _environment in self._workers.values():
            worker.close()

    def work(self, jobs: Sequence[Job]) -> Iterator[tuple[int, Answer | str]]:
        """Yield (index of a job, its answer or what went wrong) as jobs end; they are started in the order given."""
        done: SimpleQueue[tuple[int, Answer | str | BaseException]] = SimpleQueue()
        for numbered in enumerate(jobs):
            self._todo.put(numbered)
        self._threads = [
            Thread(target=self._take, args=(place, done), daemon=True) for place in range(min(self._size, len(jobs)))
        ]
        for thread in self._threads:
            thread.start()
        for _job in jobs:
            index, answer = done.get()
            if isinstance(answer, BaseException):
                raise answer
            yield index, answer

    def _take(self, place: int, done: SimpleQueue[tuple[int, Answer | str | BaseException]]) -> None:
        """Do one job after another in the worker of this place; the body of a thread."""
        while not self._ended:
            try:
                index, job = self._todo.get_nowait()
            except Empty:
                return
            try:
                done.put((index, self._worker(place, job.environment).ask(job.request, job.wanted)))
            except BaseException as error:  # the reader of the results must learn of it
                done.put((index, error))

    def _worker(self, place: int, environment: Mapping[str, str]) -> Worker:
        with self._starting:
            there = self._workers.get(place)
            if there and not self._ended and (there[0].lost or there[1] != environment):
                there[0].close()
                there = None
            if there is None:
                if self._ended:
                    raise RuntimeError("the crew has ended")
                there = Worker(self._command, {**self._environment, **environment}), environment
                self._workers[place] = there
            return there[0]


def serve(answer: Callable[[Any], Answer]) -> None:
    """Answer each request until there are no more; runs in a worker. All other output goes to stderr."""
    own = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # for code that is not Python
    sys.stdout = sys.stderr
    for line in sys.stdin:
        own.write(json.dumps(answer(json.loads(line))) + "\n")
        own.flush()
