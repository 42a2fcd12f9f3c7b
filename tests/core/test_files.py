"""Files appear whole or not at all, nobody's is written through, and one process writes in a folder at a time."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from quambench_kernels import files as kernel_files
from quambench_kernels.files import ABANDONED_S, replacing, sweep

from quambench.core import files
from quambench.core.errors import NotWritten
from quambench.core.files import REMEDIES, locked, making, told, write


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


# --- one file -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("content", ["± text\n", b"\x00bytes"])
def test_what_is_written_is_there_and_nothing_else(tmp_path, content):
    path = tmp_path / "made" / "on the way" / "x.md"
    write(path, "old")
    write(path, content)
    assert path.read_bytes() == (content.encode("utf-8") if isinstance(content, str) else content)
    assert names(path.parent) == ["x.md"]


def test_text_is_utf8_whatever_the_locale_says(tmp_path):
    code = (
        "import sys, pathlib; from quambench.core.files import write; write(pathlib.Path(sys.argv[1]), 'a \\u00b1 b')"
    )
    env = os.environ | {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "x")], check=True, env=env)
    assert (tmp_path / "x").read_bytes() == "a ± b".encode()


@pytest.mark.parametrize("raised", [ValueError, KeyboardInterrupt])
def test_a_block_that_fails_leaves_the_old_file_and_nothing_beside_it(tmp_path, raised):
    path = tmp_path / "x"
    write(path, "old")
    with pytest.raises(raised), making(path) as partial:
        partial.write_text("half")
        raise raised
    assert path.read_text() == "old"
    assert names(tmp_path) == ["x"]


def test_a_link_is_replaced_and_what_it_leads_to_is_left_alone(tmp_path):
    mine = tmp_path / "mine"
    mine.write_text("mine")
    for name in ("x", "dangling"):
        (tmp_path / name).symlink_to(mine if name == "x" else tmp_path / "nowhere")
        write(tmp_path / name, "new")
        assert not (tmp_path / name).is_symlink()
    assert mine.read_text() == "mine"
    assert not (tmp_path / "nowhere").exists()


def test_a_name_that_is_taken_is_not_written_to(tmp_path, monkeypatch):
    """Names are random; whoever guesses one puts a link there in vain."""
    mine = tmp_path / "mine"
    mine.write_text("mine")
    given = iter(["a" * 16, "b" * 16])
    monkeypatch.setattr(kernel_files.secrets, "token_hex", lambda n: next(given))
    (tmp_path / f".quambench-{'a' * 16}.partial").symlink_to(mine)
    with replacing(tmp_path / "x") as partial:
        assert partial.parent.name == f".quambench-{'b' * 16}.partial"
    assert mine.read_text() == "mine"


@pytest.mark.parametrize("kind", ["folder", "fifo", "device", "link to a device"])
def test_what_is_no_file_is_not_replaced(tmp_path, kind):
    path = tmp_path / "x"
    {
        "folder": path.mkdir,
        "fifo": lambda: os.mkfifo(path),
        "device": lambda: os.mknod(path, 0o600 | 0o020000, os.makedev(1, 3)) if os.getuid() == 0 else os.mkfifo(path),
        "link to a device": lambda: path.symlink_to("/dev/null"),
    }[kind]()
    before = path.lstat()
    with pytest.raises(NotWritten, match=r"^cannot write .*x: it is a .*, not a file; name another file$"):
        write(path, "new")
    assert path.lstat() == before


def test_permissions_are_the_old_files_or_the_umasks(tmp_path):
    old = os.umask(0o027)
    try:
        write(tmp_path / "new", "x")
        with making(tmp_path / "library's") as partial:  # one that makes the file anew, for its owner alone
            partial.unlink()
            partial.touch(0o600)
    finally:
        os.umask(old)
    assert [(tmp_path / name).stat().st_mode & 0o777 for name in ("new", "library's")] == [0o640, 0o640]
    (tmp_path / "new").chmod(0o600)
    write(tmp_path / "new", "y")
    assert (tmp_path / "new").stat().st_mode & 0o777 == 0o600


def test_a_file_is_on_the_disk_before_it_has_its_name_and_then_the_name_is(tmp_path, monkeypatch):
    done = []
    monkeypatch.setattr(os, "fsync", lambda d: done.append("folder" if os.path.isdir(f"/proc/self/fd/{d}") else "file"))
    rename = os.replace
    monkeypatch.setattr(os, "replace", lambda a, b: (done.append("rename"), rename(a, b)))
    write(tmp_path / "x", "new")
    assert done == ["file", "rename", "folder"]


@pytest.mark.parametrize("refused", sorted(REMEDIES))
def test_what_the_system_refuses_is_one_line_with_the_path_and_what_to_do(tmp_path, monkeypatch, refused):
    def refusing(*_):
        raise OSError(refused, os.strerror(refused))

    write(tmp_path / "x", "old")
    monkeypatch.setattr(os, "replace", refusing)
    with pytest.raises(NotWritten) as caught:
        write(tmp_path / "x", "new")
    assert str(caught.value) == f"cannot write {tmp_path / 'x'}: {os.strerror(refused)}; {REMEDIES[refused]}"
    assert (tmp_path / "x").read_text() == "old"
    assert names(tmp_path) == ["x"]


def test_an_error_without_a_remedy_is_told_as_it_is():
    with pytest.raises(NotWritten, match=r"^cannot write x: odd$"), told(Path("x")):
        raise OSError("odd")
    with pytest.raises(NotWritten, match=r"^cannot write x: Bad address$"), told(Path("x")):
        raise OSError(errno.EFAULT, os.strerror(errno.EFAULT))


# --- what killed writers leave --------------------------------------------------------------------------

HALF = """
import sys, time
from pathlib import Path
from quambench_kernels.files import replacing
with replacing(Path(sys.argv[1])) as partial:
    partial.write_bytes(b"half")
    print("ready", flush=True)
    time.sleep(60)
