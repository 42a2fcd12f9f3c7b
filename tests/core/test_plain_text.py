"""What comes from outside is shown, and neither a terminal nor a page obeys it."""

from __future__ import annotations

import os
import subprocess
import sys
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from quambench.core.plain_text import as_code, in_markdown, plain, posted
from quambench.gate.verdicts import Status, Verdict
from quambench.metrics import Measurement
from quambench.report import terminal, write_report

PLAIN = {
    "mamba2-tiny/percentile[alpha=0.9995]/1x1": "mamba2-tiny/percentile[alpha=0.9995]/1x1",
    "1 ± 2 µs, модель, 模型": "1 ± 2 µs, модель, 模型",
    "red \x1b[31m": "red \\x1b[31m",
    "two\nlines\r": "two\\nlines\\r",
    "a title\x9d0;x\x07": "a title\\x9d0;x\\x07",
    "\u202eslacs": "\\u202eslacs",
    "half a pair \ud800": "half a pair \\ud800",
}


@pytest.mark.parametrize("text", PLAIN)
def test_what_a_terminal_obeys_is_spelled_out_and_the_rest_is_as_it_was(text):
    assert plain(text) == PLAIN[text]


@given(st.text())
def test_nothing_shown_is_obeyed(text):
    shown = plain(text)
    assert not any(unicodedata.category(c) in ("Cc", "Cs") for c in shown)
    assert plain(shown) == shown
    shown.encode("utf-8")


OUTSIDE = st.text(st.sampled_from("ab |`*_<>&@\\[]()!#~:/.\n\r\x1b\"'-="), max_size=40)


def rendered(text: str) -> list:
    """The tokens that a page is made of, GitHub's tables included; text that stands in them is not of interest."""
    return MarkdownIt("commonmark").enable(["table", "strikethrough"]).parse(text)


def flat(tokens) -> list[tuple[str, str]]:
    inner = [child for token in tokens for child in (token.children or [])]
    return [(token.type, token.content) for token in [*tokens, *inner]]


MARKUP = ("html_inline", "html_block", "link_open", "image", "em_open", "strong_open", "s_open", "code_inline", "fence")


@given(OUTSIDE)
def test_a_cell_stays_one_cell_and_holds_text_alone(text):
    table = f"| a | b |\n| --- | --- |\n| {in_markdown(text)} | end |"
    tokens = flat(rendered(table))
    kinds = [kind for kind, _ in tokens]
    assert kinds.count("td_open") == 2
    assert not [kind for kind in kinds if kind in MARKUP and kind not in ("em_open", "strong_open", "s_open")]


@given(OUTSIDE)
def test_a_code_span_holds_all_of_the_text_and_ends_with_it(text):
    tokens = flat(rendered(f"- {as_code(text)}: end"))
    spans = [content for kind, content in tokens if kind == "code_inline"]
    assert [" ".join(s.split()) for s in spans] == [" ".join(plain(text).split())]


def test_markdown_that_mentions_or_links_does_neither():
    shown = in_markdown("see [x](http://e.example) ![i](http://e.example) @someone <script>alert(1)</script> a|b")
    assert shown == (
        "see [x\\](http://e.example) \\![i\\](http://e.example) &#64;someone "
        "&lt;script&gt;alert(1)&lt;/script&gt; a&#124;b"
    )
    assert in_markdown("mamba2-tiny/percentile[alpha=0.9995]/1x1") == "mamba2-tiny/percentile[alpha=0.9995]/1x1"


def test_what_is_posted_has_no_folder_of_this_machine(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", "/home/ann")
    monkeypatch.chdir(tmp_path)
    assert posted(f"{tmp_path}/baselines/x.json is missing") == "./baselines/x.json is missing"
    assert posted("/home/ann/models/m: bad") == "~/models/m: bad"
    assert posted("/home/anna/models, /srv/home/ann/x") == "/home/anna/models, /srv/home/ann/x"
    assert posted("(/home/ann)") == "(~)"


HOSTILE = "e\x1b[2Jvil|<img src=x>`|\n| all | SAME |"


@pytest.fixture
def hostile() -> Verdict:
    return Verdict(
        f"{HOSTILE}/mse/1x1", Status.REGRESSED, f"because of {HOSTILE} in {Path.home()}/x", place=HOSTILE,
        metrics={"kl": Measurement(0.1, 0.01)},
    )  # fmt: skip


def test_a_report_of_a_hostile_name_has_one_row_and_no_markup(hostile, tmp_path):
    write_report(tmp_path / "r.md", [hostile], {"commit": HOSTILE})
    text = (tmp_path / "r.md").read_text(encoding="utf-8")
    kinds = [kind for kind, _ in flat(rendered(text))]
    assert kinds.count("tr_open") == 2
    assert not {"html_inline", "html_block", "link_open", "image"} & set(kinds)
    assert "\x1b" not in text
    assert str(Path.home()) not in text.replace("~", "")
    write_report(tmp_path / "r.json", [hostile], {"folder": f"{Path.home()}/x"})
    assert f"{Path.home()}/x" not in (tmp_path / "r.json").read_text()


def test_a_terminals_table_of_a_hostile_name_has_one_row(hostile):
    text = terminal([hostile])
    assert "\x1b" not in text
    assert sum("REGRESSED" in line for line in text.splitlines()) == 2  # the row and the reason


@pytest.mark.parametrize(
    ("encoding", "shown"), [("ascii", "+- -> \\u6a21"), ("latin-1", "± -> \\u6a21"), ("utf-8", "± → 模")]
)
def test_a_locale_without_the_letters_shows_them_in_ascii(encoding, shown):
    code = "from quambench.core.plain_text import print_anywhere as p; p(); print('\\xb1 \\u2192 \\u6a21')"
    env = os.environ | {"PYTHONIOENCODING": encoding}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, env=env, check=True)
    assert done.stdout.decode(encoding).strip() == shown
