"""Data flows to the right only: the imports are read and held against one table."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "quambench"

# Left to right: a module may import its own row and the rows above it, never one below.
ORDER = (
    {"core"},
    {"models.config", "data"},
    {"models"},
    {"grouping"},
    {"grids"},
    {"observers"},
    {"policy"},
    {"int8"},
    {"calibration"},
    {"interchange"},
    {"case"},
    {"metrics"},
    {"evaluation"},
    {"models.zoo"},  # training: ends in a checkpoint, is judged by evaluation
    {"run"},
    {"harness"},
    {"bench"},
    {"gate"},
    {"report"},
    {"session"},
    {"compare", "claims"},
    {"selftest"},
    {"plugin"},
    {"pytest_plugin", "cli"},
)


def row(module: str) -> int:
    """Position of a module by its longest listed prefix; the package's own __init__ is empty."""
    parts = module.split(".")
    for end in range(len(parts), 0, -1):
        name = ".".join(parts[:end])
        for i, names in enumerate(ORDER):
            if name in names:
                return i
    raise AssertionError(f"quambench.{module} stands in no row of ORDER; where does it belong?")


def modules() -> list:
    return list(_modules())


def _modules():
    for file in sorted(PACKAGE.rglob("*.py")):
        name = ".".join(file.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__")
        if name not in ("__init__", "__main__", "data"):
            yield pytest.param(name, file, id=name)


def imports(file: Path) -> list[str]:
    found = []
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module:
            found += (
                [f"{node.module}.{alias.name}" for alias in node.names] if node.module == "quambench" else [node.module]
            )
        elif isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
    return found


@pytest.mark.parametrize(("name", "file"), modules())
def test_nothing_to_the_left_knows_what_stands_to_its_right(name, file):
    for imported in imports(file):
        if imported.startswith("quambench."):
            target = imported.removeprefix("quambench.")
            assert row(target) <= row(name), f"{name} imports {target}"


@pytest.mark.parametrize(("name", "file"), modules())
def test_only_the_plug_in_knows_pytest(name, file):
    assert name in ("pytest_plugin", "pytest_entry") or not any(
        i.split(".")[0] in ("pytest", "_pytest") for i in imports(file)
    )


def test_kernels_stand_alone_and_shadow_nothing():
    assert not (ROOT / "kernels" / "__init__.py").exists()
    for file in (ROOT / "kernels").rglob("*.py"):
        assert not any(i.split(".")[0] == "quambench" for i in imports(file)), file


def test_importing_the_package_is_free():
    code = (
        "import sys, quambench; print([m for m in ('torch', 'transformers', 'triton', 'lm_eval') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"


def test_using_the_package_needs_no_transformers_and_no_hub():
    code = (
        "import sys, quambench.session.session, quambench.cli.main, quambench.cli.eval, quambench.cli.list;"
        "names = ('transformers', 'triton', 'huggingface_hub', 'pandas', 'sklearn', 'lm_eval', 'datasets');"
        "print([m for m in names if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"
