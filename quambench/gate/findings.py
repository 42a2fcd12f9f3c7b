"""Differences of a record from the stored one, and where each first shows. Pure.

Each finder returns the first thing that differs, in forward order, or None. Artefacts are compared exactly. Numbers
that another machine may round otherwise are compared within a bound that is derived or was measured. No stored number
is left uncompared.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from quambench.calibration.channels import SITE
from quambench.evaluation.fields import Rule
from quambench.gate.arrays import REFERENCE_TOLERANCE, Evidence, lost, moved, rule_of
from quambench.gate.comparisons import LEAST_CHANGE, Comparison, least_change, sensitive
from quambench.gate.deciding import beyond, larger
from quambench.gate.noise import BEYOND, SITE_ROWS, Noise, site_moved, terms_of, unit_moved
from quambench.gate.record import Record, scale_steps_apart
from quambench.gate.recount import miscounted

COUNTED = {"scales.count": "n_scales", "scales.bytes": "scale_bytes", "model.bytes": "model_bytes"}

# Bound for shares at an unchanged scale: an activation or scale 1 ulp off (1e-7) may move a few of some
# hundred thousand values across the end of the grid.
MAX_SHARE_CHANGE = 1e-4

MAX_SCALE_ULP = 1  # float64 calibration: see quambench/calibration/collect.py

SHARES = {"clipped": "share clipped", "range_used": "share of the range used", "range_wasted": "share of it wasted"}


@dataclass(frozen=True, slots=True)
class Finding:
    """A difference from the stored record: where, and what."""

    place: str
    what: str

    def __str__(self) -> str:
        return f"{self.what} at {self.place}" if self.place else self.what


def first_broken(old: Record, new: Record) -> Finding | None:
    """Return a measurement that cannot be judged: not a finite number, or contradicted by its own evidence."""
    quantized = torch.tensor([new.artefacts.scales[site].numel() > 0 for site in new.sites])
    for name, array in new.evidence.items():
        before = old.evidence.get(name)
        if before is None or before.shape != array.shape:
            continue
        spoilt = lost(before, array)
        # A site that stays float now has no grid to measure; that its scale is gone says so.
        if bool((spoilt[quantized] if name.startswith("sites.") else spoilt).any()):
            return Finding(name, f"{name} is not finite any more")
    if found := miscounted(new.metrics, new.evidence):
        return Finding(*found)
    return None


def first_gone(old: Evidence, new: Evidence, metrics: Iterable[str] = ()) -> Finding | None:
    """Return a measurement that was stored and is no longer made, or is made of another number of terms.

    metrics  names of stored ones that today's code does not know
    """
    for name, array in old.items():
        if name.startswith("groups."):
            continue  # first_changed_order reports these
        if name not in new:
            return Finding(name, "stored, and not measured any more")
        if new[name].shape != array.shape:
            return Finding(name, f"measured on {_size(new[name])}, stored on {_size(array)}")
    return next((Finding(name, "stored, and no metric of today") for name in metrics), None)


def _size(array: Tensor) -> str:
    return " x ".join(map(str, array.shape)) + " values" if array.ndim else "one value"


def first_restated(old: Record) -> Finding | None:
    """Return a metric for which today's code computes another value from the stored evidence than was stored."""
    for name, (was, now) in old.restated.items():
        return Finding(name, f"the metric's formula changed ({was} -> {now} from the same evidence)")
    return None


def first_changed_order(old: Record, new: Record) -> Finding | None:
    """Return the first layer whose channels stand in another order, or in other groups; all else there follows."""
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
    """Return the first scale or weight that is not the stored one."""
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
    """Return the first site with the same scale and another error: the grid itself rounds or clips differently.

    The bound on a difference is derived: a scale 1 ulp off (relative eps) moves x / scale by at most
    q_max * eps steps, and an activation 1 ulp off does the same once more; with mse = mean e^2 that
    changes mse by at most 2 sqrt(mse) d + d^2, d = 2 q_max eps scale (Cauchy-Schwarz). A value
    moved across a rounding tie has the same error on both sides of it.
    """
    eps = torch.finfo(torch.float32).eps
    bits = min(int(new.settings["act_bits"]), 8)  # lm_head's, in a mix; no grid has more
    for site, a, b in _by_site(old, new, "local_mse"):
        d = 2 * 2 ** (bits - 1) * eps * _largest_step(new, site)
        if beyond(abs(a - b), 2 * max(a, b) ** 0.5 * d + d * d, f"the local error at {site}"):
            return Finding(site, f"local error changed at an unchanged scale (mse {a:.3g} -> {b:.3g})")
    for name, what in SHARES.items():
        for site, a, b in _by_site(old, new, name):
            if beyond(abs(a - b), MAX_SHARE_CHANGE * max(1.0, abs(a)), f"the {what} at {site}"):
                return Finding(site, f"{what} changed at an unchanged scale ({a:.3g} -> {b:.3g})")
    return None


def _by_site(old: Record, new: Record, name: str) -> Iterable[tuple[str, float, float]]:
    """Yield (site, was, now) of sites.<name>, except where it was not measured: a site that stays float has no grid."""
    was, now = old.evidence.get(f"sites.{name}"), new.evidence.get(f"sites.{name}")
    if was is None or now is None or was.shape != now.shape or old.sites != new.sites:
        return ()
    pairs = zip(new.sites, was.tolist(), now.tolist(), strict=True)
    return ((site, a, b) for site, a, b in pairs if not (math.isnan(a) or math.isnan(b)))


