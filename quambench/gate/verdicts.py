"""From two records to a verdict. Pure: no file, no clock, no model.

Two kinds of evidence (docs/gate.md): artefacts, where any change is news, and quality, compared
pairwise. What is named is the first that differs: probes before artefacts before local error before
accumulated error before quality, each in forward order.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from quambench.arrange import SITE
from quambench.data.recall import TASKS
from quambench.gate.noise import SITE_ROWS, site_moved, terms_of, unit_moved, unit_size
from quambench.gate.record import Record, scale_steps_apart
from quambench.gate.stats import Paired, holm, mcnemar, paired
from quambench.metrics import Measurement, Terms, metrics_of
from quambench.metrics.tasks import gated_tasks

# Chance that a run of one baseline file calls any case changed in quality that is not, by sampling of
# documents. Split evenly over the stored cases, so that a verdict depends neither on -k nor on cases
# that run later; Holm's correction over the metrics of a case, which always run together.
FAMILY_LEVEL = 1e-3

# Metrics whose change decides; the others are shown, being functions of these or of one extreme.
BY_DOCUMENT = ("loss_rise", "kl", "agreement", "decode_ppl_ratio", "decode_kl", "decode_gap", "state_error")
BY_ITEM = ("accuracy", *(f"recall_{task}" for task in TASKS))  # right or wrong: McNemar
GATED = (*BY_DOCUMENT, *BY_ITEM)
# Continuous, so that any change of the computation moves them.
SENSITIVE = ("loss_rise", "kl", "decode_ppl_ratio", "decode_kl", "decode_gap", "state_error")
IN_NATS = ("loss_rise", "kl", "decode_ppl_ratio", "decode_kl", "decode_gap")  # of their terms, per token
COUNTED = {"scales.count": "n_scales", "scales.bytes": "scale_bytes", "model.bytes": "model_bytes"}


def gated(evidence: Mapping[str, torch.Tensor]) -> tuple[str, ...]:
    """GATED, and the metrics of the harness' tasks that were asked."""
    return (*GATED, *gated_tasks(evidence))


# How many times the floor is more than noise. Two machines are two draws of the noise, so their
# difference is sqrt(2) times one draw's; draws measured on the bundled models differed among
# themselves by up to 1.4 (docs/gate.md). 3 leaves half as much again.
BEYOND = 3.0

# What counts at the least, relative: to KL, of a metric in nats; of an error's energy, at a site. Where 4 bits
# leave nothing of a model, disturbing it moves a site in one draw of five and by 0.02 % of KL, or never: two
# draws then measure a floor of 0, and another machine's float64 sums are not even equal to the last bit.
LEAST_CHANGE = 1e-3

# Of shares at an unchanged scale: an activation or scale 1 ulp off (1e-7) may move a few of some
# hundred thousand values across the end of the grid.
MAX_SHARE_CHANGE = 1e-4

MAX_SCALE_ULP = 1  # float64 calibration: see quambench/calibrate.py


