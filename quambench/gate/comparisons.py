"""Paired comparison of every gated metric of two results, and the rows that are suspicious.

A row is judged at its share of a level that holds for the whole file, so that many rows raise no more false
alarms than one. That share is small: a quick row of eighty items may lose sixteen right answers and not reach
it. So a row that would be significant if it stood alone is measured again, on windows and items that the first
look left out, and judged by those at its share of the level (gate/verdicts.py).
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from quambench.gate.arrays import Evidence
from quambench.gate.deciding import beyond, larger
from quambench.gate.noise import BEYOND, Noise, terms_of, unit_size
from quambench.gate.stats import Paired, holm, mcnemar, paired
from quambench.metrics import METRICS, Judged, Metric, Terms, metrics_of

# Chance that a run of one baseline file calls any case changed in quality that is not, by sampling of
# documents. Split evenly over the stored cases, so that a verdict depends neither on -k nor on cases
# that run later; Holm's correction over the metrics of a case, which always run together.
FAMILY_LEVEL = 1e-3
# Where a row may be looked at twice each look has half of its level: together they exceed it in no case,
# however the two depend on each other (their windows may stand in the same documents).
LOOKS = 2

# The least change that counts, relative to KL for a metric in nats, to an error's energy at a site. Where 4 bits
# leave nothing of a model, disturbing it moves a site in one draw of five and by 0.02 % of KL, or never: two
# draws then measure a floor of 0, and another machine's float64 sums are not even equal to the last bit.
LEAST_CHANGE = 1e-3


@dataclass(frozen=True, slots=True)
class Comparison:
    """The paired comparison of one metric; worse is > 0 in the metric's bad direction."""

    metric: str
    paired: Paired
    worse: float
    floor: float  # differences up to this are noise, as measured when the baseline was stored
    margin: float  # the stored number's own standard error: a change beyond it changes what the table says
    significant: bool
    suspicious: bool = False  # it would be significant if this row stood alone

    @property
    def unsure(self) -> bool:
        """Whether it is worse by more than noise and its own standard error, and yet not significantly."""
        limit = larger(self.floor, self.margin, what=f"the margin of {self.metric}")
        return not self.significant and beyond(self.worse, limit, self.metric)


def gated(evidence: Evidence) -> tuple[str, ...]:
    """Return the metrics whose change decides; the others, functions of these or of one extreme, are only shown."""
    return tuple(name for name, metric in metrics_of(evidence).items() if metric.judged is not Judged.NOT)


def sensitive() -> tuple[str, ...]:
    """Return the gated metrics that any change of the computation moves."""
    return tuple(name for name, metric in METRICS.items() if metric.judged is not Judged.NOT and metric.continuous)


def compare(
    old: Evidence, new: Evidence, noise: Noise, level: float, names: Collection[str] | None = None
) -> tuple[Comparison, ...]:
    """Compare every gated metric that both have terms of, with Holm's correction over them.

    old, new  evidence on the same windows and items, in the same order
    noise     measured when `old` was stored
    level     of this row
    names     of metrics that were stored; None takes all
    raises    NonFinite where a number that decides is NaN or infinite
    """
    known = metrics_of(old)
    wanted = [n for n in gated(old) if names is None or n in names]
    pairs = {n: (terms_of(n, old), terms_of(n, new)) for n in wanted}
    pairs = {n: (a, b) for n, (a, b) in pairs.items() if len(a.values) == len(b.values) and _known(a)}
    share = level / max(len(pairs), 1)  # Holm's first step: the level that one metric alone must clear
    tests = {
        n: mcnemar(a.values, b.values, share) if by_item(known[n], a) else paired(a, b, share)
        for n, (a, b) in pairs.items()
    }
    p_values = {n: test.p_value for n, test in tests.items()}
    sure, alone = holm(p_values, level), holm(p_values, FAMILY_LEVEL)
    made, least = [], least_change(old)
    for name, test in tests.items():
        was, now = (terms.mean() for terms in pairs[name])
        worse = now - was if known[name].better == "lower" else was - now
        error = pairs[name][0].standard_error()
        margin = 0.0 if math.isnan(error) else error
        # Stored before this metric was gated: nothing says how much of it is noise.
        known_noise = name in noise.means
        floor = larger(BEYOND * noise.means[name], least[name], what=f"noise of {name}") if known_noise else margin
        counts = beyond(abs(worse), floor, name)
        made.append(
            Comparison(name, test, worse, floor, margin, name in sure and counts, name in alone - sure and counts)
        )
    return tuple(made)


def _known(terms: Terms) -> bool:
    """Whether there is anything to compare: terms that an older schema did not measure are all NaN."""
    return not bool(terms.values.isnan().all())


def by_item(metric: Metric, terms: Terms) -> bool:
    """Whether each item is right or wrong, as McNemar's test needs it."""
    right_or_wrong = bool(((terms.values == 0) | (terms.values == 1)).all())
    return metric.judged is Judged.BY_ITEM or (metric.judged is Judged.BY_VALUES and right_or_wrong)


def least_change(evidence: Evidence) -> dict[str, float]:
    """Return gated metric -> the change, in its terms' unit, that more than arithmetic must exceed."""
    sizes = {name: unit_size(terms_of(name, evidence)) for name in sensitive()}
    in_nats = max(sizes["kl"], sizes["decode_kl"])
    of = {name: max(size, in_nats) if METRICS[name].in_nats else size for name, size in sizes.items()}
    return {name: LEAST_CHANGE * of.get(name, 0.0) for name in gated(evidence)}


def say(found: Sequence[Comparison]) -> str:
    """Return the two clearest changes in words: "kl +0.366 ± 0.038, decode_kl +0.344 ± 0.036"."""
    parts = []
    for c in sorted(found, key=lambda c: c.paired.p_value)[:2]:
        parts.append(f"{c.metric} {c.paired.difference:+.3g} ± {c.paired.standard_error:.2g}")
    return ", ".join(parts)
