"""What a report says of how its numbers were made."""

from __future__ import annotations

import os
import subprocess
from argparse import Namespace
from importlib import metadata
from pathlib import Path

import pytest
import torch

from quambench.case import Case, Protocol
from quambench.core import provenance as module
from quambench.core.errors import BadParameter
from quambench.core.provenance import machine_class, merged, provenance
from quambench.gate.baselines import read_baseline
from quambench.models.checkpoint import checked_device
from quambench.plugin.options import session_of
from quambench.report import REPORTS

ROOT = Path(__file__).parents[2]


def test_what_ran_in_other_processes_is_told_too():
    own = {"threads": 1, "kernels": {"ssd": "native"}}
    others = [
        {"kernels": {"ssd": "chunked", "int8_ssd": "native"}, "observers": {"b:B": "2"}},
        {"kernels": {"ssd": "native"}, "observers": {"a:A": "1"}, "calibrations": {"c:c": "3"}},
    ]
    assert merged(own, others) == {
        "threads": 1,
        "kernels": {"ssd": "chunked+native", "int8_ssd": "native"},
        "observers": {"a:A": "1", "b:B": "2"},
        "calibrations": {"c:c": "3"},
    }


def test_no_other_process_changes_nothing():
    assert merged(provenance(), []) == provenance()


def test_a_class_names_the_processor_and_never_a_host():
    assert machine_class().startswith("cpu-")
    assert machine_class() == machine_class("cpu")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU with CUDA")
def test_a_gpu_is_a_class_of_its_own():
    assert machine_class("cuda").startswith("cuda-sm")


@pytest.mark.skipif(torch.cuda.is_available(), reason="of a machine without CUDA")
def test_a_gpu_that_is_not_there_is_one_line():
    with pytest.raises(BadParameter, match="there is no device cuda") as error:
        checked_device("cuda")
    assert "\n" not in str(error.value)


# --- whose code it was ---------------------------------------------------------------------------------


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A user's repository with one commit; returns its folder and git in it."""
    for name in [name for name in os.environ if name.startswith("GIT_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path))
    root = tmp_path / "project"
    root.mkdir()

    def git(*arguments):
        named = ["-c", "user.name=Someone", "-c", "user.email=someone@example.org"]
        done = subprocess.run(["git", *named, *arguments], cwd=root, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    git("init", "-q")
    (root / "observer.py").write_text("class Mine: pass\n")
    git("add", ".")
    git("commit", "-qm", "one")
    module.judged.cache_clear()
    return root, git


def test_the_commit_is_of_the_project_that_is_judged_wherever_the_run_was_started(project, tmp_path, monkeypatch):
    root, git = project
    monkeypatch.chdir(tmp_path)
    found = provenance(folder=root)
    assert (found["commit"], found["dirty"]) == (git("rev-parse", "HEAD")[:12], False)
    nowhere = provenance()
    assert (nowhere["commit"], nowhere["dirty"]) == ("unknown", "unknown")
    monkeypatch.chdir(root)
    (root / "observer.py").write_text("class Mine: changed = True\n")
    here = provenance()
    assert (here["commit"], here["dirty"]) == (found["commit"], False)  # what is judged was loaded before
    module.judged.cache_clear()
    assert provenance()["dirty"] is True


def test_a_run_of_pytest_records_the_commit_of_its_root(project, tmp_path, monkeypatch, world):
    root, git = project
    monkeypatch.chdir(tmp_path)
    option = Namespace(qb_device="cpu", qb_baselines=None, qb_corpus=world / "corpus", qb_update=False,
                       qb_new_only=True, qb_accept=None, qb_allow_drift=False)  # fmt: skip
    session = session_of(option, root)
    (root / "observer.py").write_text("changed while it ran\n")
    small = Protocol(calib_windows=2, calib_length=8, quality_windows=4, quality_length=16, decode_windows=2,
                     decode_prefix=4, decode_steps=2, error_windows=2, error_length=8, max_items=4)  # fmt: skip
    case = Case.parse(session.load(str(world / "tiny-model")).name, "running_max", small)
    session.plan([case])
    session.judge("alpha", case)
    (((_, record),),) = session.to_write.values()
    assert (record.provenance["commit"], record.provenance["dirty"]) == (git("rev-parse", "HEAD")[:12], False)


@pytest.fixture
def package(project, monkeypatch):
    """package(folder): from now on quambench lies there, in the user's repository."""
    root, git = project

    def package(folder):
        at = root / folder / "quambench"
        (at / "core").mkdir(parents=True)
        (at / "core" / "provenance.py").touch()
        (at.parent / "pyproject.toml").write_text('[project]\nname = "quambench"\nversion = "9.8"\n')
        monkeypatch.setattr(module, "_PACKAGE", at)
        return git

    yield package
    module.quambench_itself.cache_clear()


def told():
    module.quambench_itself.cache_clear()
    return module.quambench_itself()


@pytest.mark.parametrize("committed", [False, True], ids=["untracked", "committed"])
def test_a_repository_around_the_environment_says_nothing_of_quambench(package, committed):
    git = package(".venv/lib/python3.11/site-packages")
    if committed:
        git("add", "--force", ".")
        git("commit", "-qm", "an environment")
    assert told() == {"quambench_version": metadata.version("quambench")}


def test_a_checkout_of_its_own_says_its_commit(package, project):
    git = package("")
    assert set(told()) == {"quambench_version"}  # nobody tracks it
    git("add", ".")
    git("commit", "-qm", "quambench")
    commit = git("rev-parse", "HEAD")[:12]
    assert told() == {"quambench_version": "9.8", "quambench_commit": commit, "quambench_dirty": False}
    (project[0] / "quambench" / "core" / "provenance.py").write_text("changed")
    assert told() == {"quambench_version": "9.8", "quambench_commit": commit, "quambench_dirty": True}


def test_a_copy_without_an_installation_has_no_version(package, monkeypatch):
    package("vendored")

    def nothing(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", nothing)
    assert told() == {"quambench_version": "unknown"}


def test_unknown_is_said_in_a_report(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert "commit unknown, dirty unknown" in REPORTS["md"]([], provenance())


def test_baselines_that_were_stored_before_are_read_and_reported():
    (record, *_) = read_baseline(ROOT / "baselines" / "alpha" / "cpu-x86_64-avx2" / "mamba-tiny.json").values()
    assert "quambench_version" not in record.provenance
    assert f"commit {record.provenance['commit']}, dirty True" in REPORTS["md"]([], record.provenance)