class Status(enum.StrEnum):
    """Worst first."""

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
class Comparison:
    """One metric's paired comparison; worse is > 0 in the metric's bad direction."""

    metric: str
    paired: Paired
    worse: float
    floor: float  # differences up to this are noise, as measured when the baseline was stored
    margin: float  # the stored number's own standard error: a change beyond it changes what the table says
    significant: bool


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is not as stored: where, and what."""

    place: str
    what: str

    def __str__(self) -> str:
        return f"{self.what} at {self.place}" if self.place else self.what


@dataclass(frozen=True, slots=True)
class Verdict:
    """One row of the table."""

    case_id: str
    status: Status
    reason: str = ""
    unit: str = ""  # first unit that answers its probe otherwise: "observer/percentile"
    place: str = ""  # first diverging site or weight, or else metric
    metrics: Mapping[str, Measurement] | None = None
    stored: Mapping[str, Measurement] | None = None
    comparisons: tuple[Comparison, ...] = ()
    portable: bool = False  # compared with another machine class's baseline
    written: bool = False  # the run stored this result

    def passes(self, allow_drift: bool = False) -> bool:
        allowed = {Status.SAME} | ({Status.DRIFTED, Status.IMPROVED} if allow_drift else set())
        return self.written or self.status in allowed


def judge(
    new: Record, old: Record | None, n_cases: int, portable: bool = False, probe: Finding | None = None
) -> Verdict:
    """Verdict on `new` against the stored `old`.

    n_cases  cases stored in the baseline file: the level is split over all of them
    probe    first probe of a unit that this case rests on and that answers otherwise than stored
    """
    if old is None:
        return Verdict(new.case_id, Status.NEW, "no stored baseline; --qb-new-only records it", metrics=new.metrics)
    if changed_settings := changed_fields(old, new):
        reason = f"the stored result measured something else: {changed_settings}"
        return Verdict(new.case_id, Status.STALE, reason, metrics=new.metrics, stored=old.metrics)
    if lost := _not_finite(old, new):
        return Verdict(new.case_id, Status.ERROR, f"{lost} is not finite any more", place=lost)
    comparisons = compare(old, new, FAMILY_LEVEL / n_cases)
    changed = (
        first_changed_order(old, new)
        or first_changed_artefact(old, new)
        or first_changed_local_error(old, new)
        or first_changed_count(old, new)
    )
    found = [f for f in (probe, changed, _restated(old)) if f]
    if len(found) < 2:  # accumulated error is the echo of what stands above
        found += [f for f in (first_moved_site(old, new) or first_moved_metric(old, new, comparisons),) if f]
    status, why = _decide(comparisons, bool(found))
    if status is Status.SAME:
        return Verdict(new.case_id, status, "", "", "", new.metrics, old.metrics, comparisons, portable)
    metric = next((c.metric for c in comparisons if c.significant), "")
    place = next((f.place for f in found if f is not probe), metric)
    reason = "; ".join(filter(None, [*map(str, found), why]))
    unit = probe.place if probe else ""
    return Verdict(new.case_id, status, reason, unit, place, new.metrics, old.metrics, comparisons, portable)


def compare(old: Record, new: Record, level: float) -> tuple[Comparison, ...]:
    """Every gated metric that both measured, Holm's correction over them."""
    pairs = {n: (terms_of(n, old.evidence), terms_of(n, new.evidence)) for n in gated(old.evidence) if n in old.metrics}
    pairs = {n: (a, b) for n, (a, b) in pairs.items() if len(a.values) and len(a.values) == len(b.values)}
    share = level / max(len(pairs), 1)  # Holm's first step: what one metric alone must clear
    tests = {
        n: (mcnemar(a.values, b.values, share) if _by_item(n, a) else paired(a, b, share))
        for n, (a, b) in pairs.items()
    }
    sure = holm({n: test.p_value for n, test in tests.items()}, level)
    made, least, known = [], least_change(old), metrics_of(old.evidence)
    for name, test in tests.items():
        was, now = (terms.mean() for terms in pairs[name])
        worse = now - was if known[name].better == "lower" else was - now
        error = pairs[name][0].standard_error()
        margin = 0.0 if math.isnan(error) else error
        # Stored before this metric was gated: nothing says how much of it is noise.
        floor = max(BEYOND * old.noise.means[name], least[name]) if name in old.noise.means else margin
        made.append(Comparison(name, test, worse, floor, margin, name in sure and abs(worse) > floor))
    return tuple(made)


def _by_item(name: str, terms: Terms) -> bool:
    """Whether each item is right or wrong: what McNemar's test is of."""
    right_or_wrong = bool(((terms.values == 0) | (terms.values == 1)).all())
    return name in BY_ITEM or (name.startswith("task_") and right_or_wrong)


def _decide(comparisons: Sequence[Comparison], changed: bool) -> tuple[Status, str]:
    worse = [c for c in comparisons if c.significant and c.worse > 0]
    better = [c for c in comparisons if c.significant and c.worse < 0]
    unsure = [c for c in comparisons if not c.significant and c.worse > max(c.floor, c.margin)]
    if worse:
        return Status.REGRESSED, _say(worse)
    if changed and unsure:
        return Status.INCONCLUSIVE, f"{_say(unsure)}: too few to tell; {_needed(unsure)}"
    if better:
        return Status.IMPROVED, _say(better)
    if changed:
        return Status.DRIFTED, _equal(comparisons)
    return Status.SAME, ""


