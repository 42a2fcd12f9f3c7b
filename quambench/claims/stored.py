"""The stored baselines of a model: cases by what they measured, and two of them compared."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from quambench.case import FULL, QUICK, Case, Protocol
from quambench.claims.base import LEVEL, MNAT, POINTS, CannotMeasure, Interval, Measured, Unit
from quambench.core.errors import BadParameter, UnknownName
from quambench.gate.baselines import BaselineStore
from quambench.gate.noise import terms_of
from quambench.gate.record import Record
from quambench.gate.stats import MIN_CLUSTERS, paired
from quambench.models.sites import ARCHITECTURES

_DIGESTS = ("model_digest", "calibration_data", "evaluation_data")
CASE_SITES = frozenset(site.name for kind in ARCHITECTURES.values() for site in kind.sites if site.observer == "case")

PROTOCOLS = (FULL, Protocol(), QUICK)  # the largest first

Key = frozenset[tuple[str, object]]


def _key(settings: Mapping[str, object]) -> Key:
    """Return the key of what a case measures: "percentile" and "percentile[alpha=0.9995]" are one."""
    own = {k: v for k, v in settings.items() if k not in _DIGESTS and not k.startswith("metric.")}
    return frozenset(own.items())


class Shelf:
    """The stored cases of one model, over all suites; two that are compared come from one machine class."""

    def __init__(self, store: BaselineStore, model: str) -> None:
        """Read the model's baselines. raises BadArtefact naming the file that cannot be read"""
        self.model = model
        found: dict[str, dict[Key, Record]] = {}
        for suite in sorted(path.name for path in store.root.glob("*") if path.is_dir()):
            for path in store.files(suite, model):
                records = found.setdefault(path.parent.name, {})
                for record in store.read(path).cases.values():
                    records.setdefault(_key(record.settings), record)
        self._classes = [found[name] for name in sorted(found, key=lambda name: (name != store.machine, name))]

    def __len__(self) -> int:
        """Return the number of distinct cases of the machine class that has most."""
        return max(map(len, self._classes), default=0)

    @property
    def recalls(self) -> bool:
        """Whether the model is a recall model, which has no prose to be judged on."""
        return any("recall.associative.asked" in r.evidence for records in self._classes for r in records.values())

    @property
    def architecture(self) -> str:
        """The architecture, by the sites that were stored."""
        record = next((record for records in self._classes for record in records.values()), None)
        names = {site_name(site) for site in record.sites} if record else set()
        return next((name for name, kind in ARCHITECTURES.items() if {s.name for s in kind.sites} <= names), "unknown")

    def find(self, *specs: str) -> list[Record]:
        """Return stored results of cases, as a suite writes them ("percentile/channel"), measured on the same data.

        Of the protocols and machine classes that have them all, the largest protocol is taken, then this machine's
        class. raises CannotMeasure
        """
        cases = [self._case(spec) for spec in specs]
        for protocol in PROTOCOLS:
            keys = [_key(replace(case, protocol=protocol).settings()) for case in cases]
            for records in self._classes:
                if all(key in records for key in keys):
                    return _alike([records[key] for key in keys])
        missing = [case.id for case in cases if not self._knows(case)]
        what = " nor ".join(missing) if missing else " and ".join(case.id for case in cases) + " of one size together"
        raise CannotMeasure(f"no baseline holds {what}; pytest suites/ --qb-new-only records it")

    def _knows(self, case: Case) -> bool:
        sizes = {_key(replace(case, protocol=protocol).settings()) for protocol in PROTOCOLS}
        return any(sizes & records.keys() for records in self._classes)

    def _case(self, spec: str) -> Case:
        try:
            return Case.parse(self.model, spec)
        except (UnknownName, BadParameter) as error:
            reason = str(error).partition(". ")[0]  # the rest is help for a user who typed it
            raise CannotMeasure(f"there is no such case yet ({reason})") from None


def _alike(records: list[Record]) -> list[Record]:
    for name in _DIGESTS:
        if len({record.settings.get(name) for record in records}) > 1:
            ids = " and ".join(record.case_id for record in records)
            raise CannotMeasure(f"{ids} were stored with another {name}; pytest suites/ --qb-update records them anew")
    return records


@dataclass(frozen=True, slots=True)
class Quality:
    """A metric that two cases are compared by."""

    metric: str
    words: str
    higher: bool  # is better
    unit: Unit
    counted: str  # what n counts
    data: Callable[[Mapping[str, object]], str]


