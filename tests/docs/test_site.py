"""The site's own parts: links are checked, options come from the parsers, docstrings keep their letters."""

from __future__ import annotations

import argparse
import sys
from importlib import import_module
from pathlib import Path

import pytest

from quambench.cli.main import COMMANDS
from quambench.gate.verdicts import Status

ROOT = Path(__file__).parents[2]
SITE = ROOT / "docs" / "site"
MODULES = ("check", "commands", "docstrings", "make")


@pytest.fixture(scope="module")
def site():
    """The modules of docs/site, which are no package."""
    sys.path.insert(0, str(SITE))
    try:
        yield argparse.Namespace(**{name: import_module(name) for name in MODULES})
    finally:
        sys.path.remove(str(SITE))
        for name in MODULES:  # tests/mutants has a make of its own
            sys.modules.pop(name, None)


@pytest.mark.parametrize(
    ("link", "fault"),
    [
        ('<a href="b.html#here">x</a>', ""),
        ('<a href="b.html">x</a>', ""),
        ('<a href="#top">x</a>', ""),
        ('<a href="https://example.org/page">x</a>', ""),
        ('<a href="c.html">x</a>', "no such file"),
        ('<a href="b.html#there">x</a>', "no such anchor"),
        ('<a href="#there">x</a>', "no such anchor"),
        ('<img src="picture.png">', "no such file"),
        ('<script src="https://example.org/x.js"></script>', "from elsewhere"),
        ('<link rel="stylesheet" href="//example.org/x.css">', "from elsewhere"),
        ('<img src="http://example.org/x.png">', "from elsewhere"),
    ],
)
def test_a_link_is_followed_to_its_anchor(site, tmp_path, link, fault):
    site.check.read.cache_clear()
    (tmp_path / "a.html").write_text(f'<h1 id="top">A</h1>{link}', encoding="utf-8")
    (tmp_path / "b.html").write_text('<h1 id="here">B</h1>', encoding="utf-8")
    found = list(site.check.faults_of(tmp_path))
    assert len(found) == bool(fault)
    assert all(fault in line for line in found)


def test_every_command_and_each_of_its_options_is_on_the_page(site):
    page = site.commands.commands_page()
    for name, command in COMMANDS.items():
        assert f"## quambench {name}\n" in page
        assert command.example in page
        parser = argparse.ArgumentParser()
        command.load(name)[0](parser)
        section = page.split(f"## quambench {name}\n")[1].split("\n## ")[0]
        for action in parser._actions:
            assert all(f"`{option}" in section for option in action.option_strings if action.dest != "help")


def test_every_option_of_the_plug_in_is_on_the_page(site):
    page = site.commands.pytest_page()
    assert "`--qb-update`" in page
    assert "`--qb-precision BITS\\|FILE`" in page


def test_the_glossary_explains_every_verdict():
    text = (ROOT / "docs" / "glossary.md").read_text(encoding="utf-8")
    assert all(f"\n### {word}\n" in text for word in (*Status, "ACCEPTED"))


@pytest.mark.parametrize(
    ("written", "shown"),
    [
        ("|x| of (*scale_shape)", "\\|x\\| of (\\*scale\\_shape)"),
        ("`a` and `b`, `c`s", "``a`` and ``b``, ``c``\\ s"),
        ("Its scale. raises SiteUnseen", "Its scale. Raises SiteUnseen"),
    ],
)
def test_a_docstring_keeps_its_letters(site, written, shown):
    assert site.docstrings.escaped(written) == shown


def test_arguments_in_a_docstring_stand_in_a_block(site):
    lines = ["Step of a grid.", "", "absmax   (*scale_shape) float32", "bits     2..8"]
    assert site.docstrings.restructured(lines)[2:] == [
        "::",
        "",
        "    absmax   (*scale_shape) float32",
        "    bits     2..8",
        "",
    ]


def test_links_of_pages_lead_to_pages_of_the_site(site, tmp_path):
    source = site.make.Source(tmp_path)
    text = source.rewritten(ROOT / "docs" / "fork.md")
    assert "(gate.md)" in text
    assert "(files/examples-fork.md)" in text
    assert "](../" not in text
    assert "(../gate.md)" in source.rewritten(ROOT / "README.md")
