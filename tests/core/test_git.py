"""git in real repositories and real hooks: nothing of theirs changes, and what git says is passed on."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from quambench.core import git
from quambench.core.errors import GitFailed
from quambench.core.git import State

# What a hook runs: the files of HEAD, and the state; told beside the repository.
HOOK = f"""#!{sys.executable}
from pathlib import Path
from quambench.core import git
with git.revision(Path.cwd(), "HEAD") as (root, tree):
    told = [root, (tree / "file").read_text().strip(), (root / "file").read_text().strip()]
print(*told, git.state(Path.cwd()).dirty, file=open({{told!r}}, "a"))
"""


@pytest.fixture(autouse=True)
def plain(monkeypatch, tmp_path):
    """Settings of nobody's; a temporary folder in which anything left would be seen."""
    for name in [name for name in os.environ if name.startswith("GIT_")]:
        monkeypatch.delenv(name)
    (tmp_path / "settings").write_text("[user]\n\tname = Someone\n\temail = someone@example.org\n")
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(tmp_path / "settings"))
    monkeypatch.setenv("GIT_CONFIG_NOSYSTEM", "1")
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path))


@pytest.fixture
def call():
    """git as its user calls it."""

    def call(folder, *arguments, **environment):
        command = ["git", "-C", str(folder), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, env=os.environ | environment)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    return call


@pytest.fixture
def repository(tmp_path, call):
    """One commit of two files; `file` says old."""
    root = tmp_path / "repository"
    root.mkdir()
    call(root, "init", "-q", "-b", "main")
    (root / "file").write_text("old\n")
    (root / "other").write_text("other\n")
    call(root, "add", ".")
    call(root, "commit", "-qm", "one")
    return root


@pytest.fixture
def hook(repository, tmp_path):
    """hook(name): install it; returns what it told, line by line, when called."""
    told = tmp_path / "told"

    def hook(name):
        file = repository / ".git" / "hooks" / name
        file.parent.mkdir(exist_ok=True)
        file.write_text(HOOK.format(told=str(told)))
        file.chmod(0o755)
        return lambda: told.read_text().splitlines()

    return hook


def files_of(folder: Path) -> dict[str, str]:
    return {
        str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in folder.rglob("*")
        if p.is_file() and not p.is_symlink()
    }


COMMITS = {
    "-a": ["-a"],
    "a path": ["file"],
    "--only": ["--only", "file"],
    "--include": ["--include", "file"],
    "--amend": ["-a", "--amend"],
}


@pytest.mark.parametrize("linked", [False, True], ids=["checkout", "linked worktree"])
@pytest.mark.parametrize("options", COMMITS.values(), ids=COMMITS)
def test_a_commit_whose_hook_compares_holds_what_it_was_to_hold(call, repository, hook, tmp_path, options, linked):
    told, root = hook("pre-commit"), repository
    if linked:
        root = tmp_path / "linked"
        call(repository, "worktree", "add", "-q", str(root), "-b", "side")
    (root / "file").write_text("new\n")
    call(root, "commit", "-qm", "two", *options)
    assert told() == [f"{root} old new True"]
    assert call(root, "show", "HEAD:file") == "new"
    assert call(root, "status", "--porcelain") == ""
    assert len(call(root, "worktree", "list").splitlines()) == 1 + linked


def test_a_plain_commit_leaves_what_is_not_staged_as_it_is(call, repository, hook):
    told = hook("pre-commit")
    (repository / "file").write_text("staged\n")
    call(repository, "add", "file")
    (repository / "file").write_text("not staged\n")
    call(repository, "commit", "-qm", "two")
    assert told() == [f"{repository} old not staged True"]
    assert call(repository, "show", "HEAD:file") == "staged"
    assert call(repository, "status", "--porcelain") == "M file"


def test_a_rebase_that_runs_it_after_each_commit_goes_on(call, repository, tmp_path):
    for number in (1, 2):
        (repository / "file").write_text(f"{number}\n")
        call(repository, "commit", "-qam", f"{number}")
    script, told = tmp_path / "script", tmp_path / "told"
    script.write_text(HOOK.format(told=str(told)))
    script.chmod(0o755)
    call(repository, "rebase", "-q", "--force-rebase", "-x", str(script), "HEAD~2", GIT_SEQUENCE_EDITOR="true")
    assert told.read_text().splitlines() == [f"{repository} {n} {n} False" for n in (1, 2)]
    assert call(repository, "show", "HEAD:file") == "2"
    assert call(repository, "status", "--porcelain") == ""


