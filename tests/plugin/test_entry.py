"""Installed, quambench costs an unrelated project nothing; the configuration or an option alone brings the plug-in."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest

from quambench import pytest_entry

ROOT = Path(__file__).parents[2]
SUITE = """
import pytest

@pytest.mark.cases("running_max/quick")
def test_a(case, judge):
    judge(case)
"""


@pytest.fixture
def project(tmp_path):
    (tmp_path / "suites").mkdir()
    (tmp_path / "suites" / "test_a.py").write_text(SUITE)
    return tmp_path


def collected(project, *options):
    # By its name: an installation may be older than the entry point, and a clone on the path has none.
    loads = [] if _installed() else ["-p", "quambench.pytest_entry"]
    command = [sys.executable, "-m", "pytest", "-q", "--collect-only", "suites", *loads, *options]
    ran = subprocess.run(command, cwd=project, capture_output=True, text=True)
    return ran.stdout + ran.stderr


def _installed():
    return any(entry.value == "quambench.pytest_entry" for entry in metadata.entry_points(group="pytest11"))


def test_the_entry_point_is_what_the_package_names():
    named = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["entry-points"]
    assert named == {"pytest11": {"quambench": pytest_entry.__name__}}


def test_a_configuration_that_asks_for_it_has_the_plug_in(project):
    (project / "pytest.ini").write_text("[pytest]\nquambench = true\n")
    found = collected(project)
    assert "test_a[mamba-tiny/running_max/1x1/quick]" in found
    assert "test_a[mamba2-tiny/running_max/1x1/quick]" in found


def test_an_option_of_its_own_asks_for_it(project):
    assert "test_a[mamba-tiny/running_max/1x1/quick]\n\n1 test collected" in collected(
        project, "--qb-model", "mamba-tiny"
    )


def test_an_unrelated_project_imports_nothing_of_it(tmp_path):
    (tmp_path / "test_x.py").write_text(
        "import sys\ndef test_x():\n"
        "    ours = {name for name in sys.modules if name.partition('.')[0] in ('quambench', 'torch')}\n"
        "    assert ours <= {'quambench', 'quambench.pytest_entry'}\n"
    )
    loads = [] if _installed() else ["-p", "quambench.pytest_entry"]
    ran = subprocess.run([sys.executable, "-m", "pytest", "-q", *loads], cwd=tmp_path, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout
