"""Build the documentation site: `python docs/site/make.py [FOLDER]`, default build/site.

Three steps. The pages of docs/ and every other .md of the project are copied into one source folder, with their links
rewritten to the site's own pages. Sphinx makes HTML of them; a warning is an error. Then every link of the HTML is
checked, anchors included (check.py). Nothing here needs a network.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

from check import faults_of
from commands import commands_page, pytest_page

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
LINK = re.compile(r"\]\(([^)\s]+)\)")
LANGUAGES = {".py": "python", ".toml": "toml", ".json": "json", ".ini": "ini", ".yml": "yaml", ".yaml": "yaml"}
# Folders whose pages are not about the project, or are made by a tool.
SKIPPED = {"build", "tests", "node_modules"}


def pages() -> dict[Path, str]:
    """Return every .md of the project with its place on the site, without a suffix."""
    found = {}
    for path in sorted(ROOT.rglob("*.md")):
        inside = path.relative_to(ROOT)
        if any(part.startswith(".") or part in SKIPPED or part.endswith(".egg-info") for part in inside.parts):
            continue
        found[path] = place_of(inside)
    return found


def place_of(inside: Path) -> str:
    """Return where a page of the project stands on the site: "gate", "project/kernels", "project/mamba2-tiny"."""
    if inside == Path("README.md"):
        return "project/readme"
    if inside.parts[:2] == ("docs", "contributing"):
        return f"project/contributing-{inside.stem.lower()}"
    if inside.parts[0] == "docs":
        return inside.relative_to("docs").with_suffix("").as_posix()
    name = inside.parent.name if inside.stem == "README" else inside.stem
    return f"project/{name.lower()}"


class Source:
    """The folder that Sphinx reads, and which files of the project its pages show."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.pages = pages()
        self.shown: dict[str, Path] = {}  # place -> a file or folder that is no page

    def write(self) -> None:
        """Write every page. Raise SystemExit where a link leads nowhere."""
        shutil.rmtree(self.folder, ignore_errors=True)
        for path, place in self.pages.items():
            text = self.rewritten(path)
            if path == ROOT / "README.md":
                text = text.replace("# quambench\n", "# README\n", 1)  # the title that the menu shows
            self._put(place, text)
        self._put("commands", commands_page())
        self._put("pytest-options", pytest_page())
        for place, path in self.shown.items():
            self._put(place, listing(path))

    def rewritten(self, page: Path) -> str:
        """Return a page's text, in which links to the project's files lead to pages of the site."""

        def link(match: re.Match[str]) -> str:
            target, _, anchor = match[1].partition("#")
            if not target or re.match(r"[a-z]+:", target):
                return match[0]
            place = self._place((page.parent / target).resolve(), page, target)
            depth = self.pages[page].count("/")
            return f"]({'../' * depth}{place}.md{'#' + anchor if anchor else ''})"

        return LINK.sub(link, page.read_text(encoding="utf-8"))

    def _place(self, path: Path, page: Path, target: str) -> str:
        if path.is_dir() and path / "README.md" in self.pages:
            path = path / "README.md"
        if path in self.pages:
            return self.pages[path]
        if path.parent == DOCS and path.stem in ("commands", "pytest-options"):
            return path.stem  # made below
        if not path.is_relative_to(ROOT) or not path.exists():
            raise SystemExit(f"{page.relative_to(ROOT)}: the link ({target}) leads nowhere")
        place = "files/" + path.relative_to(ROOT).as_posix().replace("/", "-").replace(".", "-")
        self.shown[place] = path
        return place

    def _put(self, place: str, text: str) -> None:
        path = self.folder / f"{place}.md"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")


def listing(path: Path) -> str:
    """Return a page that shows a file, or each text file of a folder."""
    title = path.relative_to(ROOT).as_posix()
    parts = ["---", "orphan: true", "---", "", f"# {title}", ""]
    for file in _files(path):
        if file != path:
            parts += [f"## {file.relative_to(path).as_posix()}", ""]
        parts += [f"````{LANGUAGES.get(file.suffix, 'text')}", file.read_text(encoding="utf-8").rstrip(), "````", ""]
    return "\n".join(parts)


def _files(path: Path) -> Iterator[Path]:
    if path.is_file():
        yield path
        return
    for file in sorted(p for p in path.rglob("*") if p.is_file()):
        if not any(p.startswith((".", "__")) for p in file.relative_to(path).parts) and file.suffix in LANGUAGES:
            yield file


def main(folder: Path) -> int:
    """Build the site into `folder`/html. Return 0 where every page and link is right."""
    from sphinx.cmd.build import build_main

    source, html = folder / "source", folder / "html"
    Source(source).write()
    shutil.rmtree(html, ignore_errors=True)
    config = ["-c", str(Path(__file__).parent), "-d", str(folder / "doctrees")]
    code = build_main(["-b", "html", "-E", "-W", "--keep-going", "-q", *config, str(source), str(html)])
    if code:
        return code
    faults = list(faults_of(html))
    for fault in faults:
        print(fault, file=sys.stderr)
    n_pages = len(list(html.rglob("*.html")))
    print(f"{n_pages} pages in {os.path.relpath(html)}; {len(faults)} broken links")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]).resolve() if len(sys.argv) > 1 else ROOT / "build" / "site"))
