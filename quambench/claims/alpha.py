"""Claims on α: the share of |x| that the percentile sites keep."""

from __future__ import annotations

from quambench.claims.base import DECREASE, INCREASE, LEVEL, Claim, Measured, Row, as_written, family, row
from quambench.claims.compared import QUALITIES, compared, gain_rows
from quambench.claims.sources import Sources
from quambench.claims.stored import DECODE_KL, RECALL, Quality, Shelf, difference

USUAL = 0.9995
GUIDE = {0.999: "52.8", 0.9999: "53.5", 1.0: "53.7"}  # % on LAMBADA, mamba-130m
GUIDE_USUAL = "53.2"


def case(alpha: float) -> str:
    return f"percentile[alpha={alpha}]"


@family(
    "Accuracy by α",
    "α is the share of |x| that a percentile site's scale keeps. Each α against Quamba's 0.9995. The guide's figures"
    " are of mamba-130m on LAMBADA; their differences are held against differences here.",
)
def by_alpha(sources: Sources) -> list[Row]:
    rows = []
    for _, shelf in sources.prose:
        for alpha, percent in GUIDE.items():
            points = f"{float(percent) - float(GUIDE_USUAL):+.1f}"
            figure = f"{percent} % against {GUIDE_USUAL} %: {points} pp"
            words = f"α = {alpha:g} is {'more' if float(points) > 0 else 'less'} accurate than {USUAL:g}"
            rows += gain_rows(shelf, words, figure, as_written(points, 0.01), case(USUAL), case(alpha))
    return rows


@family(
    "The best α",
    "The guide's best α against the best of the other three of {0.999, 0.9995, 0.9999, 1.0}, whichever that is on"
    " these data. Since three were tried, the interval is at 1 - 0.05/3.",
)
def best_alpha(sources: Sources) -> list[Row]:
    rows = []
    for _, shelf in sources.prose:
        for quality in QUALITIES:
            expects = INCREASE if quality.higher else DECREASE
            if shelf.architecture == "mamba":
                words = f"α = 1.0 is best with Quamba1, by {quality.words}"
                claim = Claim(words=words, figure="α = 1.0", expects=expects)
                rows.append(row(claim, shelf.model, _against_best, shelf, quality, 1.0))
                continue
            words = f"α = 0.9995 beats 1.0 in Quamba2 with GPTQ, by {quality.words}"
            claim = Claim(words=words, figure="α = 0.9995", expects=expects)
            old, new = f"{case(1.0)}/w4a8/gptq", "percentile/w4a8/gptq"
            rows.append(row(claim, shelf.model, compared, shelf, quality, old, new))
    return rows


def _against_best(shelf: Shelf, quality: Quality, alpha: float) -> Measured:
    """Return α minus the best other. raises CannotMeasure"""
    others = [other for other in (*GUIDE, USUAL) if other != alpha]
    chosen, *rest = shelf.find(case(alpha), *map(case, others))
    sign = -1 if quality.higher else 1
    best = min(range(len(rest)), key=lambda i: sign * rest[i].metrics[quality.metric].value)
    values = [
        f"{other:g}: {r.metrics[quality.metric].value * quality.unit.factor:.4g}"
        for other, r in sorted(zip((alpha, *others), (chosen, *rest), strict=True), key=lambda pair: pair[0])
    ]
    remark = f"the best other is {others[best]:g} ({', '.join(values)} {quality.unit.of_level})"
    return difference(quality, rest[best], chosen, remark, LEVEL / len(others))


@family(
    "α where only the INT8 state can answer",
    "Not in the guide, whose tasks are prose: recall models are asked for what their state alone carries, token by"
    " token. The guide's order of α (the nearer to 1, the better) is held against theirs.",
)
def by_alpha_in_recall(sources: Sources) -> list[Row]:
    rows = []
    for _, shelf in sources.recalling:
        for alpha, better in ((0.999, False), (0.99999, True)):
            for quality in (RECALL, DECODE_KL):
                expects = INCREASE if quality.higher == better else DECREASE
                words = f"α = {alpha:g} is {'better' if better else 'worse'} than {USUAL:g}, by {quality.words}"
                claim = Claim(words=words, figure="by order alone", expects=expects)
                old, new = case(USUAL), case(alpha)
                rows.append(row(claim, shelf.model, compared, shelf, quality, old, new))
    return rows
