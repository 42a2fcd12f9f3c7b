"""A fork's observer against an earlier revision of it: the same verdicts, and no worktree left behind."""

from __future__ import annotations

import subprocess

import pytest

from quambench.cli.main import main

OBSERVER = """
class Mine:
    def __init__(self):
        self.amax = None

    def update(self, w):
        new = w.abs().amax(){spoilt}
        self.amax = new if self.amax is None else max(self.amax, new)

    def get_quantization_parameters(self):
        return self.amax / 127, 0
"""


@pytest.fixture
def fork(tmp_path, monkeypatch):
    """A git repository with an observer of its own, committed once; quambench itself is installed."""

    def git(*arguments):
        done = subprocess.run(["git", "-C", str(tmp_path), *arguments], capture_output=True, text=True, check=True)
        return done.stdout

    git("init", "-q", "-b", "main")
    git("config", "user.email", "someone@example.org")
    git("config", "user.name", "Someone")
    (tmp_path / "mine.py").write_text(OBSERVER.format(spoilt=""))
    git("add", "mine.py")
    git("commit", "-qm", "an observer")
    monkeypatch.chdir(tmp_path)
    return tmp_path, git


@pytest.mark.slow
def test_a_changed_observer_is_judged_against_its_committed_self(fork, world, capsys):
    folder, git = fork
    command = ["compare", "--against", "HEAD", "--model", str(world / "tiny-model"), "--corpus", str(world / "corpus")]
    command += ["--observer", "mine:Mine"]
    assert main(command) == 0
    assert "SAME" in capsys.readouterr().out
    (folder / "mine.py").write_text(OBSERVER.format(spoilt=" / 3"))
    report = folder / "out" / "report.md"
    assert main([*command, "--report", str(report)]) == 1
    out = capsys.readouterr().out
    assert "layers.0.x_proj:input" in out
    assert "scale changed" in report.read_text()
    assert len(git("worktree", "list").splitlines()) == 1
    (folder / "mine.py").write_text("class Mine: pass\n")
    assert main(command) == 1  # this side's observer is none
    assert "ERROR" in capsys.readouterr().out


@pytest.mark.parametrize(("against", "says"), [("no-such-branch", "has no revision 'no-such-branch'")])
def test_an_unknown_revision_is_one_line(fork, capsys, against, says):
    assert main(["compare", "--against", against]) == 2
    assert says in capsys.readouterr().err


def test_without_a_checkout_it_says_so(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert main(["compare", "--against", "HEAD"]) == 2
    assert "is in no git checkout" in capsys.readouterr().err


def test_a_revision_older_than_compare_is_refused(fork, capsys):
    folder, git = fork
    (folder / "quambench").mkdir()
    (folder / "quambench" / "__init__.py").write_text("")
    git("add", "quambench")
    git("commit", "-qm", "an old quambench")
    assert main(["compare", "--against", "HEAD"]) == 2
    assert "older than `quambench compare`" in capsys.readouterr().err
    assert len(git("worktree", "list").splitlines()) == 1


def test_a_worker_that_dies_is_an_error_verdict(fork, world, monkeypatch):
    from quambench import compare as module
    from quambench.gate.worker import Task

    monkeypatch.setattr(module.sys, "executable", "/bin/false")
    (verdict,) = module.compare("HEAD", [Task(str(world / "tiny-model"), ("running_max",))], fork[0])
    assert verdict.status == "ERROR"
    assert "ended: it said nothing" in verdict.reason
