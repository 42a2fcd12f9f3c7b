"""Verdicts from pairs of records. Pure: no file, no clock, no model.

Two kinds of evidence (docs/gate.md): artefacts, where any change is news, and quality, compared
pairwise. A verdict names the first thing that differs: probes before artefacts before local error before
accumulated error before quality, each in forward order (gate/findings.py).
"""

from __future__ import annotations

import enum
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from quambench.gate import findings
from quambench.gate.arrays import Evidence
from quambench.gate.comparisons import FAMILY_LEVEL, LOOKS, Comparison, compare, say
from quambench.gate.findings import Finding
from quambench.gate.record import Record
from quambench.metrics import Measurement


class Status(enum.StrEnum):
    """The status of a case, worst first."""

    ERROR = "ERROR"
    REGRESSED = "REGRESSED"
    ORPHAN = "ORPHAN"
    STALE = "STALE"
    INCONCLUSIVE = "INCONCLUSIVE"
    DRIFTED = "DRIFTED"
    IMPROVED = "IMPROVED"
    NEW = "NEW"
    SAME = "SAME"


SEVERITY = tuple(Status)


@dataclass(frozen=True, slots=True)
class Verdict:
    """The verdict on one case: a row of the table."""

    case_id: str
    status: Status
    reason: str = ""
    unit: str = ""  # the first unit that answers its probe otherwise: "observer/percentile"
    place: str = ""  # first diverging site or weight, or else metric
    metrics: Mapping[str, Measurement] | None = None
    stored: Mapping[str, Measurement] | None = None
    comparisons: tuple[Comparison, ...] = ()
    portable: bool = False  # compared with another machine class's baseline
    written: bool = False  # the run stored this result
    suspicious: bool = False  # a second look may tell what this one cannot
    suite: str = field(default="", compare=False)  # the suite that asked for it; "" for a probe
    accepted: str = ""  # only in a report on stored results: why it was stored although it was worse

    @property
    def word(self) -> str:
        """The word of a table: the status, or that something worse was accepted."""
        return "ACCEPTED" if self.accepted else self.status.value

    def passes(self, allow_drift: bool = False) -> bool:
        allowed = {Status.SAME} | ({Status.DRIFTED, Status.IMPROVED} if allow_drift else set())
        return self.written or self.status in allowed


def judge(
    new: Record,
    old: Record | None,
    n_cases: int,
    portable: bool = False,
    probe: Finding | None = None,
    rest: Evidence | None = None,
) -> Verdict:
    """Return the verdict on `new` against the stored `old`.

    n_cases  cases stored in the baseline file: the level is split over all of them
    probe    first probe of a unit that this case rests on and that answers otherwise than stored
    rest     answers of `new` on the windows and items of `old.rest`, where a first verdict was suspicious
    raises   NonFinite where a number that decides is NaN or infinite
    """
    if old is None:
        return Verdict(new.case_id, Status.NEW, "no stored baseline; --qb-new-only records it", metrics=new.metrics)
    if changed_settings := changed_fields(old, new):
        stale = Finding("", f"the stored result measured something else: {changed_settings}")
        return _named(new, old, Status.STALE, [f for f in (probe, stale) if f], probe)
    for status, found in (
        (Status.REGRESSED, findings.first_gone(old.evidence, new.evidence, old.gone)),
        (Status.ERROR, findings.first_broken(old, new)),
        (Status.REGRESSED, findings.first_gone(old.rest, rest) if rest is not None else None),
    ):
        if found:
            return _named(new, old, status, [f for f in (probe, found) if f], probe)
    level = FAMILY_LEVEL / n_cases / (LOOKS if old.rest else 1)
    first = compare(old.evidence, new.evidence, old.noise, level, old.metrics)
    second = () if rest is None else compare(old.rest, rest, old.noise, level, old.metrics)
    found_all = _findings(new, old, first, probe)
    status, why = _decide(first, second, bool(found_all))
    suspicious = bool(old.rest) and rest is None and status is not Status.REGRESSED
    suspicious = suspicious and (status is Status.INCONCLUSIVE or any(c.suspicious for c in first))
    metric = next((c.metric for c in (*first, *second) if c.significant), "")
    return _named(new, old, status, found_all, probe, why, metric, first, portable, suspicious)


