"""Rows that several families have: one case against another, by accuracy and by KL."""

from __future__ import annotations

from quambench.claims.base import (
    DECREASE,
    INCREASE,
    CannotMeasure,
    Claim,
    Expectation,
    Gain,
    Measured,
    NoGain,
    Row,
    row,
)
from quambench.claims.stored import ACCURACY, DECODE_KL, KL, Quality, Shelf, difference

QUALITIES = (ACCURACY, KL, DECODE_KL)
FEW_ITEMS = (
    "The guide speaks of LAMBADA's 5,153 passages and models of 130 m parameters and up; here 80 or 160 passages and"
    " 1-2 m parameters: an item is half a point or more, and only KL, which every token informs, can tell such effects"
    " apart."
)


def gain_rows(shelf: Shelf, words: str, figure: str, accuracy: tuple[float, float], old: str, new: str) -> list[Row]:
    """Return rows on `new` gaining over `old`: accuracy by so many points (shares), KL and decoding KL by their sign.

    words     the beginning of a sentence that "by accuracy" can end
    accuracy  both below 0 for a claimed loss; KL then is to rise
    """
    worse = accuracy[1] < 0
    by_sign = INCREASE if worse else DECREASE
    expected: list[tuple[Quality, str, Expectation]] = [(ACCURACY, figure, Gain(*accuracy))]
    expected += [(quality, "worse" if worse else "better", by_sign) for quality in (KL, DECODE_KL)]
    return _rows(shelf, words, expected, old, new)


def no_gain_rows(shelf: Shelf, words: str, old: str, new: str) -> list[Row]:
    """Return rows on `new` being no better than `old`."""
    return _rows(shelf, words, [(q, "no gain", NoGain(higher=q.higher)) for q in QUALITIES], old, new)


def _rows(shelf: Shelf, words: str, expected: list[tuple[Quality, str, Expectation]], old: str, new: str) -> list[Row]:
    """Return a row for each quality; a single one where a case is missing."""
    try:
        shelf.find(old, new)
    except CannotMeasure as error:
        _, figure, expects = expected[0]
        claim = Claim(words=words, figure=figure, expects=expects)
        return [Row(claim=claim, model=shelf.model, measured=None, why=str(error))]
    return [
        row(
            Claim(words=f"{words}, by {quality.words}", figure=figure, expects=expects),
            shelf.model,
            compared,
            shelf,
            quality,
            old,
            new,
        )
        for quality, figure, expects in expected
    ]


def compared(shelf: Shelf, quality: Quality, old: str, new: str) -> Measured:
    """Return new - old; the remark says what both came to. raises CannotMeasure"""
    a, b = shelf.find(old, new)
    was, now = (r.metrics[quality.metric].value * quality.unit.factor for r in (a, b))
    remark = f"`{old}` {was:.4g}, `{new}` {now:.4g} {quality.unit.of_level}"
    if quality is ACCURACY:
        remark += f", float {a.metrics['accuracy_float'].value * 100:.4g} %"
    return difference(quality, a, b, remark)
