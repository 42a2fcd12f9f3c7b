"""git, asked about somebody's repository. Nothing of theirs is changed, and no program that they name is run.

A hook hands its own index and repository on in GIT_* variables, and a repository's configuration may name programs
(a monitor of files, hooks, filters). Neither reaches git from here. git neither prompts nor uses the network.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from textwrap import shorten
from typing import Literal

from quambench.core import processes
from quambench.core.errors import GitFailed
from quambench.core.scratch import scratch

# What the caller's environment may say: where no repository is looked for, and which files are the user's own settings.
_KEPT = (
    "GIT_CEILING_DIRECTORIES",
    "GIT_DISCOVERY_ACROSS_FILESYSTEM",
    "GIT_CONFIG_GLOBAL",
    "GIT_CONFIG_SYSTEM",
    "GIT_CONFIG_NOSYSTEM",
)
_OWN = {
    "LC_ALL": "C",  # its words are read here
    "LANGUAGE": "C",
    "GIT_OPTIONAL_LOCKS": "0",  # looking at a status rewrites no index
    "GIT_TERMINAL_PROMPT": "0",
    "GIT_ASKPASS": "",
    "GIT_ALLOW_PROTOCOL": "none",  # a partial clone fetches nothing in passing
    "GIT_NO_LAZY_FETCH": "1",
    "GIT_PAGER": "cat",
}
_SETTINGS = {
    "core.fsmonitor": "false",
    "core.hooksPath": os.devnull,
    "core.pager": "cat",
    "core.askPass": "",
    "core.sshCommand": "false",
    "credential.helper": "",
    "diff.external": "",
    "protocol.allow": "never",
    "submodule.recurse": "false",
    "gc.auto": "0",
    "maintenance.auto": "false",
}
# For an index of ours: whole, in one file (a shared one would lie in their repository).
_OWN_INDEX = {"core.splitIndex": "false", "core.sparseCheckout": "false", "index.sparse": "false"}
_QUICK, _CHECKOUT = 60.0, 600.0  # s

Unknown = Literal["unknown"]


@dataclass(frozen=True, slots=True)
class State:
    """The code that lies in a folder. "unknown" is whatever git cannot tell; it does not count as clean."""

    commit: str = "unknown"  # 12 digits
    dirty: bool | Unknown = "unknown"  # whether a tracked file differs from the commit


def without_repository(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the environment without git's variables for a repository, index or settings, as a hook would set them."""
    return {name: value for name, value in environment.items() if not name.startswith("GIT_") or name in _KEPT}


def run(
    folder: Path,
    *arguments: str,
    settings: Mapping[str, str] | None = None,
    environment: Mapping[str, str] | None = None,
    timeout: float = _QUICK,
) -> str:
    """Run a git command in a folder and return its output without the last line break.

    settings, environment  come on top of those that every command has
    timeout                s
    raises GitFailed
    """
    given = (part for name, value in (_SETTINGS | dict(settings or {})).items() for part in ("-c", f"{name}={value}"))
    try:
        done = processes.run(
            ["git", "--no-pager", *given, "-C", str(folder), *arguments],
            timeout=timeout,
            errors="surrogateescape",  # a path is what it is
            env=without_repository(os.environ) | _OWN | dict(environment or {}),
        )
    except FileNotFoundError:
        raise GitFailed("git is not installed, or not on PATH; install it to have code compared or named") from None
    except OSError as error:
        raise GitFailed(f"git cannot be run: {error.strerror}") from None
    except subprocess.TimeoutExpired:
        raise GitFailed(f"git {arguments[0]} in {folder} took longer than {timeout:g} s") from None
    if done.returncode:
        raise GitFailed(f"git {arguments[0]} failed in {folder}", _words(done.stderr) or "nothing was said")
    return done.stdout.removesuffix("\n")


def root_of(folder: Path) -> Path:
    """Return the top of the checkout that a folder lies in. raises GitFailed"""
    try:
        return Path(run(folder, "rev-parse", "--show-toplevel"))
    except GitFailed as error:
        if not error.words:
            raise
        none = error.words.startswith(("not a git repository", "this operation must be run in a work tree"))
        told = f"{folder} is in no git checkout" if none else f"git refuses to read the checkout of {folder}"
        raise GitFailed(told, error.words) from None


def holds(root: Path, *files: str) -> bool:
    """Whether all these files are tracked in the checkout whose top is `root`."""
    try:
        return root_of(root) == root and bool(run(root, "ls-files", "--error-unmatch", "--", *files))
    except GitFailed:
        return False


def state(folder: Path) -> State:
    """Return the commit of the checkout that tracks a folder, and whether tracked files were changed since.

    A folder that merely lies inside of a checkout, untracked, is not of that commit: unknown.
    """
    try:
        root = root_of(folder)
        run(folder, "rev-parse", "--verify", "--quiet", "HEAD:./")
        commit = run(root, "rev-parse", "--verify", "--quiet", "HEAD")[:12]
    except GitFailed:
        return State()
    try:
        return State(commit, _is_dirty(root))
    except GitFailed:
        return State(commit)