def _not_finite(old: Record, new: Record) -> str:
    """The first array of evidence with a NaN or infinity where the stored one has a number.

    A site that stays float now has no grid to measure; its scale, gone, says so.
    """
    quantized = torch.tensor([new.artefacts.scales[site].numel() > 0 for site in new.sites])
    for name, array in new.evidence.items():
        before = old.evidence.get(name)
        if before is None or before.shape != array.shape:
            continue
        lost = before.isfinite() & ~array.isfinite()
        if bool((lost[quantized] if name.startswith("sites.") else lost).any()):
            return name
    return ""


def _restated(old: Record) -> Finding | None:
    """A metric that today's code computes otherwise from the stored evidence than it was stored."""
    for name, (was, now) in old.restated.items():
        return Finding(name, f"the metric's formula changed ({was:.6g} -> {now:.6g} from the same evidence)")
    return None


def _needed(unsure: Sequence[Comparison]) -> str:
    """How many would tell: errors fall with the root of n."""
    first = min(unsure, key=lambda c: c.paired.detectable / c.worse)
    if not math.isfinite(first.paired.detectable):
        return "a corpus of more documents would tell"
    n = math.ceil(first.paired.n * (first.paired.detectable / first.worse) ** 2)
    return f"about {n} instead of {first.paired.n} documents or items would (try --qb-full)"


def _equal(comparisons: Sequence[Comparison]) -> str:
    kl = next((c for c in comparisons if c.metric == "kl"), None)
    if kl and not kl.paired.detectable:  # no window differs from its stored twin
        return "quality equal to the last bit"
    return "quality equal as far as n can tell" + (
        f" (a KL change of {kl.paired.detectable:.2g} nats would show)" if kl else ""
    )


def changed_fields(old: Record, new: Record) -> str:
    """ "calib_length 128 -> 256, ..." for every setting that differs.

    A metric that only one of the two knows makes neither measure something else.
    """
    both = set(old.settings) & set(new.settings)
    names = sorted(n for n in set(old.settings) | set(new.settings) if n in both or not n.startswith("metric."))
    pairs = [(n, old.settings.get(n, "absent"), new.settings.get(n, "absent")) for n in names]
    return ", ".join(f"{n} {_short(a)} -> {_short(b)}" for n, a, b in pairs if a != b)


def _short(value: object) -> str:
    text = str(value)
    return text[:12] if len(text) == 64 else text


def first_changed_order(old: Record, new: Record) -> Finding | None:
    """The first layer whose channels stand in another order, or in other groups; all else there follows."""
    for name, what in (("channel_index", "order of channels"), ("of_channel", "groups of channels")):
        was, now = (record.evidence.get(f"groups.{name}") for record in (old, new))
        if was is None or now is None or was.shape != now.shape:
            if was is now:
                continue
            return Finding(f"layers.0.{SITE}", f"{what} {'appeared' if was is None else 'is another thing'}")
        apart = (was != now).any(dim=1)
        if bool(apart.any()):
            layer, n = int(apart.nonzero()[0]), int((was != now).sum())
            return Finding(f"layers.{layer}.{SITE}", f"{what} changed, {n} of {was.numel()}")
    return None


def first_changed_artefact(old: Record, new: Record) -> Finding | None:
    """The first scale or weight that is not the stored one."""
    a, b = old.artefacts, new.artefacts
    for name in {**b.scales, **a.scales}:
        if name not in a.scales or name not in b.scales:
            return Finding(name, "scale appeared" if name in b.scales else "scale is gone")
        was, now = a.scales[name], b.scales[name]
        if was.shape != now.shape:
            return Finding(name, f"number of scales changed ({was.numel()} -> {now.numel()})")
        apart = scale_steps_apart(was, now)
        if was.numel() and int(apart.max()) > MAX_SCALE_ULP:
            worst = int(apart.argmax())
            return Finding(name, f"scale changed ({was[worst].item():.6g} -> {now[worst].item():.6g})")
        if a.digests.get(name) != b.digests.get(name):
            return Finding(name, "integer weights changed")
    return None


