"""Renderings: golden text, the same bytes every time, no number that was not measured."""

from __future__ import annotations

import json
import math

import pytest

from quambench.claims.base import (
    DECREASE,
    MNAT,
    PERCENT,
    POINTS,
    Claim,
    Gain,
    InRange,
    Interval,
    Measured,
    Row,
    Unit,
    cannot,
)
from quambench.claims.render import Section, document, effect_text, markdown, tally, terminal

SECTIONS = [
    Section(
        "Gains",
        "One against the other.",
        [
            Row(
                claim=Claim(words="a|b is better", figure="+0.5 %", expects=Gain(0.0045, 0.0055)),
                model="m",
                measured=Measured(
                    effect=Interval(0.00625, -0.01, 0.0225),
                    unit=POINTS,
                    n="160 items",
                    data="last words",
                    remark="float 15 %",
                ),
            ),
            Row(
                claim=Claim(words="c is better", expects=DECREASE),
                model="m",
                measured=Measured(
                    effect=Interval(-0.00034, -0.00053, -0.00015),
                    unit=MNAT,
                    n="20 documents",
                    data="prefill",
                    remark="float 15 %",
                ),
            ),
            cannot("d", "~4", "there is no kernel"),
        ],
    ),
    Section(
        "Counts",
        "Arithmetic.",
        [
            Row(
                claim=Claim(words="scales", figure="128", expects=InRange(128, 128)),
                model="",
                measured=Measured(effect=Interval.exactly(128), unit=Unit(""), n="-", data="definition"),
            )
        ],
    ),
]
TABLES = """\
## Gains

One against the other.

| claim          | guide   | model   | data       | n            | measured [95 %]                 | verdict                                     |
|----------------|---------|---------|------------|--------------|---------------------------------|---------------------------------------------|
| a\\|b is better | +0.5 %  | m       | last words | 160 items    | +0.6 [-1.0, +2.2] pp            | not confirmed (1)                           |
| c is better    | -       | m       | prefill    | 20 documents | -0.34 [-0.53, -0.15] mnat/token | confirmed (1)                               |
| d              | ~4      | -       | -          | -            | -                               | cannot be measured here: there is no kernel |

1. float 15 %

## Counts

Arithmetic.

| claim   | guide   | model   | data       | n   | measured [95 %]   | verdict   |
|---------|---------|---------|------------|-----|-------------------|-----------|
| scales  | 128     | -       | definition | -   | 128 exact         | confirmed |
"""  # noqa: E501


def test_the_document():
    text = markdown(SECTIONS, ["m"])
    assert text.endswith(TABLES)
    assert text.startswith("# The guide's claims, measured\n")
    assert "    quambench claims --out docs/claims.md\n" in text
    assert "Of 4 rows: 2 confirmed, 1 not confirmed, 0 contradicted, 1 cannot be measured here." in text
    assert "Contradicted if the whole interval falls short of lo" in text  # the rule itself


@pytest.mark.parametrize("render", [terminal, document, lambda sections: markdown(sections, ["m"])])
def test_the_same_rows_give_the_same_bytes(render):
    assert render(SECTIONS) == render(SECTIONS)


def test_the_terminal_has_every_row_and_note():
    text = terminal(SECTIONS)
    assert text.count("(1) float 15 %") == 1
    assert "cannot be measured here: there is" in text
    assert text.endswith(tally(SECTIONS) + "\n")


@pytest.mark.parametrize(
    ("effect", "unit", "text"),
    [
        (Interval(0.0123, 0.0101, 0.0145), PERCENT, "1.23 [1.01, 1.45] %"),
        (Interval(0.0123, 0.0101, 0.0145), MNAT, "+12.3 [+10.1, +14.5] mnat/token"),
        (Interval(123.4, 100.0, 150.0), Unit("×"), "123 [100, 150] ×"),
        (Interval.exactly(0.25), POINTS, "+25 pp exact"),
        (Interval.exactly(1 / 3), PERCENT, "33.33 % exact"),
        (Interval.exactly(32768), Unit(""), "32768 exact"),
        (Interval(2.0, -math.inf, math.inf), Unit("×"), "2 ×, no interval"),
        (Interval(math.nan, math.nan, math.nan), Unit("×"), "nan ×, no interval"),
        (Interval(0.2, 0.2, math.nextafter(0.2, 1)), Unit("×"), "0.200000 [0.200000, 0.200000] ×"),
    ],
)
def test_digits_are_those_that_the_interval_supports(effect, unit, text):
    assert effect_text(effect, unit) == text


def test_json_has_plain_numbers_and_no_infinity():
    endless = Row(
        claim=Claim(words="w", expects=DECREASE),
        model="m",
        measured=Measured(effect=Interval(1.0, -math.inf, math.inf), unit=MNAT, n="1", data="d"),
    )
    text = json.dumps(document([*SECTIONS, Section("E", "e", [endless])]), allow_nan=False)
    families = json.loads(text)["families"]
    assert families[0]["rows"][1]["measured"]["estimate"] == -0.00034
    assert families[0]["rows"][2]["measured"] is None
    assert families[2]["rows"][0]["measured"]["low"] is None
    assert [row["verdict"] for row in families[0]["rows"]] == ["not confirmed", "confirmed", "cannot be measured here"]
