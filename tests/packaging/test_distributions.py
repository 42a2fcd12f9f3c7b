"""The sdist holds the whole repository; a wheel built from it holds both packages and nothing else."""

from __future__ import annotations

import email
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from importlib import metadata
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
NAME = f"{PROJECT['name']}-{PROJECT['version']}"
MADE = {"PKG-INFO", "setup.cfg"}  # by setuptools, beside NAME.egg-info
OURS = {".ci", ".github", "baselines", "docs", "examples", "kernels", "quambench", "suites", "tests"}

try:
    SETUPTOOLS = int(metadata.version("setuptools").split(".")[0])
except metadata.PackageNotFoundError:
    SETUPTOOLS = 0
pytestmark = pytest.mark.skipif(SETUPTOOLS < 77, reason="pyproject.toml asks for setuptools 77 to build")


def repository() -> set[str]:
    """Files of the repository, as git tracks them; in an sdist, which has no .git, every file of its folders."""
    if (ROOT / ".git").exists():
        listed = subprocess.run(["git", "-C", ROOT, "ls-files", "-z"], capture_output=True, text=True, check=True)
        return {name for name in listed.stdout.split("\0") if name and (ROOT / name).exists()}
    files = (f.relative_to(ROOT) for f in ROOT.rglob("*") if f.is_file())
    return {
        str(f)
        for f in files
        if not any(p in ("__pycache__", ".pytest_cache", ".quambench") or p.endswith(".egg-info") for p in f.parts)
        and (f.parts[0] in OURS or (len(f.parts) == 1 and f.name not in MADE))
    }


def build(what: str, source: Path, into: Path) -> Path:
    """An sdist or a wheel by setuptools itself, from a folder."""
    into.mkdir()
    code = f"import sys; from setuptools.build_meta import build_{what}; build_{what}(sys.argv[1])"
    ran = subprocess.run([sys.executable, "-c", code, str(into)], cwd=source, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    (made,) = into.iterdir()
    return made


@pytest.fixture(scope="module")
def sdist(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("sdist")
    for name in repository():
        target = folder / "source" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, target)
    return build("sdist", folder / "source", folder / "dist")


@pytest.fixture(scope="module")
def unpacked(sdist, tmp_path_factory) -> Path:
    """Elsewhere, without a repository around it."""
    folder = tmp_path_factory.mktemp("unpacked")
    with tarfile.open(sdist) as archive:
        archive.extractall(folder, filter="data")
    return folder / NAME


@pytest.fixture(scope="module")
def wheel(unpacked, tmp_path_factory) -> zipfile.ZipFile:
    folder = tmp_path_factory.mktemp("wheel")
    copy = shutil.copytree(unpacked, folder / "source")
    with zipfile.ZipFile(build("wheel", copy, folder / "dist")) as archive:
        yield archive


def test_the_sdist_is_the_repository(unpacked):
    held = {str(f.relative_to(unpacked)) for f in unpacked.rglob("*") if f.is_file()}
    held = {name for name in held if not name.startswith(f"{PROJECT['name']}.egg-info/")} - MADE
    assert held == repository(), "MANIFEST.in says what the sdist holds"
    assert all((unpacked / name).read_bytes() == (ROOT / name).read_bytes() for name in held)


@pytest.mark.slow
@pytest.mark.parametrize("folder", ["tests", "suites"])
def test_an_sdist_collects_its_tests(unpacked, folder):
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(unpacked), str(unpacked / "kernels"), *sys.path])}
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider", folder]
    ran = subprocess.run(command, cwd=unpacked, env=environment, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout[-3000:] + ran.stderr
    collected = {line.split("::")[0] for line in ran.stdout.splitlines() if "::" in line}
    # A file whose extra is not installed skips as a whole, as mutmut's does.
    files = {n for n in repository() if re.fullmatch(rf"{folder}/(.*/)?test_\w+\.py", n)}
    skipping = {n for n in files if re.search(r"^pytest\.importorskip", (ROOT / n).read_text(encoding="utf-8"), re.M)}
    assert files - skipping <= collected <= files


def test_the_wheel_holds_both_packages_and_nothing_else(wheel):
    packages = {n for n in repository() if n.startswith("quambench/")}
    packages |= {n.removeprefix("kernels/") for n in repository() if n.startswith("kernels/quambench_kernels/")}
    about = f"{NAME}.dist-info/"
    beside = {n.removeprefix(about) for n in wheel.namelist() if n.startswith(about)}
    assert {n for n in wheel.namelist() if not n.startswith(about)} == packages
    assert beside == {"METADATA", "RECORD", "WHEEL", "entry_points.txt", "top_level.txt", "licenses/LICENSE"}


def test_both_packages_say_that_they_are_typed(wheel):
    assert {"quambench/py.typed", "quambench_kernels/py.typed"} <= set(wheel.namelist())


def test_every_link_that_an_index_shows_is_absolute_and_leads_into_the_repository(wheel):
    shown = email.message_from_bytes(wheel.read(f"{NAME}.dist-info/METADATA"))
    page = shown.get_payload(decode=True).decode()
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    links = re.findall(r"\]\(([^)]+)\)", page)
    assert len(links) == len(re.findall(r"\]\(([^)]+)\)", readme)) > 10
    files = f"{PROJECT['urls']['Repository']}/blob/v{PROJECT['version']}/"
    ours = [link.removeprefix(files).split("#")[0] for link in links if link.startswith(files)]
    assert all((ROOT / file).exists() for file in ours)
    assert all(link.startswith(("https://", "#")) for link in links)
    assert shown["Description-Content-Type"] == "text/markdown"
    assert shown["License-Expression"] == "Apache-2.0"


def test_every_address_of_the_project_is_of_one_repository():
    assert all(url.startswith(PROJECT["urls"]["Repository"]) for url in PROJECT["urls"].values())
