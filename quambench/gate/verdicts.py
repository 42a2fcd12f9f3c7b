"""From two records to a verdict. Pure: no file, no clock, no model.

Two kinds of evidence (docs/gate.md): artefacts, where any change is news, and quality, compared
pairwise. The place named is the first that differs: artefacts before local error before
accumulated error before quality, each in forward order.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from quambench.gate.record import Record, scale_steps_apart
from quambench.gate.stats import Paired, log_ratio, paired, paired_mean
from quambench.metrics import METRICS, Measurement

# Chance that a run of one baseline file calls any clean case changed in quality, split evenly over
# its tests (Bonferroni). One run in a thousand.
FAMILY_LEVEL = 1e-3

# Metrics whose change decides; the others are shown, being functions of these or of one extreme.
GATED = ("loss_rise", "kl", "agreement", "decode_ppl_ratio", "decode_kl", "accuracy")

MAX_SCALE_ULP = 1  # float64 calibration: see quambench/calibrate.py


class Status(enum.StrEnum):
    """Worst first."""

    ERROR = "ERROR"
    REGRESSED = "REGRESSED"
    ORPHAN = "ORPHAN"
    STALE = "STALE"
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
    significant: bool


@dataclass(frozen=True, slots=True)
class Verdict:
    """One row of the table."""

    case_id: str
    status: Status
    reason: str = ""
    place: str = ""  # first diverging site, weight, or metric
    metrics: Mapping[str, Measurement] | None = None
    stored: Mapping[str, Measurement] | None = None
    comparisons: tuple[Comparison, ...] = ()
    portable: bool = False  # compared with another machine class's baseline
    written: bool = False  # the run stored this result

    def passes(self, allow_drift: bool = False) -> bool:
        allowed = {Status.SAME} | ({Status.DRIFTED, Status.IMPROVED} if allow_drift else set())
        return self.written or self.status in allowed


def judge(new: Record, old: Record | None, n_cases: int, portable: bool = False) -> Verdict:
    """Verdict on `new` against the stored `old`.

    n_cases  cases stored in the baseline file: the level is split over all of them, so that a
             verdict does not depend on how many were selected
    """
    if old is None:
        return Verdict(new.case_id, Status.NEW, "no stored baseline; --qb-new-only records it", metrics=new.metrics)
    if new.protocol != old.protocol:
        return Verdict(
            new.case_id,
            Status.STALE,
            f"the stored result measured something else: {changed_fields(old, new)}",
            metrics=new.metrics,
            stored=old.metrics,
        )
    n_tests = len(GATED) + len(new.evidence["sites.accumulated"]) + len(new.evidence["decode.state_error"])
    level = FAMILY_LEVEL / (n_cases * n_tests)
    comparisons = tuple(_compare(name, old, new, level) for name in GATED)
    changed = first_changed_artefact(old, new) or first_changed_local_error(old, new)
    drifted_site, site_worse = _first_accumulated(old, new, level)
    worse = [c for c in comparisons if c.significant and c.worse > 0]
    better = [c for c in comparisons if c.significant and c.worse < 0]
    place, what = changed or ("", "")
    if not place and (worse or better or drifted_site):
        place = drifted_site or (worse or better)[0].metric
        what = "accumulated error inside the INT8 model" if drifted_site else "quality alone"
    if worse or (drifted_site and not changed and site_worse):
        status, why = Status.REGRESSED, _say(worse) or f"more accumulated error at {drifted_site}"
    elif better or (drifted_site and not changed):
        status, why = Status.IMPROVED, _say(better) or f"less accumulated error at {drifted_site}"
    elif changed:
        kl = next(c for c in comparisons if c.metric == "kl")
        status = Status.DRIFTED
        why = f"quality equal as far as n can tell (KL change from {kl.paired.detectable:.2g} nats would show)"
    else:
        status, why = Status.SAME, ""
    reason = "; ".join(filter(None, (f"{what} at {place}" if place and what else "", why)))
    return Verdict(new.case_id, status, reason, place, new.metrics, old.metrics, comparisons, portable)


def changed_fields(old: Record, new: Record) -> str:
    """ "calib_length 128 -> 256, ..." for every setting that differs."""
    names = sorted(set(old.settings) | set(new.settings))
    pairs = [(n, old.settings.get(n, "absent"), new.settings.get(n, "absent")) for n in names]
    return ", ".join(f"{n} {_short(a)} -> {_short(b)}" for n, a, b in pairs if a != b)


def _short(value: object) -> str:
    text = str(value)
    return text[:12] if len(text) == 64 else text


def first_changed_artefact(old: Record, new: Record) -> tuple[str, str] | None:
    """(name, what changed) of the first scale or weight that is not the stored one."""
    a, b = old.artefacts, new.artefacts
    for name in {**b.scales, **a.scales}:
        if name not in a.scales or name not in b.scales:
            return name, "scale appeared" if name in b.scales else "scale is gone"
        was, now = a.scales[name], b.scales[name]
        if was.shape != now.shape:
            return name, f"number of scales changed ({was.numel()} -> {now.numel()})"
        if int(scale_steps_apart(was, now).max()) > MAX_SCALE_ULP:
            worst = int((now / was).log().abs().argmax())
            return name, f"scale changed ({was[worst].item():.6g} -> {now[worst].item():.6g})"
        if a.digests.get(name) != b.digests.get(name):
            return name, "integer weights changed"
    return None


def first_changed_local_error(old: Record, new: Record) -> tuple[str, str] | None:
    """Same scale, another error: the grid itself rounds or clips differently.

    What may differ is derived: a scale 1 ulp off (relative eps) moves x / scale by at most
    q_max * eps steps, and an activation 1 ulp off does the same once more; with mse = mean e^2 that
    changes mse by at most 2 sqrt(mse) d + d^2, d = 2 q_max eps scale (Cauchy-Schwarz). A value
    moved across a rounding tie has the same error on both sides of it.
    """
    eps = torch.finfo(torch.float32).eps
    bits = int(new.settings["act_bits"])
    sites = [n for n in new.artefacts.scales if n not in new.artefacts.digests]
    was, now = old.evidence["sites.local_mse"], new.evidence["sites.local_mse"]
    for site, a, b in zip(sites, was.tolist(), now.tolist(), strict=True):
        step = new.artefacts.scales[site].max().item()
        d = 2 * 2 ** (bits - 1) * eps * step
        if abs(a - b) > 2 * max(a, b) ** 0.5 * d + d * d:
            return site, f"local error changed at an unchanged scale (mse {a:.3g} -> {b:.3g})"
    return None


def _first_accumulated(old: Record, new: Record, level: float) -> tuple[str, bool]:
    """First site whose error inside the INT8 model moved in every direction the windows agree on.

    returns (site, is it worse); the INT8 state after decoding is looked at last, since prefill
    never reads it.
    """
    sites = [n for n in new.artefacts.scales if n not in new.artefacts.digests]
    if list(old.artefacts.scales) != list(new.artefacts.scales):
        return "", False  # other sites: already named as a changed artefact
    states = [n for n in sites if n.endswith("ssm_state")]
    rows: list[tuple[str, Tensor, Tensor]] = [
        *zip(sites, old.evidence["sites.accumulated"], new.evidence["sites.accumulated"], strict=True),
        *zip(states, old.evidence["decode.state_error"], new.evidence["decode.state_error"], strict=True),
    ]
    for site, was, now in rows:
        found = paired_mean(log_ratio(was, now), level)
        if found.p_value < level:
            return site, found.difference > 0
    return "", False


def _compare(name: str, old: Record, new: Record, level: float) -> Comparison:
    metric = METRICS[name]
    assert metric.terms is not None, f"{name} is gated and so must have terms"
    found = paired(metric.terms(old.evidence), metric.terms(new.evidence), level)
    floor = old.noise.get(name, 0.0)
    worse = found.difference if metric.better == "lower" else -found.difference
    return Comparison(name, found, worse, floor, found.p_value < level and abs(worse) > floor)


def _say(found: Sequence[Comparison]) -> str:
    parts = []
    for c in sorted(found, key=lambda c: c.paired.p_value)[:2]:
        parts.append(f"{c.metric} {c.paired.difference:+.3g} ± {c.paired.standard_error:.2g}")
    return ", ".join(parts)
