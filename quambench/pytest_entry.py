"""What pytest loads in every project where quambench is installed: next to nothing, until one asks for more.

The plug-in itself (quambench/pytest_plugin.py) imports torch, which takes seconds. It is loaded where pytest's
configuration says `quambench = true`, where an option of its own is written, or where a conftest names it.
"""

from __future__ import annotations

from collections.abc import Iterable

import pytest

PLUGIN = "quambench.pytest_plugin"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addini("quambench", "load quambench's plug-in: options --qb-*, the mark cases", type="bool", default=False)


@pytest.hookimpl(tryfirst=True)  # before the conftests, which may rely on its fixtures
def pytest_load_initial_conftests(early_config: pytest.Config, args: Iterable[str]) -> None:
    if early_config.getini("quambench") or any(str(argument).startswith("--qb-") for argument in args):
        early_config.pluginmanager.import_plugin(PLUGIN)
