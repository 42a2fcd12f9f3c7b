"""What is kept is believed only as it was written, by us, where nobody else may write; all else is made anew."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from quambench_kernels import kept, native

ELSE = 12345  # a user who is neither us nor root
HOLDS = """
import sys, time
from quambench_kernels import kept
with kept.workplace() as place:
    (place / "kernel.o").write_bytes(b"half")
    print(place, flush=True)
    time.sleep(60)
"""


@pytest.fixture(autouse=True)
def anew():
    """What a process has learnt of its compiler and folders is forgotten."""

    def forget():
        native._endless.clear()
        for learnt in (native._compiler, native._target, kept._checked, kept._say_once):
            learnt.cache_clear()

    forget()
    yield
    forget()


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv(kept.VARIABLE, str(tmp_path / "cache"))
    monkeypatch.delenv("CXX", raising=False)
    return tmp_path / "cache"


@pytest.fixture
def answer(tmp_path, folder):
    """answer(number) -> what a library says whose source says that number, built or kept."""

    def ask(number=42):
        source = tmp_path / f"op{number}" / "cpu.cpp"
        source.parent.mkdir(exist_ok=True)
        source.write_text(f'extern "C" int answer() {{ return {number}; }}\n')
        return native.load.__wrapped__(source).answer()

    return ask


@pytest.fixture
def somebody_elses(monkeypatch):
    """somebody_elses(path): it belongs to another user. Only root can give a file away; others are made another."""

    def give(path):
        if os.geteuid() == 0:
            os.chown(path, ELSE, -1)
        else:
            monkeypatch.setattr(os, "geteuid", lambda: ELSE)

    return give


def entry(folder):
    (found,) = folder.glob("*.so")
    return found


def line(capfd):
    """The one line that was said."""
    (said,) = capfd.readouterr().err.splitlines()
    return said


def spoil(file, how, seed=0):
    raw = bytearray(file.read_bytes())
    chosen = random.Random(seed)
    if how == "cut":
        raw = raw[: chosen.randrange(len(raw))]
    elif how == "empty":
        raw = bytearray()
    elif how == "longer":
        raw += b"x"
    elif how == "bit":
        raw[chosen.randrange(len(raw))] ^= 1 << chosen.randrange(8)
    else:
        at = chosen.randrange(len(raw) - 64)
        raw[at : at + 64] = chosen.randbytes(64)
    file.write_bytes(raw)


@pytest.mark.parametrize("how", ["cut", "empty", "longer", "bit", "block"])
def test_a_damaged_library_is_built_anew_and_said(answer, folder, capfd, how):
    assert answer() == 42
    whole = entry(folder).read_bytes()
    for seed in range(1 if how in ("empty", "longer") else 8):
        spoil(entry(folder), how, seed)
        assert answer() == 42
        assert line(capfd) == (
            f"quambench kernels: {entry(folder)} is not what was kept under this name (its sha256 is another): "
            "it is made anew"
        )
        assert entry(folder).read_bytes() == whole
    assert answer() == 42
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("seed", range(40))
def test_any_bit_that_differs_is_seen(folder, capfd, seed):
    kept.keep("name", b"contents")
    assert kept.read("name") == b"contents"
    spoil(folder / "name", "bit", seed)
    assert kept.read("name") is None
    assert "its sha256 is another" in line(capfd)


def test_a_library_of_another_kernel_under_this_name_does_not_run(answer, folder, capfd):
    assert answer(7) == 7
    other = entry(folder)
    assert answer() == 42
    (ours,) = set(folder.glob("*.so")) - {other}
    ours.write_bytes(other.read_bytes())
    assert answer() == 42
    assert "its sha256 is another" in line(capfd)


def test_a_kept_library_is_not_built_again(answer, monkeypatch):
    assert answer() == 42
    monkeypatch.setattr(native, "_built", lambda *_: pytest.fail("built again"))
    assert answer() == 42


def test_what_becomes_of_a_file_after_it_was_loaded_does_not_touch_the_library(answer, folder):
    assert [answer(), answer(7)] == [42, 7]  # the second is not the first, whose place in memory it takes
    assert str(folder) not in Path("/proc/self/maps").read_text(encoding="utf-8")


def test_without_memory_to_run_from_a_private_copy_is_loaded(answer, folder, monkeypatch):
    def refused(name):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "memfd_create", refused)
    assert [answer(), answer(7)] == [42, 7]
    assert str(folder) not in Path("/proc/self/maps").read_text(encoding="utf-8")


def test_somebody_elses_library_does_not_run(answer, folder, capfd, somebody_elses):
    assert answer() == 42
    somebody_elses(entry(folder))
    assert answer() == 42
    assert "belongs to somebody else (user " in line(capfd)


@pytest.mark.parametrize("mode", [0o666, 0o664, 0o646, 0o777])
def test_a_library_that_others_may_write_does_not_run(answer, folder, capfd, mode):
    assert answer() == 42
    entry(folder).chmod(mode)
    assert answer() == 42
    assert f"can be written by others (mode {mode:04o}, chmod go-w): it is made anew" in line(capfd)
    assert entry(folder).stat().st_mode & 0o777 == 0o644


@pytest.mark.parametrize("mode", [0o777, 0o775, 0o1777])
def test_a_folder_that_others_may_write_is_left_alone(answer, folder, capfd, mode):
    folder.mkdir()
    folder.chmod(mode)
    assert [answer(), answer(7)] == [42, 7]
    assert line(capfd) == (
        f"quambench kernels: {folder} can be written by others (mode {mode:04o}, chmod go-w): "
        "what is built serves this process alone; $QUAMBENCH_KERNELS_CACHE names another"
    )
    assert not list(folder.iterdir())


def test_somebody_elses_folder_is_left_alone(answer, folder, capfd, somebody_elses):
    folder.mkdir()
    somebody_elses(folder)
    assert answer() == 42
    assert f"{folder} belongs to somebody else (user " in line(capfd)
    assert not list(folder.iterdir())


def test_what_we_make_is_ours_alone_under_any_umask(answer, folder, capfd):
    before = os.umask(0o002)
    try:
        assert [answer(), answer()] == [42, 42]
    finally:
        os.umask(before)
    assert folder.stat().st_mode & 0o777 == 0o700
    assert entry(folder).stat().st_mode & 0o777 == 0o644
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("kind", ["link", "pipe", "folder"])
def test_what_is_no_file_is_not_read(answer, folder, capfd, tmp_path, kind):
    assert answer() == 42
    file = entry(folder)
    whole = file.rename(tmp_path / "elsewhere")
    if kind == "link":
        file.symlink_to(whole)
    elif kind == "pipe":
        os.mkfifo(file)
    else:
        file.mkdir()
    assert answer() == 42
    said = capfd.readouterr().err.splitlines()
    assert said[0].endswith(": it is made anew")
    if kind == "folder":  # nothing of somebody's is removed for it
        assert said[1].endswith("cannot be used (Is a directory): it is made again next time")
    else:
        assert (len(said), file.is_file(), file.is_symlink()) == (1, True, False)
    assert whole.stat().st_size > 0


def test_a_full_disk_costs_only_the_build(answer, folder, capfd, monkeypatch):
    def full(at):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    assert answer() == 42
    assert line(capfd).endswith("cannot be used (No space left on device): it is made again next time")
    assert not list(folder.iterdir())


def test_a_cache_that_is_a_file_and_no_home_cost_only_the_build(answer, folder, capfd, monkeypatch):
    folder.write_text("a file")
    assert [answer(), answer()] == [42, 42]
    assert f"{folder} cannot be used (File exists): what is built serves this process alone" in line(capfd)
    monkeypatch.delenv(kept.VARIABLE)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)

    def homeless():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", homeless)
    assert [answer(), answer()] == [42, 42]
    assert "there is no cache folder (Could not determine home directory.)" in line(capfd)


def hold(folder):
    """A process at work, and its folder."""
    environment = os.environ | {kept.VARIABLE: str(folder)}
    process = subprocess.Popen([sys.executable, "-c", HOLDS], env=environment, stdout=subprocess.PIPE, text=True)
    return process, Path(process.stdout.readline().strip())


def end(process):
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()


def test_what_a_killed_build_left_is_swept_and_what_is_alive_is_not(folder):
    killed, alive = hold(folder), hold(folder)
    assert {p for _, p in (killed, alive)} == set(folder.iterdir())
    assert all(place.stat().st_mode & 0o777 == 0o700 for place in folder.iterdir())
    end(killed[0])
    kept.read("anything")
    assert list(folder.iterdir()) == [alive[1]]
    assert (alive[1] / "kernel.o").read_bytes() == b"half"
    end(alive[0])
    kept._checked.cache_clear()
    kept.read("anything")
    assert not list(folder.iterdir())


def test_without_a_lock_age_tells_and_what_is_not_ours_stays(folder, somebody_elses):
    long_ago = time.time() - kept.ABANDONED - 60
    for name in ("building-old", "asking-old", "building-young", "building-else", "something"):
        (folder / name).mkdir(parents=True)
        if name != "building-young":
            os.utime(folder / name, (long_ago, long_ago))
    (folder / "building-link").symlink_to(folder / "something")
    if os.geteuid() == 0:
        somebody_elses(folder / "building-else")
    kept.read("anything")
    left = {"building-young", "building-link", "something"} | ({"building-else"} if os.geteuid() == 0 else set())
    assert {p.name for p in folder.iterdir()} == left


SAYS = {
    "rubbish": (r"printf '\377\376error \033[31m\007\200\n' >&2; exit 1", "c++ failed: ��error [31m �"),
    "nothing": ("exit 3", "c++ failed: it ended with 3 and said nothing"),
    "a megabyte": ("head -c 1000000 /dev/zero | tr '\\0' x >&2; exit 1", "c++ failed: " + "x" * 200),
    "no library": ("exit 0", "c++ ended as if all were well and made no kernel.o"),
    "no end": ("sleep 60 & echo $! >&2; wait", "c++ did not end within 1 s"),
    "no end of words": ("yes error >&2", "c++ did not end within 1 s"),
    "killed": ("kill -9 $$", "c++ failed: it ended with -9 and said nothing"),
}


@pytest.mark.parametrize("what", SAYS)
def test_whatever_a_compiler_does_is_one_line(answer, folder, tmp_path, monkeypatch, what):
    does, says = SAYS[what]
    file = tmp_path / "c++"
    file.write_text(f"#!/bin/sh\n{does}\n")
    file.chmod(0o755)
    monkeypatch.setenv("CXX", str(file))
    monkeypatch.setattr(native, "PATIENCE", 1.0)
    started = time.monotonic()
    for _ in range(3):  # one that hangs is not waited for again
        with pytest.raises(native.BuildError) as caught:
            answer()
        assert str(caught.value) == says
    assert time.monotonic() - started < 5
    assert not list(folder.rglob("*"))


def test_what_a_compiler_that_hangs_has_started_ends_with_it(answer, tmp_path, monkeypatch):
    file, child = tmp_path / "c++", tmp_path / "child"
    file.write_text(f"#!/bin/sh\nsleep 60 &\necho $! > {child}\nwait\n")
    file.chmod(0o755)
    monkeypatch.setenv("CXX", str(file))
    monkeypatch.setattr(native, "PATIENCE", 1.0)
    with pytest.raises(native.BuildError):
        answer()
    stat = Path(f"/proc/{child.read_text().strip()}/stat")
    until = time.monotonic() + 5
    while time.monotonic() < until and stat.exists() and stat.read_text().split()[2] != "Z":
        time.sleep(0.01)
    assert not stat.exists() or stat.read_text().split()[2] == "Z"  # nobody may be there to bury it


@pytest.mark.parametrize(
    ("named", "says"),
    [
        ('g++ "', '$CXX cannot be split into words (No closing quotation): g++ "'),
        ("g++ \\", "$CXX cannot be split into words (No escaped character): g++ \\"),
        ("'g\n++'", "no C++ compiler ($CXX is 'g ++' was not found)"),
        ("''", "no C++ compiler ($CXX is '' was not found)"),
    ],
)
def test_a_name_that_is_no_compiler_is_one_line(answer, monkeypatch, named, says):
    monkeypatch.setenv("CXX", named)
    with pytest.raises(native.BuildError) as caught:
        answer()
    assert str(caught.value) == says


def test_a_library_that_cannot_be_loaded_is_one_line_and_not_kept(answer, folder, tmp_path, monkeypatch):
    file = tmp_path / "c++"
    file.write_text('#!/bin/sh\nfor last; do :; done; echo rubbish > "$last"\n')
    file.chmod(0o755)
    monkeypatch.setenv("CXX", str(file))
    with pytest.raises(native.BuildError, match=r"^op42: [^\n]*(invalid ELF header|file too short)"):
        answer()
    assert not list(folder.iterdir())
