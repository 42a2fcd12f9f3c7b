"""A fork's observer against an earlier revision of it: the same verdicts, and nothing left behind."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import quambench
from quambench.cli.main import main
from quambench.compare import compare as comparing
from quambench.compare.worker import Task

OBSERVER = """
class Mine:
    def __init__(self):
        self.amax = None

    def update(self, w):
        print("{{}}" * 500)  # as people do
        new = w.abs().amax(){spoilt}
        self.amax = new if self.amax is None else max(self.amax, new)

    def get_quantization_parameters(self):
        return self.amax / 127, 0
"""


@pytest.fixture
def git(tmp_path):
    """git in a fresh repository."""

    def git(*arguments):
        done = subprocess.run(["git", "-C", str(tmp_path), *arguments], capture_output=True, text=True, check=True)
        return done.stdout

    git("init", "-q", "-b", "main")
    git("config", "user.email", "someone@example.org")
    git("config", "user.name", "Someone")
    return git


@pytest.fixture
def fork(tmp_path, git, monkeypatch):
    """A git repository with an observer of its own, committed once; quambench itself is installed."""
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


@pytest.mark.slow
def test_a_hook_that_judges_leaves_the_commit_as_it_was_meant(fork, world, tmp_path_factory):
    """The whole command, as `git commit -a` runs it: with GIT_INDEX_FILE and its companions set."""
    folder, git = fork
    out = tmp_path_factory.mktemp("out") / "said"
    given = f"--model {world / 'tiny-model'} --corpus {world / 'corpus'} --observer mine:Mine"
    path = os.pathsep.join(p for p in sys.path if p)
    hook = folder / ".git" / "hooks" / "pre-commit"
    hook.parent.mkdir(exist_ok=True)
    command = f"PYTHONPATH='{path}' {sys.executable} -m quambench.cli.main compare --against HEAD {given}"
    hook.write_text(f"#!/bin/sh\n{command} > {out}\n")
    hook.chmod(0o755)
    changed = OBSERVER.format(spoilt=" * 1")
    (folder / "mine.py").write_text(changed)
    git("commit", "-qam", "a change that changes nothing")
    assert "SAME" in out.read_text()
    assert git("show", "HEAD:mine.py") == changed
    assert git("status", "--porcelain", "--untracked-files=no") == ""


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


def test_what_could_not_be_measured_is_named_without_a_folder_of_the_users(fork, world, capsys):
    folder, git = fork
    (folder / "quambench" / "gate").mkdir(parents=True)
    for file in ("__init__.py", "gate/__init__.py"):
        (folder / "quambench" / file).write_text("")
    (folder / "quambench" / "gate" / "worker.py").write_text("import sys; sys.exit('this one was asked')\n")
    git("add", "quambench")
    git("commit", "-qm", "a worker that ends")
    assert main(["compare", "--against", "HEAD", "--model", str(world / "tiny-model")]) == 1
    told = capsys.readouterr().out
    assert "this one was asked" in told
    assert "ERROR tiny-model/running_max: " in told
    assert str(world) not in told


def test_a_worker_that_dies_is_an_error_verdict(fork, world, monkeypatch):
    monkeypatch.setattr(comparing.sys, "executable", "/bin/false")
    (verdict,) = comparing.compare("HEAD", [Task(str(world / "tiny-model"), ("running_max",))], fork[0])
    assert verdict.status == "ERROR"
    assert "ended: it said nothing" in verdict.reason


@pytest.fixture
def checkout(tmp_path, git):
    """A git repository with a copy of quambench in it; returns `rewrite(file, old, new)` and `commit()`."""
    leave = shutil.ignore_patterns("__pycache__", "*-tiny", "*-recall")
    shutil.copytree(Path(quambench.__file__).parent, tmp_path / "quambench", ignore=leave)

    def rewrite(file, old, new):
        path = tmp_path / "quambench" / file
        assert path.read_text().count(old) == 1
        path.write_text(path.read_text().replace(old, new))

    def commit():
        git("add", "quambench")
        git("commit", "-qm", "a revision")

    return rewrite, commit


@pytest.mark.slow
def test_a_unit_that_answers_its_probe_otherwise_is_named(checkout, tmp_path, world):
    rewrite, commit = checkout
    # Both revisions lack the floor, whose probe comes first: not as stored, but no difference.
    rewrite("grids/grid.py", "MIN_SCALE = 1e-6", "MIN_SCALE = 0.0")
    commit()
    rewrite("grids/grid.py", '"half_even": torch.round', '"half_even": lambda x: torch.floor(x + 0.5)')
    task, notes = Task(str(world / "tiny-model"), ("running_max",), str(world / "corpus")), []
    (verdict,) = comparing.compare("HEAD", [task], tmp_path, note=notes.append)
    assert not verdict.passes()
    assert verdict.unit == "grid/half_even"
    assert "answers its probe otherwise than at HEAD (8 bits: [" in verdict.reason
    assert not notes


@pytest.mark.slow
def test_a_revision_that_knows_no_probes_is_compared_without(checkout, tmp_path, world):
    rewrite, commit = checkout
    rewrite("compare/worker.py", "request = json.loads(line)", "request = int(line)")
    commit()
    rewrite("compare/worker.py", "request = int(line)", "request = json.loads(line)")
    rewrite("grids/grid.py", "MIN_SCALE = 1e-6", "MIN_SCALE = 0.0")  # a floor that no site reaches
    task, notes = Task(str(world / "tiny-model"), ("running_max",), str(world / "corpus")), []
    (verdict,) = comparing.compare("HEAD", [task], tmp_path, note=notes.append)
    assert verdict.unit == "grid/scale"
    assert "otherwise than stored" in verdict.reason
    (note,) = notes
    assert "probes of HEAD and now cannot be compared" in note


@pytest.fixture
def ask(tmp_path):
    """Ask a worker twice that is nothing but the given line of code."""

    def ask(line):
        folder = tmp_path / "quambench" / "gate"
        folder.mkdir(parents=True)
        (folder.parent / "__init__.py").touch()
        (folder / "__init__.py").touch()
        (folder / "worker.py").write_text(
            f"import sys\nfor request in sys.stdin:\n    {line}\n    sys.stdout.flush()\n"
        )
        with comparing._worker(tmp_path, tmp_path, "{}") as worker:
            return worker.ask(0, "file"), worker.ask(1, "file")

    return ask


@pytest.mark.parametrize("printed", ["Hello", "3", '{"other": 1}'])
def test_what_is_no_answer_is_one_line_and_the_end(ask, printed):
    first, second = ask(f"print({printed!r})")
    assert first == second
    assert first == f"the process that measures it printed {printed!r} where its answer was due"


def test_a_worker_may_say_much_on_stderr(ask):
    answers = ask("""print("x" * 200_000 + "\\nlast", file=sys.stderr); print('{"file": "here"}')""")
    assert answers == ({"file": "here"}, {"file": "here"})


def test_a_worker_s_last_line_is_quoted(ask):
    first, second = ask("""print("x" * 200_000 + "\\nthe end", file=sys.stderr); sys.exit(1)""")
    assert first == second == "the process that measures it ended: the end"