@contextmanager
def revision(folder: Path, name: str) -> Iterator[tuple[Path, Path]]:
    """Yield (top of the checkout that `folder` lies in, a folder with the files of revision `name`).

    Nothing is written into the repository, not even an entry of a worktree: git reads it with an index of ours. The
    folder goes away with the block. raises GitFailed
    """
    root = root_of(folder)
    commit = _commit(root, name)
    with scratch() as own:
        tree = own / "tree"
        tree.mkdir()
        own_index = {"GIT_INDEX_FILE": str(own / "index"), "GIT_WORK_TREE": str(tree)}
        git_dir = run(root, "rev-parse", "--absolute-git-dir")
        try:
            run(
                tree,
                "read-tree",
                "-m",
                "-u",
                commit,
                settings=_OWN_INDEX | _filters_off(root),
                environment=own_index | {"GIT_DIR": git_dir},
                timeout=_CHECKOUT,
            )
        except GitFailed as error:
            if not error.words:
                raise
            remedy = "; a partial clone has it all after `git archive {commit} > /dev/null`"
            partial = remedy.format(commit=name) if "promisor" in error.words or "not allowed" in error.words else ""
            raise GitFailed(f"{root} does not hold all files of {name!r}{partial}", error.words) from None
        yield root, tree


def _commit(root: Path, name: str) -> str:
    """Return the full hash of the commit that a name means."""
    try:
        found = "" if name.startswith("-") else run(root, "rev-parse", "--verify", f"{name}^{{commit}}")
        words = f"{name} is no revision"
    except GitFailed as error:
        if not error.words:
            raise
        found, words = "", error.words
        if words == "Needed a single revision":  # which says nothing of why
            words = _refusal(root, "rev-list", "--max-count=1", name, "--") or words
    if re.fullmatch("[0-9a-f]{40,64}", found):
        return found
    shallow = run(root, "rev-parse", "--is-shallow-repository") == "true"
    next_ = "the clone is shallow: git fetch --unshallow" if shallow else "git log --all shows those it has"
    raise GitFailed(f"{root} has no revision {name!r}; {next_}", words)


def _refusal(root: Path, *arguments: str) -> str:
    """Return the words with which git refuses a command; "" when it does not."""
    try:
        run(root, *arguments)
    except GitFailed as error:
        return error.words
    return ""


def _is_dirty(root: Path) -> bool | Unknown:
    filters = _filters_off(root)
    options = ("--porcelain", "--untracked-files=no", "--ignore-submodules=dirty")
    changed = bool(run(root, "status", *options, settings=filters))
    if changed and filters:
        return "unknown"  # files that its own filters would make equal look changed
    parts = [_is_dirty(sub) for sub in _submodules(root)] if not changed else []
    return changed or (True if True in parts else "unknown" if "unknown" in parts else False)


def _submodules(root: Path) -> list[Path]:
    """Return the folders of the submodules that are checked out."""
    if not (root / ".gitmodules").is_file():
        return []
    asked = ("config", "--file", ".gitmodules", "--null", "--get-regexp", r"^submodule\..*\.path$")
    paths = [root / entry.partition("\n")[2] for entry in run(root, *asked).split("\0") if entry]
    return [path for path in paths if (path / ".git").exists() and path.resolve().is_relative_to(root)]


def _filters_off(root: Path) -> dict[str, str]:
    """Return settings that turn off every filter of the repository's own configuration; the user's own filters still
    run.
    """
    try:
        asked = ("config", "--show-scope", "--null", "--get-regexp", r"^filter\..*\.(clean|smudge|process|required)$")
        fields = run(root, *asked).split("\0")
    except GitFailed as error:
        if error.words == "nothing was said":  # there are none
            return {}
        raise
    users: dict[str, str] = {}
    theirs: set[str] = set()
    for scope, entry in zip(fields[0::2], fields[1::2], strict=False):
        name, _, value = entry.partition("\n")
        if scope in ("system", "global"):
            users[name] = value
        elif scope != "command":
            theirs.add(name)
    if odd := [name for name in sorted(theirs) if "=" in name]:
        raise GitFailed(f"the configuration of {root} names a filter that quambench cannot turn off: {odd[0]}")
    off = {name: "false" if name.endswith(".required") else "" for name in theirs}
    return {name: users.get(name, value) for name, value in sorted(off.items())}


def _words(said: str) -> str:
    """Return git's own words in one line, printable, without the labels."""
    lines = (re.sub(r"^(fatal|error): ", "", line.strip()) for line in said.splitlines())
    text = "; ".join(line for line in lines if line).replace(":; ", ": ")
    return shorten("".join(c if c.isprintable() else "?" for c in text), 300, placeholder=" ...")
