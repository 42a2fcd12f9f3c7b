"""The contract that every report format meets: a pure function of verdicts, whose text nobody outside can bend."""

from __future__ import annotations

import copy
import math
import re
import time
import unicodedata
from pathlib import Path

import pytest

from quambench.core.errors import QuambenchError
from quambench.gate.verdicts import Status, Verdict
from quambench.metrics import Measurement
from quambench.report import REPORTS, format_of

UNKNOWN = Measurement(math.nan, math.nan)
VERDICTS = [
    Verdict("m/b", Status.SAME, metrics={"kl": Measurement(0.00123, 0.0001), "accuracy": UNKNOWN}),
    Verdict("m/a", Status.REGRESSED, "kl moved at layers.0.z", place="layers.0.z", metrics={"kl": UNKNOWN}),
    Verdict("m/c", Status.ERROR, "it cannot be read"),
    Verdict("m/d", Status.SAME, portable=True),
]
PROVENANCE = {"machine": "cpu-test", "dirty": False}
HOSTILE = "one\x1b[31m two\r\nthree\u202e four\x07"


def rendered(render, verdicts=VERDICTS, provenance=PROVENANCE):
    return render(copy.deepcopy(verdicts), dict(provenance))


def obeyed(text):
    """Characters that a terminal or a page would obey, but for the end of a line."""
    return sorted({c for c in text if c != "\n" and (unicodedata.category(c) == "Cc" or c in "\u202e\u2066\u2069")})


def check_it_is_text(suffix, render):
    text = rendered(render)
    assert isinstance(text, str), f"{suffix}: return the report's text (got {type(text).__name__})"
    assert text.endswith("\n"), f"{suffix}: end the text with a newline"
    assert not obeyed(text), f"{suffix}: leave out colour and control characters (got {obeyed(text)})"


def check_the_same_verdicts_give_the_same_bytes(suffix, render):
    """At another time and in another order too."""
    text, then = rendered(render), time.perf_counter_ns()
    while time.perf_counter_ns() < then + 2_000_000:  # two milliseconds, so that a clock in the text shows
        pass
    assert rendered(render) == text, f"{suffix}: keep clocks, chance and addresses out of the text"
    assert rendered(render, VERDICTS[::-1]) == text, f"{suffix}: put the verdicts in an order of yours, by worst_first"


def check_every_verdict_is_told(suffix, render):
    text = rendered(render)
    for verdict in VERDICTS:
        for told in filter(None, (verdict.case_id, verdict.word, verdict.reason, verdict.place)):
            assert told in text, f"{suffix}: show each verdict's case, status, reason and place ({told!r} is missing)"


def check_what_was_not_measured_is_no_number(suffix, render):
    found = re.findall(r"\b(nan|inf(?:inity)?)\b", rendered(render), re.IGNORECASE)
    assert not found, f"{suffix}: show what was not measured as absent, a dash or null, and not as {found[0]}"


def check_provenance_is_told(suffix, render):
    text = rendered(render)
    assert "cpu-test" in text, f"{suffix}: show the provenance, the machine among it"


def check_text_from_outside_is_text(suffix, render):
    """A name or a reason neither starts a line of its own nor colours one."""
    for field in ("case_id", "reason", "place"):
        for shown, words in ((False, "one two three four"), (True, HOSTILE)):
            verdict = Verdict(**{"case_id": "m/a", "status": Status.ERROR, "reason": "r", "place": "p", field: words})
            text = rendered(render, [verdict])
            if not shown:
                lines = text.count("\n")
        bent = obeyed(text) or text.count("\n") != lines
        assert not bent, f"{suffix}: pass {field} through plain, in_markdown or your format's escape"


def check_no_verdicts_make_a_report(suffix, render):
    try:
        text = rendered(render, [])
    except Exception as error:
        text = f"{type(error).__name__}: {error}".replace("\n", " ")
    else:
        return
    assert not text, f"{suffix}: make a report of no verdicts as well (got {text})"


