"""The table of ratios that ends a run of the speed suites."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from tabulate import tabulate

ROWS = pytest.StashKey[list[list[str]]]()


def pytest_configure(config: pytest.Config) -> None:
    config.stash[ROWS] = []


@pytest.fixture
def told(request: pytest.FixtureRequest) -> Callable[[str, float, str, float | None], None]:
    """told(what, ratio, "times of what", limit): one row."""

    def add(what: str, ratio: float, of: str, limit: float | None = None) -> None:
        request.config.stash[ROWS].append([what, f"{ratio:.2f}", of, "-" if limit is None else f"{limit:g}"])

    return add


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if rows := config.stash[ROWS]:
        terminalreporter.section("ratios")
        text = tabulate(rows, headers=["what", "ratio", "times", "limit"], disable_numparse=True)
        terminalreporter.write_line(text)
