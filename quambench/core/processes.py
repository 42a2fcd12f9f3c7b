"""Other programs as children of this one: they end with it, however it ends.

Each runs in a session of its own, so that what it starts ends with it. A guard stands beside it: a shell that waits for
the end of its input, which comes when this process is gone by any signal, and then kills that session.
"""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

_GUARD = ("/bin/sh", "-c", 'read -r _; kill -s KILL -- "-$0"')


class Child:
    """A process that ends, with all that it starts, at `close` or when this process ends."""

    def __init__(self, command: Sequence[str], **options: Any) -> None:
        """Start the command; the options are subprocess.Popen's. raises OSError"""
        self.process = subprocess.Popen(command, start_new_session=True, **options)
        try:
            self._guard = subprocess.Popen(
                [*_GUARD, str(self.process.pid)],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                cwd="/",
                env={},
                start_new_session=True,  # a signal to our group leaves it to its work
            )
        except BaseException:
            self.kill()
            self.process.wait()
            raise

    def kill(self) -> None:
        """End the process and those that it started. A reader of its output then sees the end of it."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)

    def close(self) -> None:
        """Kill the process and close all that is open. Nobody may be reading from it."""
        self.kill()
        self._guard.kill()  # before the process's number is free for another
        self._guard.wait()
        self.process.wait()
        for stream in (self._guard.stdin, self.process.stdin, self.process.stdout, self.process.stderr):
            if stream:
                with suppress(BrokenPipeError):
                    stream.close()


def run(
    command: Sequence[str], timeout: float | None = None, errors: str = "replace", **options: Any
) -> subprocess.CompletedProcess[str]:
    """Run a program to its end, without input, and return its exit code and output.

    timeout  s
    errors   how bytes that are not UTF-8 are read
    options  as subprocess.Popen's
    raises OSError, subprocess.TimeoutExpired
    """
    pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    child = Child(command, **pipes, encoding="utf-8", errors=errors, **options)
    try:
        out, err = child.process.communicate(timeout=timeout)
        return subprocess.CompletedProcess(command, child.process.returncode, out, err)
    finally:
        child.close()
