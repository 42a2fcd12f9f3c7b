"""The mutation tester itself: which mutants it makes, and that it tells the killed from the living."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("mutmut", reason="the mutation tester is installed by the extra `mutants`")

HERE = Path(__file__).parent

SOURCE = '''"""A shop."""
from typing import Callable

RATE = 0.2
Price = Callable[[float], float]


def price(net: float, shown: bool = True) -> float:
    """Gross."""
    if shown:
        note(net)
    return net * (1 + RATE) if net > 0 else 0.0


class Till:
    @property
    def open(self) -> str:
        return "yes"


def note(net):
    pass
'''


def test_the_mutants_of_a_file_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """None of annotations, docstrings and types; those of constants, of decorated functions and of our own kinds."""
    monkeypatch.syspath_prepend(str(HERE))
    from make import mutants

    made = mutants("shop.py", SOURCE)
    total = "return net * (1 + RATE) if net > 0 else 0.0"
    assert sorted((m.scope, m.was, m.now) for m in made) == sorted(
        [
            ("", "RATE = 0.2", "RATE = None"),
            ("", "RATE = 0.2", "RATE = 2.0"),
            ("price", "def price(net: float, shown: bool = True) -> float:",
             "def price(net: float, shown: bool = False) -> float:"),
            ("price", "if shown:", "if not (shown):"),
            ("price", "note(net)", "note(None)"),
            ("price", "note(net)", "pass"),
            *(
                ("price", total, now)
                for now in (
                    "return net / (1 + RATE) if net > 0 else 0.0",
                    "return net * ((1 - RATE)) if net > 0 else 0.0",
                    "return net * (2 + RATE) if net > 0 else 0.0",
                    "return net * (1 + RATE) if net >= 0 else 0.0",
                    "return net * (1 + RATE) if net > 1 else 0.0",
                    "return net * (1 + RATE) if net > 0 else 1.0",
                    "return net * (1 + RATE) if (net > 0) and False else 0.0",
                    "return net * (1 + RATE) if (net > 0) or True else 0.0",
                )
            ),
            ("Till.open", 'return "yes"', 'return "XXyesXX"'),
        ]
    )  # fmt: skip
    assert {m.lines for m in made if m.was == "if shown:"} == {(10, 10)}
    for mutant in made:
        compile(mutant.source, "shop.py", "exec")


def run(folder: Path, *options: str) -> tuple[int, str]:
    environment = os.environ | {"PYTHONPATH": ""}
    done = subprocess.run(
        [sys.executable, HERE / "run.py", *options], cwd=folder, env=environment, capture_output=True, text=True
    )
    return done.returncode, done.stdout + done.stderr


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A package of one module, judged by tests that forget `shown` and the rest of what a price of nothing is."""
    (tmp_path / "shop").mkdir()
    (tmp_path / "shop" / "__init__.py").write_text(SOURCE)
    (tmp_path / "tests" / "mutants").mkdir(parents=True)
    (tmp_path / "tests" / "test_shop.py").write_text(
        "import pytest\n\nfrom shop import Till, price\n\n\n"
        "@pytest.mark.parametrize(('net', 'gross'), [(10, 12), (0.5, 0.6), (-1, 0.0)])\n"
        "def test_price(net, gross):\n    assert price(net) == gross\n\n\n"
        "def test_till():\n    assert Till().open == 'yes'\n"
    )
    (tmp_path / "tests" / "mutants" / "files.toml").write_text(
        'first = []\n[[files]]\npath = "shop/__init__.py"\ntests = ["tests/test_shop.py"]\n'
    )
    (tmp_path / "tests" / "mutants" / "equivalent.toml").write_text("")
    return tmp_path


LIVING = ("shown: bool = False", "if not (shown):", "note(None)", "    + pass", "if net >= 0 else")


@pytest.mark.slow
def test_the_living_are_told_from_the_killed_and_listed_ones_are_let_be(project: Path) -> None:
    """Of functions and of what an import runs: `shown`'s default is both. A row that is listed for nothing is red."""
    status, said = run(project)
    assert status == 1
    assert "| shop/__init__.py | 15 | 10 | 0 | 5 |" in said
    assert said.count("survived shop/__init__.py") == len(LIVING)
    assert all(line in said for line in LIVING)
    assert "5 mutants survived and are not listed" in said
    assert "66.7% are killed, fewer than 95%" in said

    _, entries = run(project, "--entries", "--containing", "note(net)")
    listed = "".join(line + "\n" for line in entries.splitlines() if " = " in line or line.startswith("[["))
    listed = listed.replace('reason = ""', 'reason = "nobody sees the note"')
    file = project / "tests" / "mutants" / "equivalent.toml"
    file.write_text(listed.replace("note(None)", "note(nothing)"))
    status, said = run(project)
    assert status == 1
    assert "| shop/__init__.py | 15 | 10 | 1 | 4 |" in said
    assert "killed or no mutant any more: shop/__init__.py | price | note(net) | note(nothing)" in said
    file.write_text(listed)
    status, said = run(project, "shop/*", "--containing", "note(net)")
    assert "| shop/__init__.py | 2 | 0 | 2 | 0 |" in said
    assert "no mutant any more" not in said


def test_tests_that_fail_anyway_kill_nothing(project: Path) -> None:
    with (project / "tests" / "test_shop.py").open("a") as file:
        file.write("\n\ndef test_no():\n    assert False\n")
    status, said = run(project)
    assert status == 1
    assert "tests fail without any mutant: tests/test_shop.py::test_no" in said