def _named(
    new: Record,
    old: Record,
    status: Status,
    found: Sequence[Finding],
    probe: Finding | None,
    why: str = "",
    metric: str = "",
    comparisons: tuple[Comparison, ...] = (),
    portable: bool = False,
    suspicious: bool = False,
) -> Verdict:
    """Return a verdict that names the first place, or else the metric that decided."""
    return Verdict(
        new.case_id,
        status,
        reason="; ".join(filter(None, [*map(str, found), why])),
        unit=probe.place if probe else "",
        place=next((f.place for f in found if f is not probe), metric),
        metrics=new.metrics,
        stored=old.metrics,
        comparisons=comparisons,
        portable=portable,
        suspicious=suspicious,
    )


def _findings(new: Record, old: Record, first: Sequence[Comparison], probe: Finding | None) -> list[Finding]:
    """Return the probe's, the first artefact's, and where those do not explain it the first echo inside the model."""
    changed = (
        findings.first_changed_order(old, new)
        or findings.first_changed_artefact(old, new)
        or findings.first_changed_local_error(old, new)
        or findings.first_changed_count(old, new)
        or findings.first_changed_reference(old.evidence, new.evidence)
    )
    found = [f for f in (probe, changed, findings.first_restated(old)) if f]
    if len(found) < 2:  # accumulated error is the echo of the findings above
        echo = (
            findings.first_moved_site(old, new)
            or findings.first_moved_metric(old, new, first)
            or findings.first_moved_array(old.evidence, new.evidence, old.noise)
        )
        found += [echo] if echo else []
    return found


def _decide(first: Sequence[Comparison], second: Sequence[Comparison], changed: bool) -> tuple[Status, str]:
    """Decide: a change is sure where either look shows it, and unsure where the last look at its metric leaves it
    so.
    """
    sure = [c for look in (first, second) for c in look if c.significant]
    worse = [c for c in sure if c.worse > 0]
    looked = {c.metric for c in second}
    unsure = [c for c in (*second, *(c for c in first if c.metric not in looked)) if c.unsure]
    if worse:
        return Status.REGRESSED, _said(worse, second)
    if changed and unsure:
        return Status.INCONCLUSIVE, f"{_said(unsure, second)}: too few to tell; {_needed(unsure)}"
    if sure:
        return Status.IMPROVED, _said(sure, second)
    if changed:
        return Status.DRIFTED, _equal(first)
    return Status.SAME, ""


def _said(found: Sequence[Comparison], second: Sequence[Comparison]) -> str:
    """Return the clearest changes in words, and that a second look shows them where it does."""
    again = [c for c in found if c in second]
    return say(found) + (f", in a second look at {again[0].paired.n} documents or items more" if again else "")


def _needed(unsure: Sequence[Comparison]) -> str:
    """Return how many would tell in words: errors fall with the root of n."""
    first = min(unsure, key=lambda c: c.paired.detectable / c.worse)
    if not math.isfinite(first.paired.detectable):
        return "a corpus of more documents would tell"
    n = math.ceil(first.paired.n * (first.paired.detectable / first.worse) ** 2)
    return f"about {n} instead of {first.paired.n} documents or items would (try --qb-full)"


def _equal(comparisons: Sequence[Comparison]) -> str:
    """Return what could have been seen, and what moved without being significant, in words."""
    moved = [c for c in comparisons if c.paired.difference or c.paired.standard_error]  # else no window differs
    if not moved:
        return "quality equal to the last bit"
    kl = next((c for c in moved if c.metric == "kl"), None)
    told = f"a KL change of {kl.paired.detectable:.2g} nats would show" if kl else f"{say(moved)}, and no KL of prefill"
    return f"quality equal as far as n can tell ({told})"


def changed_fields(old: Record, new: Record) -> str:
    """Return "calib_length 128 -> 256, ..." for every setting that differs.

    A metric that only one of the two knows makes neither measure something else.
    """
    both = set(old.settings) & set(new.settings)
    names = sorted(n for n in set(old.settings) | set(new.settings) if n in both or not n.startswith("metric."))
    pairs = [(n, old.settings.get(n, "absent"), new.settings.get(n, "absent")) for n in names]
    return ", ".join(f"{n} {_short(a)} -> {_short(b)}" for n, a, b in pairs if a != b)


def _short(value: object) -> str:
    text = str(value)
    return text[:12] if len(text) == 64 else text