def first_changed_local_error(old: Record, new: Record) -> Finding | None:
    """Same scale, another error: the grid itself rounds or clips differently.

    What may differ is derived: a scale 1 ulp off (relative eps) moves x / scale by at most
    q_max * eps steps, and an activation 1 ulp off does the same once more; with mse = mean e^2 that
    changes mse by at most 2 sqrt(mse) d + d^2, d = 2 q_max eps scale (Cauchy-Schwarz). A value
    moved across a rounding tie has the same error on both sides of it.
    """
    eps = torch.finfo(torch.float32).eps
    bits = min(int(new.settings["act_bits"]), 8)  # lm_head's, in a mix; no grid has more
    was, now = old.evidence["sites.local_mse"], new.evidence["sites.local_mse"]
    for site, a, b in zip(new.sites, was.tolist(), now.tolist(), strict=True):
        step = _largest_step(new, site)
        d = 2 * 2 ** (bits - 1) * eps * step
        if abs(a - b) > 2 * max(a, b) ** 0.5 * d + d * d:
            return Finding(site, f"local error changed at an unchanged scale (mse {a:.3g} -> {b:.3g})")
    for name, what in (("clipped", "share clipped"), ("range_used", "share of the range used")):
        shares = zip(
            new.sites, old.evidence[f"sites.{name}"].tolist(), new.evidence[f"sites.{name}"].tolist(), strict=True
        )
        for site, a, b in shares:
            if abs(a - b) > MAX_SHARE_CHANGE * max(1.0, abs(a)):
                return Finding(site, f"{what} changed at an unchanged scale ({a:.3g} -> {b:.3g})")
    return None


def _largest_step(record: Record, site: str) -> float:
    """0 for a site that stays float; on an asymmetric grid the zero points stand behind the steps."""
    scales = record.artefacts.scales[site]
    if not record.settings.get("symmetric", True):
        scales = scales[: len(scales) // 2]
    return scales.max().item() if scales.numel() else 0.0


def first_changed_count(old: Record, new: Record) -> Finding | None:
    """A number of scales or bytes that is not the stored one: exact on every machine."""
    for array, metric in COUNTED.items():
        was, now = old.evidence.get(array), new.evidence.get(array)
        if was is None or now is None or was.isnan():
            continue  # an older schema did not count
        if not torch.equal(was, now):
            return Finding(metric, f"changed ({was.item():g} -> {now.item():g})")
    return None


def first_moved_site(old: Record, new: Record) -> Finding | None:
    """First site whose error inside the INT8 model moved beyond noise, prefill before decoding."""
    if old.sites != new.sites:
        return None  # other sites: already named as a changed artefact
    for rows, phase in zip(SITE_ROWS, ("prefill", "decoding"), strict=True):
        moved, floors = site_moved(old.evidence[rows], new.evidence[rows]), old.noise.site_floors(rows)
        if floors is None:
            continue  # a baseline without a measured floor, from an older schema
        for site, m, floor in zip(new.sites, moved.tolist(), floors.tolist(), strict=True):
            if m > max(BEYOND * floor, LEAST_CHANGE):
                return Finding(site, f"error inside the INT8 model changed in {phase} by {math.expm1(m):.0%}")
    return None


def first_moved_metric(old: Record, new: Record, comparisons: Sequence[Comparison]) -> Finding | None:
    """A metric that moved beyond noise in single windows, although its mean may not have."""
    least = least_change(old)
    for c in comparisons:
        if c.metric in SENSITIVE and c.metric in old.noise.units:
            moved = unit_moved(terms_of(c.metric, old.evidence), terms_of(c.metric, new.evidence))
            if moved > max(BEYOND * old.noise.units[c.metric], least[c.metric]):
                return Finding(c.metric, "the INT8 model computes something else: quality alone moved")
    return None


def least_change(old: Record) -> dict[str, float]:
    """Gated metric -> the change, in its terms' unit, that more than arithmetic must exceed."""
    sizes = {name: unit_size(terms_of(name, old.evidence)) for name in SENSITIVE if name in old.metrics}
    in_nats = max((sizes[name] for name in ("kl", "decode_kl") if name in sizes), default=0.0)
    of = {name: max(size, in_nats) if name in IN_NATS else size for name, size in sizes.items()}
    return {name: LEAST_CHANGE * of.get(name, 0.0) for name in gated(old.evidence)}


def _say(found: Sequence[Comparison]) -> str:
    parts = []
    for c in sorted(found, key=lambda c: c.paired.p_value)[:2]:
        parts.append(f"{c.metric} {c.paired.difference:+.3g} ± {c.paired.standard_error:.2g}")
    return ", ".join(parts)