def test_a_receiving_repository_is_not_taken_for_the_one_asked_about(call, repository, tmp_path):
    """As a server's pre-receive hook does: objects in quarantine, GIT_DIR of the server."""
    server, told = tmp_path / "server.git", tmp_path / "told"
    call(tmp_path, "clone", "-q", "--bare", str(repository), str(server))
    hook = server / "hooks" / "pre-receive"
    hook.parent.mkdir(exist_ok=True)
    hook.write_text(HOOK.format(told=str(told)).replace("Path.cwd()", f"Path({str(repository)!r})"))
    hook.chmod(0o755)
    call(repository, "commit", "-q", "--allow-empty", "-m", "two")
    call(repository, "push", "-q", str(server), "main")
    assert told.read_text().splitlines() == [f"{repository} old old False"]
    pushed = call(repository, "rev-parse", "HEAD")
    assert call(server, "rev-parse", "main") == pushed
    call(server, "fsck", "--strict")


def test_no_variable_of_the_caller_names_another_repository(call, repository, monkeypatch, tmp_path):
    other = tmp_path / "other"
    for name, value in {
        "GIT_DIR": other / ".git", "GIT_WORK_TREE": other, "GIT_INDEX_FILE": other / "index", "GIT_PREFIX": "sub/",
        "GIT_OBJECT_DIRECTORY": other, "GIT_COMMON_DIR": other, "GIT_NAMESPACE": "x", "GIT_EXTERNAL_DIFF": "false",
        "GIT_CONFIG_PARAMETERS": "'core.bare'='true'", "GIT_CONFIG_COUNT": "1", "GIT_CONFIG_KEY_0": "core.bare",
        "GIT_CONFIG_VALUE_0": "true", "GIT_EXEC_PATH": other, "GIT_TRACE": "1", "LANG": "de_DE.UTF-8",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, str(value))
    with git.revision(repository, "HEAD") as (root, tree):
        assert root == repository
        assert sorted(p.name for p in tree.iterdir()) == ["file", "other"]
    assert git.state(repository).dirty is False
    assert not other.exists()


@pytest.fixture
def hostile(call, repository, tmp_path):
    """A repository that names a program wherever git would run one; returns it and the file that they would make."""
    ran = tmp_path / "ran"
    program = tmp_path / "program"
    program.write_text(f'#!/bin/sh\necho "$0 $@" >> {ran}\ncat\n')
    program.chmod(0o755)
    (repository / ".gitattributes").write_text("file filter=theirs diff=theirs\n")
    call(repository, "add", ".gitattributes")
    call(repository, "commit", "-qm", "attributes")
    hooks = repository / "their-hooks"
    hooks.mkdir()
    for name in ("post-checkout", "post-index-change", "reference-transaction", "pre-auto-gc", "fsmonitor-watchman"):
        shutil.copy(program, hooks / name)
    for name in (
        "core.fsmonitor", "core.pager", "core.editor", "core.askPass", "core.sshCommand", "diff.external",
        "diff.theirs.textconv", "diff.theirs.command", "filter.theirs.smudge", "filter.theirs.clean", "pager.status",
    ):  # fmt: skip
        call(repository, "config", name, str(program))
    for name in ("status", "rev-parse", "read-tree", "config"):
        call(repository, "config", f"alias.{name}", f"!{program}")
    call(repository, "config", "credential.helper", f"!{program}")
    call(repository, "config", "filter.theirs.required", "true")
    call(repository, "config", "core.hooksPath", str(hooks))
    call(repository, "config", "core.splitIndex", "true")
    call(repository, "config", "core.sparseCheckout", "true")
    (repository / ".git" / "info" / "sparse-checkout").write_text("/other\n")
    os.utime(repository / "file", (1, 1))  # a status has to look into it
    return repository, ran