def check_arguments_are_left_alone(suffix, render):
    verdicts, provenance = copy.deepcopy(VERDICTS), dict(PROVENANCE)
    render(verdicts, provenance)
    same = repr(verdicts) == repr(VERDICTS) and provenance == PROVENANCE
    assert same, f"{suffix}: copy the verdicts and the provenance before changing them"


def check_it_only_returns(suffix, render, folder, capsys):
    """Not a file and not a word beside the text."""
    rendered(render)
    said = "".join(capsys.readouterr())
    assert not said and not list(folder.iterdir()), f"{suffix}: return the text; write_report alone writes it"


def check_its_name_is_a_suffix(suffix):
    try:
        named = format_of(Path(f"report.{suffix}"))
    except QuambenchError:
        named = ""
    assert named == suffix, f"{suffix}: register it under a file's suffix, without dots (got {suffix!r})"


RULES = [
    check_it_is_text,
    check_the_same_verdicts_give_the_same_bytes,
    check_every_verdict_is_told,
    check_what_was_not_measured_is_no_number,
    check_provenance_is_told,
    check_text_from_outside_is_text,
    check_no_verdicts_make_a_report,
    check_arguments_are_left_alone,
]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
@pytest.mark.parametrize("suffix", REPORTS)
def test_contract(suffix, rule):
    rule(suffix, REPORTS[suffix])


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("suffix", REPORTS)
def test_it_only_returns(suffix, folder, capsys):
    check_it_only_returns(suffix, REPORTS[suffix], folder, capsys)


@pytest.mark.parametrize("suffix", REPORTS)
def test_its_name_is_a_suffix(suffix):
    check_its_name_is_a_suffix(suffix)


# Faults, one for each rule


def sound(verdicts, provenance):
    return REPORTS["md"](verdicts, provenance)


def with_raw_reasons(verdicts, provenance):
    return sound(verdicts, provenance) + "\n".join(sorted(v.reason for v in verdicts)) + "\n"


def in_order_given(verdicts, provenance):
    return "".join(f"{v.case_id}\n" for v in verdicts)


def emptied(verdicts, provenance):
    verdicts.clear()
    return "\n"


def printed(verdicts, provenance):
    print("done")
    return sound(verdicts, provenance)


def written(verdicts, provenance):
    Path("report").touch()
    return sound(verdicts, provenance)


@pytest.mark.parametrize(
    ("fault", "caught_by", "says"),
    [
        (lambda v, p: sound(v, p).encode(), check_it_is_text, "return the report's text (got bytes)"),
        (lambda v, p: sound(v, p).rstrip(), check_it_is_text, "end the text with a newline"),
        (lambda v, p: f"\x1b[1m{sound(v, p)}", check_it_is_text, "leave out colour"),
        (lambda v, p: f"{time.time_ns()}\n", check_the_same_verdicts_give_the_same_bytes, "keep clocks"),
        (in_order_given, check_the_same_verdicts_give_the_same_bytes, "in an order of yours, by worst_first"),
        (lambda v, p: sound(v[1:], p), check_every_verdict_is_told, "('m/b' is missing)"),
        (lambda v, p: f"{v[0].metrics}\n", check_what_was_not_measured_is_no_number, "a dash or null, and not as nan"),
        (lambda v, p: sound(v, {}), check_provenance_is_told, "the machine among it"),
        (with_raw_reasons, check_text_from_outside_is_text, "pass reason through plain"),
        (lambda v, p: v[0].case_id, check_no_verdicts_make_a_report, "make a report of no verdicts as well"),
        (emptied, check_arguments_are_left_alone, "copy the verdicts"),
    ],
)
def test_the_contract_catches(fault, caught_by, says, rejected):
    with rejected(says):
        caught_by("mine", fault)


@pytest.mark.parametrize("fault", [printed, written])
def test_what_does_more_than_return_is_noticed(fault, folder, capsys, rejected):
    with rejected("write_report alone writes it"):
        check_it_only_returns("mine", fault, folder, capsys)


@pytest.mark.parametrize("suffix", ["tar.md", ".md", "no_such"])
def test_a_name_that_is_no_suffix_is_noticed(suffix, rejected):
    with rejected("register it under a file's suffix"):
        check_its_name_is_a_suffix(suffix)
