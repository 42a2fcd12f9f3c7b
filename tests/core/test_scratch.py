"""Folders for a time: gone with the block, and after a kill gone with the next; nobody else's is touched."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time

import pytest

from quambench.core.scratch import scratch, sweep

WORK = """
import sys
from quambench.core.scratch import scratch
with scratch() as folder:
    (folder / "file").write_text("half")
    print(folder, flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def place(tmp_path, monkeypatch):
    """The temporary folder, of other processes too."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    return tmp_path


@pytest.fixture
def other():
    """A process that works in a folder of its own."""
    other = subprocess.Popen([sys.executable, "-c", WORK], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert other.stdout.readline()
    yield other
    other.kill()
    other.communicate()


def test_a_folder_is_empty_private_and_gone_with_the_block(place):
    with pytest.raises(KeyboardInterrupt), scratch() as folder:
        assert [*folder.iterdir()] == []
        assert folder.parent.stat().st_mode & 0o077 == 0
        (folder / "file").touch()
        raise KeyboardInterrupt
    assert [*place.iterdir()] == []


def test_what_a_kill_left_is_swept_by_the_next(place, other):
    other.send_signal(signal.SIGKILL)
    other.wait()
    assert len([*place.iterdir()]) == 1
    with scratch() as folder:
        assert [*place.iterdir()] == [folder.parent]


def test_what_somebody_works_in_is_left_alone(place, other):
    (held,) = place.iterdir()
    with scratch():
        pass
    sweep()
    assert (held / "work" / "file").read_text() == "half"


def test_names_that_are_not_ours_and_links_are_left_alone(place, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    (elsewhere / "owner").touch()  # nobody's lock is on it
    (place / "quambench-run-link").symlink_to(elsewhere)
    (place / "quambench-run-file").touch()
    (place / "quambench-worktree-mine").mkdir()
    (place / "quambench-worktree-mine" / "owner").touch()
    sweep()
    assert len([*place.iterdir()]) == 3
    assert (elsewhere / "owner").exists()


def test_another_user_s_folder_is_left_alone(place, monkeypatch):
    (place / "quambench-run-x").mkdir()
    (place / "quambench-run-x" / "owner").touch()
    somebody = os.getuid() + 1
    monkeypatch.setattr(os, "getuid", lambda: somebody)
    sweep()
    assert len([*place.iterdir()]) == 1


def test_a_folder_that_never_had_a_lock_is_swept_by_age(place):
    for name in ("young", "old"):
        (place / f"quambench-run-{name}").mkdir()
    long_ago = time.time() - 30 * 86_400
    os.utime(place / "quambench-run-old", (long_ago, long_ago))
    sweep()
    assert [p.name for p in place.iterdir()] == ["quambench-run-young"]
