"""A process that has imported what takes seconds, and forks itself for each pytest that a test starts.

It has imported nothing of quambench: a run finds every module of the project new, as in a process of its own, and pays
a tenth of a second instead of four. Reads a line of JSON for each run, {arguments, folder, environment, out, err}, and
answers with a line, the exit code. It ends when its input does.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import runpy
import signal
import sys
from collections.abc import Mapping
from typing import Any

SLOW = ("torch", "scipy.stats", "safetensors.torch", "tokenizers", "tabulate", "pytest")


def serve() -> None:
    for name in SLOW:
        importlib.import_module(name)
    gc.freeze()  # what was imported stays shared
    for line in sys.stdin:
        child = os.fork()
        if not child:
            _begin(json.loads(line))
            runpy.run_module("pytest", run_name="__main__", alter_sys=True)  # ends by SystemExit
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


def _begin(request: Mapping[str, Any]) -> None:
    """Make of the forked process what the interpreter makes of a new one."""
    for number, path in enumerate((os.devnull, request["out"], request["err"])):
        opened = os.open(path, os.O_WRONLY | os.O_APPEND if number else os.O_RDONLY)
        os.dup2(opened, number)
        os.close(opened)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
    os.environ.clear()
    os.environ.update(request["environment"])
    os.chdir(request["folder"])
    sys.path[:0] = ["", *filter(None, request["environment"].get("PYTHONPATH", "").split(os.pathsep))]
    sys.argv[:] = ["pytest", *request["arguments"]]


if __name__ == "__main__":
    del sys.path[0]  # the folder of this file
    serve()
