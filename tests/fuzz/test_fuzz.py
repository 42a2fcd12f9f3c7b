"""Some hundred mutants of every kind; `tox run -e fuzz` runs hundreds of thousands."""

from __future__ import annotations

import random
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))
try:
    import engine
    from engine import ACCEPTED, REFUSED, Kind, WrongAcceptance, in_children, in_process
    from kinds import KINDS
finally:
    sys.path.remove(str(HERE))

from quambench.errors import BadParameter  # noqa: E402 (kinds stand beside this file, on no path)

COUNT = {
    "argv": 30,
    "baseline-signed": 40,
    "evidence-signed": 40,
    "checkpoint": 60,
    "checkpoint-mamba2": 40,
    "spec": 1000,
}


@pytest.mark.parametrize("name", KINDS)
def test_no_mutant_gives_a_traceback_or_is_wrongly_taken(name, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    told = in_process(KINDS[name], 0, COUNT.get(name, 150), tmp_path)
    again = [f"python tests/fuzz/run.py --kind {name} --only {number}: {what}" for number, what in told.findings]
    assert again == []
    assert told.outcomes[REFUSED] > 5
    assert sum(told.outcomes.values()) == COUNT.get(name, 150)


# --- The fuzzer itself sees what it is there for


def taken(start, chance):
    return ACCEPTED


def refused(start, chance):
    raise BadParameter("no")


def traceback(start, chance):
    raise KeyError("x")


def wrongly_taken(start, chance):
    raise WrongAcceptance("NaN")


def two_lines(start, chance):
    class Two(BadParameter):
        def __str__(self):
            return "a\nb"

    raise Two


def writes_elsewhere(start, chance):
    Path("/tmp/of-a-mutant").write_text("x")
    return ACCEPTED


def starts_a_program(start, chance):
    import os

    os.system("true")
    return ACCEPTED


def dies(start, chance):
    import os
    import signal

    os.kill(os.getpid(), signal.SIGSEGV)


def hangs(start, chance):
    while True:
        pass


def takes_memory(start, chance):
    return ACCEPTED if len(bytearray(b"x" * (64 << 20))) else REFUSED


@pytest.mark.parametrize(
    ("one", "outcome", "found"),
    [
        (taken, "accepted", ""),
        (refused, "refused", ""),
        (traceback, "traceback", "KeyError: 'x' | "),
        (wrongly_taken, "wrong acceptance", "NaN"),
        (two_lines, "refused", "a message that is not one line"),
        (writes_elsewhere, "wrong acceptance", "a mutant opened /tmp/of-a-mutant to write"),
        (starts_a_program, "wrong acceptance", "a mutant reached out: os.system"),
    ],
)
def test_what_is_found_is_told(one, outcome, found, tmp_path):
    told = in_process(Kind("k", lambda folder: None, one), 0, 2, tmp_path)
    assert told.outcomes == {outcome: 2}
    assert [number for number, _ in told.findings] == ([0, 1] if found else [])
    assert all(what.startswith(found) for _, what in told.findings)


@pytest.mark.parametrize(
    ("one", "outcome", "found"),
    [(dies, "crash", "the process died of signal 11"), (hangs, "hang", "over 1 s"), (takes_memory, "memory", "0.")],
)
def test_a_process_that_dies_hangs_or_grows_takes_the_others_with_it_no_further(one, outcome, found, monkeypatch):
    """Of three mutants the middle one does it."""
    monkeypatch.setattr(engine, "PATIENCE", 1)
    monkeypatch.setattr(engine, "MEMORY", 100 << 20)

    def middle(start, chance):
        return one(start, chance) if chance.random() == of_the_middle else ACCEPTED

    of_the_middle = random.Random("5/k/11").random()
    told = in_children(Kind("k", lambda folder: None, middle), 5, range(10, 13))
    assert told.outcomes == {"accepted": 2, outcome: 1}
    assert [(number, what.startswith(found)) for number, what in told.findings] == [(11, True)]


def test_a_mutant_is_the_same_again(tmp_path):
    def make(folder):
        return None

    for name in ("spec", "latency"):
        seen = []
        for n in range(2):
            folder = tmp_path / f"{name}{n}"
            folder.mkdir()
            told = in_process(KINDS[name], 7, 100, folder)
            seen.append(told.outcomes)
        assert seen[0] == seen[1]