def test_no_program_that_a_repository_names_is_run_and_nothing_in_it_changes(hostile):
    repository, ran = hostile
    before = files_of(repository)
    with git.revision(repository, "HEAD") as (_root, tree):
        assert (tree / "file").read_text() == "old\n"  # a sparse checkout of theirs is none of ours
    git.state(repository)
    assert not ran.exists(), ran.read_text()
    assert files_of(repository) == before


def test_the_hostile_repository_is_hostile(hostile, call):
    repository, ran = hostile
    call(repository, "status")
    assert ran.exists()


def test_a_filter_of_the_user_s_own_settings_serves_both_sides(call, repository, tmp_path):
    """As git-lfs does: what lies in the folder is not what is committed."""
    call(repository, "config", "--global", "filter.loud.smudge", "tr a-z A-Z")
    call(repository, "config", "--global", "filter.loud.clean", "tr A-Z a-z")
    (repository / ".gitattributes").write_text("file filter=loud\n")
    call(repository, "add", ".")
    call(repository, "commit", "-qm", "attributes")
    (repository / "file").write_text("OLD\n")
    with git.revision(repository, "HEAD") as (_root, tree):
        assert (tree / "file").read_text() == "OLD\n"
    assert git.state(repository).dirty is False
    call(repository, "config", "filter.loud.smudge", f"touch {tmp_path / 'ran'}; cat")  # theirs does not replace it
    with git.revision(repository, "HEAD") as (_root, tree):
        assert (tree / "file").read_text() == "OLD\n"
    assert not (tmp_path / "ran").exists()


def test_what_only_a_filter_of_the_repository_could_tell_is_unknown(call, repository):
    call(repository, "config", "filter.loud.smudge", "tr a-z A-Z")
    call(repository, "config", "filter.loud.clean", "tr A-Z a-z")
    (repository / ".gitattributes").write_text("file filter=loud\n")
    call(repository, "add", ".")
    call(repository, "commit", "-qm", "attributes")
    assert git.state(repository).dirty is False
    (repository / "file").write_text("OLD AND NEW\n")
    assert git.state(repository).dirty == "unknown"


def test_a_look_at_the_state_leaves_the_index_to_its_owner(call, repository):
    os.utime(repository / "file", (1, 1))  # an index that git would write anew
    before = (repository / ".git" / "index").stat()
    assert git.state(repository).dirty is False
    after = (repository / ".git" / "index").stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


def test_the_state_is_of_the_repository_that_tracks_the_folder(call, repository):
    commit = call(repository, "rev-parse", "HEAD")[:12]
    assert git.state(repository) == State(commit, False)
    (repository / "untracked").mkdir()
    (repository / "untracked" / "site-packages").mkdir()
    assert git.state(repository) == State(commit, False)
    assert git.state(repository / "untracked" / "site-packages") == State()  # it lies there, and is not of that commit
    (repository / "file").write_text("new\n")
    assert git.state(repository) == State(commit, True)
    call(repository, "checkout", "-q", "file")
    call(repository, "rm", "-q", "--cached", "other")
    assert git.state(repository) == State(commit, True)


def test_what_git_cannot_tell_is_unknown(call, tmp_path, monkeypatch):
    assert git.state(tmp_path) == State("unknown", "unknown")  # no repository
    call(tmp_path, "init", "-q")
    assert git.state(tmp_path) == State("unknown", "unknown")  # no commit
    call(tmp_path, "commit", "-q", "--allow-empty", "-m", "one")
    assert git.state(tmp_path).dirty is False
    (tmp_path / ".git" / "index").write_bytes(b"broken")
    assert git.state(tmp_path) == State(call(tmp_path, "rev-parse", "HEAD")[:12], "unknown")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert git.state(tmp_path) == State("unknown", "unknown")  # no git


def test_a_change_in_a_submodule_is_a_change(call, repository, tmp_path):
    inner = tmp_path / "inner"
    shutil.copytree(repository, inner)
    call(repository, "-c", "protocol.file.allow=always", "submodule", "--quiet", "add", str(inner), "part")
    call(repository, "commit", "-qm", "a part")
    assert git.state(repository).dirty is False
    (repository / "part" / "file").write_text("new\n")
    assert git.state(repository).dirty is True


# --- what git says -------------------------------------------------------------------------------------


def said(folder, name="HEAD"):
    with pytest.raises(GitFailed) as error, git.revision(folder, name):
        pass
    assert "\n" not in str(error.value)
    return str(error.value)


