"""Some hundred mutants of every kind; `tox run -e fuzz` runs hundreds of thousands."""

from __future__ import annotations

import argparse
import io
import mmap
import os
import random
import shutil
import sys
import time
from pathlib import Path

import pytest
import torch

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))
try:
    import command_lines
    import engine
    import folders
    from command_lines import Ended, forked, own, run
    from engine import ACCEPTED, REFUSED, Kind, WrongAcceptance, in_children, in_process
    from kinds import KINDS, argv_start, arrays_of, reads_back
finally:
    sys.path.remove(str(HERE))

from quambench.core.errors import BadParameter  # noqa: E402 (kinds stand beside this file, on no path)

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
    fresh = mmap.mmap(-1, 128 << 20)  # not from what the process was given before and keeps
    for _ in range(128):
        fresh.write(b"x" * (1 << 20))
    return ACCEPTED


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


# --- Command lines in processes


def says_a_line_and_2():
    print("quambench: no", file=sys.stderr)
    return 2


def says_two_lines():
    print("quambench: no\nand no", file=sys.stderr)
    return 2


def says_how_it_is_called():
    argparse.ArgumentParser().parse_args(["x"])


def raises():
    raise KeyError("x")


def ends_oddly():
    return 3


def cannot_say_it():
    os.close(1)
    print("x" * 100_000)
    return 0


def fills_memory():
    return len(b"x" * (900 << 20)) and 0


@pytest.mark.parametrize(
    ("main", "outcome", "found"),
    [
        (lambda: 0, "accepted", ""),
        (lambda: 1, "accepted", ""),
        (lambda: sys.exit(), "accepted", ""),
        (says_a_line_and_2, "refused", ""),
        (says_how_it_is_called, "refused", ""),
        (says_two_lines, "refused", "a message that is not one line"),
        (lambda: print("\x1b[2J") or 0, "wrong acceptance", "a terminal gets ['\\x1b']"),
        (lambda: 2, "refused", "a message that is not one line: ''"),
        (raises, "traceback", "exit code 1: Traceback"),
        (ends_oddly, "traceback", "exit code 3"),
        (cannot_say_it, "traceback", "exit code 1"),
        (lambda: os.kill(os.getpid(), 11), "crash", "died of signal 11"),
        (lambda: time.sleep(60), "hang", "killed"),
        (fills_memory, "memory", "1."),
    ],
)
def test_how_a_process_ends_is_judged(main, outcome, found, tmp_path, monkeypatch):
    monkeypatch.setattr(command_lines, "PATIENCE", 5)
    monkeypatch.setattr(command_lines, "MEMORY", 1 << 30)
    monkeypatch.setattr(command_lines, "LIMIT", 8 << 30)
    judged, what = forked([], tmp_path, main).judged()
    assert (judged, what[: len(found)]) == (outcome, found)
    assert bool(what) == bool(found)


def test_a_fork_gets_the_words_and_the_folder_that_an_interpreter_gets(tmp_path):
    """A surrogate, which no shell can say, is the bytes that it would be."""
    words = ["export", "no\x1bthing\ud800", "--format", "quamba", "--out", "x"]
    ended = [way(words, tmp_path) for way in (own, forked)]
    assert ended[0].code == ended[1].code == 2
    assert ended[0].said == ended[1].said != ""
    assert list(tmp_path.iterdir()) == []


def test_what_a_command_wrote_is_read_back(tmp_path):
    argv_start(tmp_path)
    words = ["import", "q.pt", "--format", "quamba", "--model", "model", "--out", "out"]
    with pytest.raises(WrongAcceptance, match="wrote what cannot be read"):
        reads_back(words, tmp_path)
    assert forked(words, tmp_path).judged() == ("accepted", "")
    reads_back(words, tmp_path)


def test_command_lines_left_out_are_not_counted():
    told, after = run("cli", lambda words, folder: Ended(2, "quambench: no"), 0, 5, 60, lambda: False)
    assert told.outcomes["refused"] == 60
    assert after - 5 == 60 + told.outcomes["left out"] > 60


def test_what_checkpoints_start_from_is_the_same_again(tmp_path):
    """Byte for byte: torch names storages by where they stand in memory, safetensors' reader has no order."""
    files = []
    for n in range(2):
        (tmp_path / str(n)).mkdir()
        files.append(KINDS["checkpoint"].make(tmp_path / str(n)).files)
        stored = torch.load(io.BytesIO(files[n]["old.bin"]), weights_only=True)
        assert all(torch.equal(stored[k], a) for k, a in arrays_of(files[n]["model.safetensors"]).items())
    assert files[0] == files[1]
    names = [list(arrays_of(files[0]["model.safetensors"])) for _ in range(5)]
    assert names == [sorted(names[0])] * 5


def test_a_folder_is_as_it_was(tmp_path, monkeypatch):
    """Whatever a command did to it: each kind of name there is gone, replaced by another kind, changed, or new."""
    monkeypatch.setattr(folders, "LARGE", 1000)
    work = tmp_path / "work"

    def fresh(at):
        (at / "a" / "b").mkdir(parents=True)
        (at / "a" / "file").write_bytes(b"x")
        (at / "a" / "large").write_bytes(bytes(2000))
        (at / "link").symlink_to("nowhere")
        os.mkfifo(at / "pipe")

    def seen(at):
        return {p.relative_to(at): (e.kind, e.content, e.stamp[1]) for p, e in folders.entries(at).items()
                if not p.is_dir()}  # fmt: skip

    fresh(work)
    before, was = folders.entries(work), seen(work)
    for _ in range(2):
        (work / "a" / "file").write_bytes(b"y")
        (work / "a" / "b" / "new").mkdir()
        (work / "a" / "large").write_bytes(b"")
        (work / "link").unlink()
        (work / "link").mkdir()
        (work / "link" / "x").write_bytes(b"")
        (work / "pipe").unlink()
        (work / "pipe").write_bytes(b"")
        folders.restore(work, before)
        assert seen(work) == was
        shutil.rmtree(work / "a")
        folders.restore(work, before)
        assert seen(work) == was
        assert sorted(p.name for p in work.rglob("*")) == ["a", "b", "file", "large", "link", "pipe"]


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
