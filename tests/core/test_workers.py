"""Workers and crews, by small programs that answer as each test needs."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import pytest

from quambench.core.workers import Crew, Job, Worker

# Answers {"n": n} with its environment and process; "die" and "fail" do what they say; "sleep" takes for ever.
PROGRAM = """
import json, os, signal, sys, time
from quambench.core.workers import serve
def answer(request):
    n = request["n"]
    if n == "die": os.kill(os.getpid(), signal.SIGKILL)
    if n == "fail": return {"error": "it is broken"}
    if n == "sleep": time.sleep(600)
    time.sleep(request.get("seconds", 0))
    print("what is printed is no answer")
    return {"n": n, "pid": os.getpid(), "colour": os.environ.get("COLOUR")}
serve(answer)
"""
COMMAND = (sys.executable, "-c", PROGRAM)


def job(n, environment=None, **more):
    return Job({"n": n, **more}, "n", environment or {})


@pytest.fixture
def crew():
    with Crew(COMMAND, 2, {"COLOUR": "red"}) as crew:
        yield crew


def done(crew, *jobs):
    answers = dict(crew.work(jobs))
    assert sorted(answers) == list(range(len(jobs)))
    return [answers[i] for i in range(len(jobs))]


def test_every_job_is_answered_by_no_more_workers_than_there_are(crew):
    answers = done(crew, *(job(n, seconds=0.05) for n in range(8)))
    assert [a["n"] for a in answers] == list(range(8))
    pids = {a["pid"] for a in answers}
    assert len(pids) == 2
    assert os.getpid() not in pids
    assert {a["pid"] for a in done(crew, *(job(n, seconds=0.05) for n in range(8)))} == pids  # they stay


def test_answers_come_as_they_are_ready(crew):
    assert [index for index, _ in crew.work([job("late", seconds=1.0), job("early")])] == [1, 0]


def test_another_environment_is_another_worker(crew):
    answers = done(crew, job(0), job(1, {"COLOUR": "blue"}), job(2), job(3, {"COLOUR": "blue"}))
    assert [a["colour"] for a in answers] == ["red", "blue", "red", "blue"]


def test_a_worker_that_dies_costs_its_own_job_alone(crew):
    answers = done(crew, *(job("die" if n == 2 else n) for n in range(6)))
    last_words = answers.pop(2)
    assert last_words.startswith("the process that measures it ended: ")
    assert last_words.endswith(" (signal 9)")
    assert [a["n"] for a in answers] == [0, 1, 3, 4, 5]


def test_what_goes_wrong_in_a_job_is_its_answer(crew):
    assert done(crew, job("fail"), job(1))[0] == "it is broken"


def test_a_program_that_is_not_there_is_raised_here():
    with pytest.raises(FileNotFoundError), Crew(("/no/such/program",), 2, {}) as crew:
        done(crew, job(1), job(2))


def ended(pid):
    """Whether a process has ended, given some seconds to; an orphan may stay a zombie until the system looks at it."""
    for _ in range(200):
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0]
        except FileNotFoundError:
            return True
        if state == "Z":
            return True
        time.sleep(0.05)
    return False


def test_whoever_leaves_leaves_no_process_behind():
    """As Ctrl-C does: with a job on its way in one worker, one done in the other, and more to come."""
    started = time.perf_counter()
    with pytest.raises(KeyboardInterrupt), Crew(COMMAND, 2, {}) as crew:
        for _index, _answer in crew.work([job("sleep"), job(1), job("sleep"), job("sleep")]):
            raise KeyboardInterrupt
    assert len(crew._workers) == 2
    assert all(ended(worker.process.pid) for worker, _ in crew._workers.values())
    assert time.perf_counter() - started < 300  # nobody waited for those that sleep


def test_what_a_worker_started_ends_with_it():
    program = (
        "import json, subprocess, sys\n"
        "sys.stdin.readline()\n"
        "other = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        "print(json.dumps({'pid': other.pid}), flush=True)\n"
        "sys.stdin.readline()\n"
    )
    worker = Worker((sys.executable, "-c", program), {})
    answer = worker.ask({}, "pid")
    worker.close()
    assert ended(answer["pid"])
