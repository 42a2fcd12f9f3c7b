"""Adds to pyproject.toml what it cannot say: the README as a package index shows it."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

from setuptools import setup

HERE = Path(__file__).parent
PROJECT = tomllib.loads((HERE / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def with_absolute_links(page: str) -> str:
    """A page at the top of the repository whose links lead there from anywhere: an index resolves no relative link."""
    files = f"{PROJECT['urls']['Repository']}/blob/v{PROJECT['version']}/"
    return re.sub(r"\]\((?!https?:|mailto:|#)", f"]({files}", page)


setup(
    long_description=with_absolute_links((HERE / "README.md").read_text(encoding="utf-8")),
    long_description_content_type="text/markdown",
)
