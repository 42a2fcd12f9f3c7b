"""Check the links of built HTML: every file and every anchor exists, and no page loads anything from elsewhere."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

# Attributes whose content a browser loads by itself when it shows the page.
LOADED = {("script", "src"), ("img", "src"), ("iframe", "src"), ("source", "src"), ("link", "href")}


@dataclass
class Page(HTMLParser):
    """The anchors of one page, and what it links to."""

    anchors: set[str] = field(default_factory=set)
    links: list[tuple[str, bool]] = field(default_factory=list)  # (target, whether a browser loads it by itself)

    def __post_init__(self) -> None:
        super().__init__()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if value is None:
                continue
            if name == "id" or (tag == "a" and name == "name"):
                self.anchors.add(value)
            elif name in ("href", "src"):
                self.links.append((value, (tag, name) in LOADED))


@cache
def read(path: Path) -> Page:
    """Return the page at `path`."""
    page = Page()
    page.feed(path.read_text(encoding="utf-8"))
    return page


def faults_of(folder: Path) -> Iterator[str]:
    """Yield one line for each link that leads nowhere, and for each file that a page would load from elsewhere."""
    for path in sorted(folder.rglob("*.html")):
        for target, loaded in read(path).links:
            if why := _fault(path, target, loaded):
                yield f"{path.relative_to(folder)}: {target}: {why}"


def _fault(path: Path, target: str, loaded: bool) -> str:
    url = urlsplit(target)
    if url.scheme or url.netloc:
        return "is loaded from elsewhere" if loaded and url.scheme != "data" else ""
    place = (path.parent / unquote(url.path)).resolve() if url.path else path
    if not place.is_file():
        return "there is no such file"
    if url.fragment and place.suffix == ".html" and unquote(url.fragment) not in read(place).anchors:
        return "there is no such anchor"
    return ""