ACCURACY = Quality(
    "accuracy", "accuracy", True, POINTS, "items", lambda s: f"last words of up to {s['max_items']} passages"
)
KL = Quality(
    "kl",
    "KL to float",
    False,
    MNAT,
    "documents",
    lambda s: f"prefill, {s['quality_windows']} windows of {s['quality_length']} tokens",
)
DECODE_KL = Quality(
    "decode_kl",
    "decoding KL",
    False,
    MNAT,
    "documents",
    lambda s: f"decoding, {s['decode_windows']} windows of {s['decode_steps']} steps",
)
RECALL = Quality(
    "recall_associative",
    "recall by key",
    True,
    POINTS,
    "sequences",
    lambda s: f"{s['recall_sequences']} sequences of associative recall, decoded",
)


def difference(quality: Quality, old: Record, new: Record, remark: str = "", level: float = LEVEL) -> Measured:
    """Return new - old on the same items, in the metric's plain unit. raises CannotMeasure"""
    if quality is ACCURACY and "items.correct" not in new.evidence:
        raise CannotMeasure(f"{new.case_id} has no last-word items")
    if quality is ACCURACY:
        effect, n = flips(old.evidence["items.correct"], new.evidence["items.correct"], level)
    else:
        effect, n = _paired(quality.metric, old, new, level)
    if n == 0:
        raise CannotMeasure(f"{new.case_id} was not measured by {quality.words}")
    effect = effect.widened(math.hypot(_floor(quality.metric, old), _floor(quality.metric, new)))
    few = quality.counted == "documents" and n != _documents(quality.metric, new)
    counted = "windows" if few else quality.counted
    return Measured(
        effect=effect, unit=quality.unit, n=f"{n} {counted}", data=quality.data(new.settings), remark=remark
    )


def _floor(metric: str, record: Record) -> float:
    """Return how far the case's mean moved under other numerics when it was stored; 0 where that was not measured."""
    moved = record.noise.means.get(metric, 0.0)
    return 0.0 if math.isnan(moved) else moved


def _documents(metric: str, record: Record) -> int:
    n = terms_of(metric, record.evidence).n_clusters
    return n if n >= MIN_CLUSTERS else 0


def _paired(metric: str, old: Record, new: Record, level: float) -> tuple[Interval, int]:
    """Return the difference over documents, by t; where the sign-flip test does not agree, the interval reaches 0."""
    before, after = terms_of(metric, old.evidence), terms_of(metric, new.evidence)
    if not len(after.values):
        return Interval.exactly(math.nan), 0
    found = paired(before, after, level)
    effect = Interval.of(found.difference, found.standard_error, found.n, level)
    if found.p_value >= level and not effect.exact:
        effect = Interval(effect.estimate, min(effect.low, 0.0), max(effect.high, 0.0))
    return effect, found.n


def flips(old: Tensor, new: Tensor, level: float = LEVEL) -> tuple[Interval, int]:
    """Return (difference of the shares that are right, n items) of old and new (n,) right or wrong.

    Wald's interval with half an item added to each of the four cells (Agresti & Min 2005, Statistics in
    Medicine 24:729): where no item flipped it still says what n could have missed. Items count as independent.
    """
    n = len(new)
    if n == 0:
        return Interval.exactly(math.nan), 0
    gained, lost = int((new > old).sum()), int((new < old).sum())
    more, b, c = n + 2, gained + 0.5, lost + 0.5
    centre = (b - c) / more
    error = math.sqrt(b + c - (b - c) ** 2 / more) / more
    reach = float(torch.special.ndtri(torch.tensor(1 - level / 2, dtype=torch.float64))) * error
    return Interval((gained - lost) / n, centre - reach, centre + reach), n


def evidence(record: Record, name: str) -> Tensor:
    """Return an array of evidence. raises CannotMeasure where the case was stored without it"""
    if name not in record.evidence:
        raise CannotMeasure(
            f"{record.case_id} was stored before there was {name}; pytest suites/ --qb-update records it"
        )
    return record.evidence[name]


def at_sites(record: Record, rows: str, names: frozenset[str] | None = None) -> Tensor:
    """Return evidence (S,) of the sites with these names in their block ("ssm_state"), or of all; NaN left out.

    raises CannotMeasure where the evidence has no such rows
    """
    values = evidence(record, rows).double()
    chosen = torch.tensor([names is None or site_name(site) in names for site in record.sites])
    found = values[chosen & ~values.isnan()]
    if not len(found):
        raise CannotMeasure(f"{record.case_id} has no {rows} there")
    return found


def site_name(site: str) -> str:
    """Return "ssm_state" of "layers.3.ssm_state"."""
    return site.split(".", 2)[-1]