def test_no_checkout_is_one_line(tmp_path, repository):
    words = "(git: not a git repository (or any of the parent directories): .git)"
    assert said(tmp_path) == f"{tmp_path} is in no git checkout {words}"
    assert said(repository / ".git").startswith(
        f"{repository / '.git'} is in no git checkout (git: this operation must"
    )


@pytest.mark.parametrize("name", ["no-such-branch", "HEAD~7", "HEAD:file", "main..main", "^main", "--all", "-h", ""])
def test_no_such_revision_is_one_line(repository, name):
    text = said(repository, name)
    assert text.startswith(f"{repository} has no revision {name!r}; git log --all shows those it has (git: ")


def test_a_shallow_clone_is_told_with_its_remedy(call, repository, tmp_path):
    call(repository, "commit", "-q", "--allow-empty", "-m", "two")
    call(tmp_path, "clone", "-q", "--depth", "1", f"file://{repository}", "shallow")
    text = said(tmp_path / "shallow", "HEAD~1")
    assert "has no revision 'HEAD~1'; the clone is shallow: git fetch --unshallow (git: bad revision 'HEAD~1'" in text


def test_a_partial_clone_fetches_nothing_and_says_what_would(call, repository, tmp_path):
    call(repository, "config", "uploadpack.allowFilter", "true")
    call(repository, "config", "uploadpack.allowAnySHA1InWant", "true")
    call(tmp_path, "clone", "-q", "--no-checkout", "--filter=blob:none", f"file://{repository}", "partial")
    before = files_of(tmp_path / "partial")
    text = said(tmp_path / "partial")
    assert "does not hold all files of 'HEAD'; a partial clone has it all after `git archive HEAD" in text
    assert files_of(tmp_path / "partial") == before
    subprocess.run("git archive HEAD > /dev/null", shell=True, cwd=tmp_path / "partial", check=True)
    with git.revision(tmp_path / "partial", "HEAD") as (_root, tree):
        assert (tree / "file").read_text() == "old\n"


def test_a_harmed_repository_is_told_in_git_s_words(call, repository):
    blob = call(repository, "rev-parse", "HEAD:file")
    (repository / ".git" / "objects" / blob[:2] / blob[2:]).unlink()
    assert f"does not hold all files of 'HEAD' (git: unable to read sha1 file of file ({blob})" in said(repository)


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give a folder to somebody else")
def test_a_foreign_owner_is_told_in_git_s_words(repository):
    os.chown(repository, 65534, 65534)
    os.chown(repository / ".git", 65534, 65534)
    text = said(repository)
    assert text.startswith(f"git refuses to read the checkout of {repository} (git: detected dubious ownership in")
    assert ", call: git config --global --add safe.directory" in text
    assert git.state(repository) == State()


def test_no_git_is_one_line(repository, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert said(repository).startswith("git is not installed")


def test_a_git_that_hangs_is_one_line(repository, monkeypatch, tmp_path):
    slow = tmp_path / "bin" / "git"
    slow.parent.mkdir()
    slow.write_text("#!/bin/sh\nsleep 600\n")
    slow.chmod(0o755)
    monkeypatch.setenv("PATH", f"{slow.parent}{os.pathsep}{os.environ['PATH']}")
    with pytest.raises(GitFailed, match=r"git status in .* took longer than 0\.3 s"):
        git.run(repository, "status", timeout=0.3)


def test_git_speaks_the_language_that_is_read_here(repository, monkeypatch, tmp_path):
    teller = tmp_path / "bin" / "git"
    teller.parent.mkdir()
    teller.write_text("#!/bin/sh\nenv\n")
    teller.chmod(0o755)
    monkeypatch.setenv("PATH", f"{teller.parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("LC_ALL", "de_DE.UTF-8")
    monkeypatch.setenv("LANGUAGE", "de")
    assert {"LC_ALL=C", "LANGUAGE=C"} <= set(git.run(repository, "status").splitlines())


def test_every_git_goes_through_one_place():
    package = Path(git.__file__).parents[1]
    callers = [p.name for p in package.rglob("*.py") if '"git"' in p.read_text(encoding="utf-8")]
    assert callers == ["git.py"]