"""


def half_written(path: Path) -> subprocess.Popen:
    writer = subprocess.Popen([sys.executable, "-c", HALF, str(path)], stdout=subprocess.PIPE, text=True)
    assert writer.stdout.readline() == "ready\n"
    return writer


def test_what_a_killed_writer_left_goes_with_the_next_one_and_a_living_ones_stays(tmp_path):
    killed, living = half_written(tmp_path / "x"), half_written(tmp_path / "x")
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    assert len(names(tmp_path)) == 2
    write(tmp_path / "y", "new")
    assert len(names(tmp_path)) == 2  # the living one's, and y
    living.send_signal(signal.SIGKILL)
    living.communicate()
    write(tmp_path / "y", "new")
    assert names(tmp_path) == ["y"]


def test_what_a_library_had_begun_beside_the_file_goes_too(tmp_path):
    """safetensors writes under a name of its own first."""
    code = HALF.replace('b"half")', 'b"half"); (partial.parent / ".tmpXyz").touch()')
    writer = subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "x")], stdout=subprocess.PIPE, text=True)
    assert writer.stdout.readline() == "ready\n"
    writer.send_signal(signal.SIGKILL)
    writer.communicate()
    assert len(list(tmp_path.rglob(".tmp*"))) == 1
    write(tmp_path / "y", "new")
    assert names(tmp_path) == ["y"]


def test_nothing_else_is_swept(tmp_path):
    mine = tmp_path / "mine"
    mine.write_text("mine")
    (tmp_path / ".quambench-link.partial").symlink_to(mine)
    (tmp_path / ".quambench-file.partial").touch()
    os.mkfifo(tmp_path / ".quambench-pipe.partial")
    (tmp_path / "report.partial").touch()
    before = names(tmp_path)
    assert sweep(tmp_path) == []
    assert names(tmp_path) == before
    assert sweep(tmp_path / "nowhere") == []


def test_without_locks_only_what_is_old_is_swept(tmp_path, monkeypatch):
    monkeypatch.setattr(kernel_files, "fcntl", None)
    new, old = tmp_path / ".quambench-new.partial", tmp_path / ".quambench-old.partial"
    new.mkdir()
    old.mkdir()
    then = time.time() - ABANDONED_S - 1
    os.utime(old, (then, then))
    assert sweep(tmp_path) == [old]
    write(tmp_path / "x", "written all the same")
    assert names(tmp_path) == [new.name, "x"]


def test_a_file_that_was_swept_before_it_was_locked_is_made_anew(tmp_path, monkeypatch):
    lock, swept = kernel_files._lock, []

    def late(descriptor):
        if not swept:
            swept.extend(tmp_path.glob(".quambench-*"))
            swept[0].rmdir()
        return lock(descriptor)

    monkeypatch.setattr(kernel_files, "_lock", late)
    write(tmp_path / "x", "new")
    assert swept and (tmp_path / "x").read_text() == "new"


# --- one writer of a folder at a time -------------------------------------------------------------------


def test_who_comes_second_waits_and_nothing_is_left(tmp_path):
    order, inside = [], threading.Event()

    def first():
        with locked(tmp_path / "a"):
            inside.set()
            time.sleep(0.2)  # long enough for a second one that does not wait
            order.append("first")

    thread = threading.Thread(target=first)
    thread.start()
    inside.wait()
    with locked(tmp_path / "a"):
        order.append("second")
    thread.join()
    assert order == ["first", "second"]
    assert names(tmp_path / "a") == []


def test_a_lock_that_is_never_given_back_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "WAIT_S", 0.1)
    with locked(tmp_path), pytest.raises(NotWritten, match="another run has held"), locked(tmp_path):
        pass
    with locked(tmp_path):  # and it is free again
        pass


def test_a_lock_that_a_killed_run_left_holds_nobody_up(tmp_path):
    code = "import os, sys; from pathlib import Path; from quambench.core.files import locked\n"
    code += "with locked(Path(sys.argv[1])): os._exit(9)"
    assert subprocess.run([sys.executable, "-c", code, str(tmp_path)]).returncode == 9
    assert names(tmp_path) == [files.LOCK]
    with locked(tmp_path):
        pass
    assert names(tmp_path) == []


def test_a_folder_that_cannot_be_locked_is_one_line(tmp_path):
    (tmp_path / "file").touch()
    with (
        pytest.raises(NotWritten, match=r"cannot write .*file/sub: .*; a part of the path is a file"),
        locked(tmp_path / "file" / "sub"),
    ):
        pass