def _largest_step(record: Record, site: str) -> float:
    """Return the largest step of a site's grid; 0 for a site that stays float. Zero points stand behind the steps."""
    scales = record.artefacts.scales[site]
    if not record.settings.get("symmetric", True):
        scales = scales[: len(scales) // 2]
    return scales.max().item() if scales.numel() else 0.0


def first_changed_count(old: Record, new: Record) -> Finding | None:
    """Return a number of scales or bytes that is not the stored one: it is exact on every machine."""
    for array, metric in COUNTED.items():
        was, now = old.evidence.get(array), new.evidence.get(array)
        if was is None or now is None or was.isnan():
            continue  # an older schema did not count
        if not torch.equal(was, now):
            return Finding(metric, f"changed ({was.item():g} -> {now.item():g})")
    return None


def first_changed_reference(old: Evidence, new: Evidence) -> Finding | None:
    """Return a count, a label, or an output of the float model that changed: none depends on calibration."""
    for name, was in old.items():
        now, rule = new.get(name), rule_of(name)
        if now is None or now.shape != was.shape or rule not in (Rule.EXACT, Rule.REFERENCE):
            continue
        known = ~was.isnan()
        a, b = was[known].double(), now[known].double()
        allowed = REFERENCE_TOLERANCE * torch.maximum(a.abs(), b.abs()) if rule is Rule.REFERENCE else 0.0
        apart = (a - b).abs() > allowed
        if bool(apart.any()):
            first = int(apart.nonzero()[0])
            changed = f"({a[first].item():.6g} -> {b[first].item():.6g})"
            return Finding(name, f"changed, {int(apart.sum())} of {len(a)} {changed}, which no scale can change")
    return None


def first_moved_site(old: Record, new: Record) -> Finding | None:
    """Return the first site whose error inside the INT8 model moved beyond noise, prefill before decoding."""
    if old.sites != new.sites:
        return None  # other sites: already named as a changed artefact
    for rows, phase in zip(SITE_ROWS, ("prefill", "decoding"), strict=True):
        floors = old.noise.site_floors(rows)
        if floors is None or old.evidence[rows].shape != new.evidence[rows].shape:
            continue  # a baseline without a measured floor, from an older schema
        errors = site_moved(old.evidence[rows], new.evidence[rows])
        for site, m, floor in zip(new.sites, errors.tolist(), floors.tolist(), strict=True):
            what = f"the error at {site}"
            if beyond(m, larger(BEYOND * floor, LEAST_CHANGE, what=f"the floor of {what}"), what):
                return Finding(site, f"error inside the INT8 model changed in {phase} {_by(m)}")
    return None


def _by(log_ratio: float) -> str:
    """Return how large a change is: in percent where that is read at a glance, else as a multiple."""
    if log_ratio < math.log(11):
        return f"by {math.expm1(log_ratio):.0%}"
    return f"{math.exp(log_ratio):.2g}-fold" if log_ratio < 200 else f"10^{log_ratio / math.log(10):.0f}-fold"


def first_moved_metric(old: Record, new: Record, comparisons: Sequence[Comparison]) -> Finding | None:
    """Return a metric that moved beyond noise in single windows, although its mean may not have."""
    least, continuous = least_change(old.evidence), sensitive()
    for c in comparisons:
        if c.metric in continuous and c.metric in old.noise.units:
            limit = larger(BEYOND * old.noise.units[c.metric], least[c.metric], what=f"noise of {c.metric}")
            if beyond(unit_moved(terms_of(c.metric, old.evidence), terms_of(c.metric, new.evidence)), limit, c.metric):
                return Finding(c.metric, "the INT8 model computes something else: quality alone moved")
    return None


def first_moved_array(old: Evidence, new: Evidence, noise: Noise) -> Finding | None:
    """Return an array of the INT8 model's output that moved beyond noise, although no gated metric shows it."""
    for name, was in old.items():
        now = new.get(name)
        if name not in noise.arrays or now is None or now.shape != was.shape:
            continue
        limit = larger(BEYOND * noise.arrays[name], LEAST_CHANGE, what=f"noise of {name}")
        if rule_of(name) is Rule.QUANTILES:
            found = _moved_quantile(name, was, now, limit, old)
        else:
            change = moved(name, was, now)
            found = Finding(name, f"moved by {change:.2g} of its size") if beyond(change, limit, name) else None
        if found:
            return found
    return None


def _moved_quantile(name: str, was: Tensor, now: Tensor, limit: float, stored: Mapping[str, Tensor]) -> Finding | None:
    """Return a quantile that moved beyond noise and its own standard error; errors themselves are counted again."""
    errors = stored[f"{name.partition('.')[0]}.kl_quantiles"][:, 1:].nan_to_num()
    if name.endswith("kl_quantiles"):
        was, now = was[:, :1], now[:, :1]
    known = ~was.isnan()
    apart = ((now - was).abs() > torch.maximum(limit * was.abs(), errors)) & known
    if not bool(apart.any()):
        return None
    at = tuple(apart.nonzero()[0].tolist())
    return Finding(name, f"moved ({was[at].item():.4g} -> {now[at].item():.4g} nats)")
