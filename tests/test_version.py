"""The version has one source, pyproject.toml; everything that tells it tells the same."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest

import quambench
from quambench.cli.main import main

ROOT = Path(__file__).parents[1]
WRITTEN = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]


def told_by(folder: Path, code: str = "import quambench; print(quambench.__version__)") -> str:
    """What an interpreter says that finds quambench in a folder, and the installed packages behind it."""
    ran = subprocess.run([sys.executable, "-c", code], cwd=folder, env={"PYTHONPATH": str(folder)}, capture_output=True)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout.decode().strip()


@pytest.fixture
def copy(tmp_path):
    (tmp_path / "quambench").mkdir()
    shutil.copy(quambench.__file__, tmp_path / "quambench")
    return tmp_path


def test_a_checkout_says_what_its_pyproject_says(copy):
    assert quambench.__version__ == WRITTEN
    (copy / "pyproject.toml").write_text('[project]\nname = "quambench"\nversion = "9.8"\n')
    assert told_by(copy) == "9.8"


@pytest.mark.parametrize(
    "beside", ["", '[project]\nname = "another"\nversion = "7"\n', "[tool.x]\n", "project = 3\n", "no toml"]
)
def test_an_installed_package_says_what_its_metadata_say(copy, beside):
    if beside:
        (copy / "pyproject.toml").write_text(beside)
    about = copy / "quambench-5.4.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: quambench\nVersion: 5.4\n")
    assert told_by(copy) == "5.4"


def test_a_copy_without_an_installation_has_no_version(monkeypatch, tmp_path):
    def nothing(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", nothing)
    monkeypatch.setattr(quambench, "__file__", str(tmp_path / "quambench" / "__init__.py"))
    vars(quambench).pop("__version__", None)
    try:
        assert quambench.__version__ == "unknown"
    finally:
        vars(quambench).pop("__version__", None)  # it is kept once it is asked for, and no other test may find this one


def test_importing_the_package_looks_nothing_up(copy):
    code = (
        "import sys; before = set(sys.modules); import quambench;"
        "print(sorted(set(sys.modules) - before - {'__future__'}))"
    )
    assert told_by(copy, code) == "['quambench']"


def test_no_other_name_is_invented():
    with pytest.raises(AttributeError, match="has no attribute 'version'"):
        _ = quambench.version


def test_the_command_line_says_it(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["--version"])
    assert stopped.value.code == 0
    assert capsys.readouterr().out == f"quambench {WRITTEN}\n"


def test_python_m_is_the_command_line():
    ran = subprocess.run([sys.executable, "-m", "quambench", "--version"], capture_output=True, text=True)
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, f"quambench {WRITTEN}\n", "")
