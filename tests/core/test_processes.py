"""Children end with their parent, whatever ends it; and what they started ends with them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from quambench.core import processes

# Starts a child that hears no signal but KILL and never looks at its input, and that has a child of its own.
PARENT = """
import signal, subprocess, sys, time
from quambench.core.{module} import {maker}
for s in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT): signal.signal(s, signal.SIG_DFL)  # whoever started the tests
CHILD = '''
import os, signal, subprocess, sys, time
for s in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT): signal.signal(s, signal.SIG_IGN)
grandchild = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
print(os.getpid(), grandchild.pid, flush=True)
time.sleep(600)
'''
made = {maker}([sys.executable, "-c", CHILD], {options})
print(made.process.stdout.readline(), end="", flush=True)
time.sleep(600)
"""
CHILD = PARENT.format(module="processes", maker="Child", options="stdout=subprocess.PIPE, text=True")
WORKER = PARENT.format(module="workers", maker="Worker", options="{}")


def ended(pid: int) -> bool:
    """Within some seconds; an orphan may stay a zombie until the system looks at it."""
    for _ in range(200):
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] == "Z":
                return True
        except FileNotFoundError:
            return True
        time.sleep(0.05)
    return False


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="reads /proc, which this system does not have")
@pytest.mark.parametrize("whole_group", [False, True], ids=["the parent alone", "its group"])
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGHUP, signal.SIGINT], ids=lambda s: s.name)
@pytest.mark.parametrize("program", [CHILD, WORKER], ids=["child", "worker"])
def test_a_child_and_its_child_end_with_the_parent(program, how, whole_group):
    parent = subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, process_group=0
    )
    pids = [int(pid) for pid in parent.stdout.readline().split()]
    assert len(pids) == 2
    (os.killpg if whole_group else os.kill)(parent.pid, how)
    parent.communicate()
    assert all(ended(pid) for pid in pids)


def test_a_closed_child_leaves_neither_itself_nor_its_guard():
    child = processes.Child([sys.executable, "-c", "import time; time.sleep(600)"])
    guard = child._guard
    child.close()
    assert child.process.returncode == -signal.SIGKILL
    assert guard.returncode is not None


def test_a_program_is_run_to_its_end():
    code = "import sys; print(sys.stdin.read() + 'said'); print('and this', file=sys.stderr); sys.exit(3)"
    done = processes.run([sys.executable, "-c", code])
    assert (done.returncode, done.stdout, done.stderr) == (3, "said\n", "and this\n")


def test_what_takes_too_long_ends_with_what_it_started():
    code = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'import time; time.sleep(600)'])"
    started = time.perf_counter()
    with pytest.raises(subprocess.TimeoutExpired):
        processes.run([sys.executable, "-c", code], timeout=0.5)
    assert time.perf_counter() - started < 60  # the grandchild holds the pipe, and did not keep us


def test_a_program_that_is_not_there_is_raised_here():
    with pytest.raises(FileNotFoundError):
        processes.run(["/no/such/program"])
