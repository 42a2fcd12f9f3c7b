"""Claims on overfitting: scales that are better on the calibration set than elsewhere."""

from __future__ import annotations

import math

from quambench.claims.base import (
    INCREASE,
    POINTS,
    TIMES,
    CannotMeasure,
    Claim,
    InRange,
    Interval,
    Measured,
    Row,
    family,
    row,
)
from quambench.claims.sources import Sources
from quambench.claims.stored import CASE_SITES, KL, Shelf, at_sites, evidence
from quambench.gate.noise import terms_of
from quambench.gate.record import Record
from quambench.metrics import Terms

LOSSES = "refinement.losses"  # (4,) float64: train start, train end, validation start, validation end
TRAINED = (
    "percentile/learned",
    "percentile/adaround",
    "percentile/w8a4/learned",
    "percentile/w8a4/adaround",
)
SEARCHED = ("mse[low=0.8,steps=20]", "mse")


@family(
    "Overfitting the calibration set",
    "Trained scales: the share of the loss that training removed on its own sequences, minus the share on others;"
    " positive says that it overfits. MSE search: its error at the percentile sites on the test part over the plain"
    " maximum's; above 1 says that the search does harm where it did not look. Validation sequences chose the best"
    " training step, so they flatter training a little; the test part did not.",
)
def overfit(sources: Sources) -> list[Row]:
    rows = []
    for _, shelf in sources.prose:
        for spec in TRAINED:
            words = f"`{spec}` gains more on its own data than on validation data"
            claim = Claim(words=words, figure="may", expects=INCREASE)
            rows.append(row(claim, shelf.model, _validation_gap, shelf, spec))
        words = f"`{TRAINED[0]}` gains more on its own data than on the test part"
        claim = Claim(words=words, figure="may", expects=INCREASE)
        rows.append(row(claim, shelf.model, _test_gap, shelf))
        for spec in SEARCHED:
            claim = Claim(
                words=f"`{spec}` errs more than `running_max` on the test part",
                figure="may",
                expects=InRange(1, math.inf),
            )
            rows.append(row(claim, shelf.model, _searched, shelf, spec))
    return rows


def removed(record: Record) -> tuple[float, float]:
    """Return the shares of the loss that training removed on its own part and on the validation part.

    raises CannotMeasure
    """
    train_start, train_end, start, end = evidence(record, LOSSES).tolist()
    if not (train_start > 0 and start > 0):
        raise CannotMeasure(f"{record.case_id} had no loss to remove")
    return 1 - train_end / train_start, 1 - end / start


def _validation_gap(shelf: Shelf, spec: str) -> Measured:
    (record,) = shelf.find(spec)
    own, other = removed(record)
    return Measured(
        # One training on a dozen sequences: which of them fell into which part may make all of the difference.
        effect=Interval(own - other, -math.inf, math.inf),
        unit=POINTS,
        n="one training",
        data="training against validation sequences",
        remark=f"removed {own * 100:.3g} % of the loss on its own sequences, {other * 100:.3g} % on validation",
    )


def _test_gap(shelf: Shelf) -> Measured:
    before, after = shelf.find("percentile", TRAINED[0])
    own, _ = removed(after)
    left = kl_left(before, after)
    other = 1 - left.mean()
    return Measured(
        effect=Interval.of(own - other, left.standard_error(), left.n_clusters),
        unit=POINTS,
        n=f"{left.n_clusters} documents",
        data=f"training sequences against {KL.data(after.settings)}",
        remark=f"removed {own * 100:.3g} % of KL on its own sequences, {other * 100:.3g} % on the test part",
    )


def kl_left(before: Record, after: Record) -> Terms:
    """Return terms whose mean is the share of `before`'s KL that `after` has."""
    old, new = terms_of("kl", before.evidence), terms_of("kl", after.evidence)
    return Terms(new.values, old.values, new.documents)


def _searched(shelf: Shelf, spec: str) -> Measured:
    plain, searched = shelf.find("running_max", spec)
    ratios = at_sites(searched, "sites.local_mse", CASE_SITES) / at_sites(plain, "sites.local_mse", CASE_SITES)
    return Measured(
        effect=Interval.of_ratio(ratios),
        unit=TIMES,
        n=f"{len(ratios)} sites",
        data="mean squared error at the site, test part",
        remark=f"worse at {int((ratios > 1).sum())} of {len(ratios)} sites",
    )
