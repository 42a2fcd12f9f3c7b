"""Probes of the judge itself: statistics, floors, rules, findings, verdicts, stored files, the probes' own comparison.

What judges the rest cannot be trusted to report its own fault through a row that it judges. So it is asked as any
unit is: pairs of made records (records.py), each a change just within and just beyond a limit, and what is said of
them. Limits stand here in figures of their own; a constant that is changed there is an answer that is changed here.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from quambench.core.errors import BadArtefact, NewerSchema, NonFinite
from quambench.core.scratch import scratch
from quambench.evaluation.fields import Rule
from quambench.gate import arrays, baselines, comparisons, deciding, findings, noise, recount, stats, verdicts
from quambench.gate import probes as asking
from quambench.gate import record as recording
from quambench.gate.findings import Finding
from quambench.gate.noise import Noise
from quambench.gate.probes import records
from quambench.gate.probes.base import Answer, Probe
from quambench.gate.probes.records import (
    ARRAY,
    SITE,
    SITES,
    UNIT,
    altered,
    mixed,
    steps_on,
    with_arrays,
    with_scales,
    without,
)
from quambench.gate.record import Record
from quambench.metrics import Measurement, Terms, metrics_of

NAN, INF = float("nan"), float("inf")
EPS = 2.0**-23
WITHIN, BEYOND = 0.95, 1.05  # of a limit
FEW, MANY = 1, 200  # cases of a file
SOME = ("kl", "decode_kl", "accuracy")  # metrics enough to tell, where all of them would take long


def probes() -> Iterator[Probe]:
    """In order of dependence; `judge/probes` speaks for all of them."""
    yield Probe("judge/probes", lambda _: _told())
    yield Probe("judge/deciding", lambda _: _decided())
    yield Probe("judge/stats", lambda _: _tested())
    yield Probe("judge/arrays", lambda _: _ruled())
    yield Probe("judge/noise", lambda _: _measured())
    yield Probe("judge/recount", lambda _: _counted())
    yield Probe("judge/comparisons", lambda _: _compared())
    yield Probe("judge/findings", lambda _: _found())
    yield Probe("judge/verdicts", lambda _: _judged())
    yield Probe("judge/baselines", lambda _: _stored())


# --- answers --------------------------------------------------------------------------------------------


def _numbers(values: Iterable[float]) -> Tensor:
    """float32, told within one unit in the last place; what is no number as one that none of them is."""
    return torch.tensor([-1.0 if math.isnan(value) else value for value in values], dtype=torch.float64).float()


def _said(call: Callable[[], object]) -> str:
    """What it returns, in words, or what it raises."""
    try:
        return str(call())
    except (NonFinite, BadArtefact) as error:
        return type(error).__name__


def _column(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


# --- the probes' own comparison -------------------------------------------------------------------------


def _told() -> Answer:
    """Asked anew by `check` itself, which may not find it the same."""
    return {"tells right from wrong": [asking.blind() or "yes"]}


# --- what is no number, statistics ----------------------------------------------------------------------


def _decided() -> Answer:
    pairs = [(1.0, 1.0), (1.0, 2.0), (2.0, 1.0), (-2.0, 1.0), (NAN, 1.0), (1.0, NAN), (INF, 1.0), (1.0, INF)]
    return {
        "beyond": [_said(lambda p=p: deciding.beyond(p[0], p[1], "x")) for p in pairs],  # type: ignore[misc]
        "larger": [_said(lambda p=p: deciding.larger(*p, what="x")) for p in pairs],  # type: ignore[misc]
    }


def _tested() -> Answer:
    answer: dict[str, Tensor | list[str]] = {}
    for name, (old, new, level) in _samples().items():
        found = stats.paired(old, new, level)
        answer[f"paired, {name}"] = _numbers(
            (found.difference, found.standard_error, found.p_value, min(found.detectable, 1e9), found.n)
        )
    for name, values in {"even": mixed(9, 0, 7) - 2, "one": _column(1.0), "constant": torch.full((5,), 0.25)}.items():
        found = stats.paired_mean(values.double(), 0.01)
        answer[f"mean, {name}"] = _numbers((found.difference, found.standard_error, found.p_value, found.n))
    signs = {"ten alike": mixed(10, 1, 7) + 1, "one against": _column(-1, 5, 3, 2, 4, 6, 1, 2), "many": torch.ones(40)}
    for name, values in signs.items():
        answer[f"signs, {name}"] = _numbers(stats.sign_flip_p(values.double()))
    before = mixed(60, 0, 3)
    for name, (gained, lost) in {"none": (0, 0), "one way": (0, 12), "both ways": (9, 3), "some": (6, 6)}.items():
        after = before.clone()
        after[:gained] += 1
        after[30 : 30 + lost] -= 2
        found = stats.mcnemar(before, after, 1e-4)
        answer[f"McNemar, {name}"] = _numbers(
            (found.difference, found.standard_error, found.p_value, found.detectable, found.n)
        )
    kinds: dict[str, dict[str, float]] = {
        "all": {"a": 0.001, "b": 0.002, "c": 0.004},
        "at the limit": {"a": 0.01 / 3, "b": 0.001, "c": 0.5},
        "each at its step": {"a": 0.0033, "b": 0.0049, "c": 0.0099},
        "stops": {"a": 0.001, "b": 0.006, "c": 0.009, "d": 0.0001},
        "none": {"a": 0.004, "b": 0.0041, "c": 0.0042},
        "one": {"a": 0.0099},
    }
    answer["Holm"] = [f"{name}: {', '.join(sorted(stats.holm(p, 0.01)))}" for name, p in kinds.items()]
    answer["log ratio"] = _numbers(stats.log_ratio(_column(0, 1, 2, 4, 0), _column(0, 2, 2, 1, 3)).tolist())
    return answer


def _samples() -> dict[str, tuple[Terms, Terms, float]]:
    """Old and new terms, and the level: by documents and by windows, alike and not, where signs agree or do not."""
    windows = records.WINDOWS
    documents = torch.tensor(records.DOCUMENTS)
    weights = 48 + mixed(windows, 0, 3) * 8
    base = mixed(windows, 2, 23) / 8

    def pair(change: Tensor, at: Tensor, level: float) -> tuple[Terms, Terms, float]:
        return Terms(base, weights, at), Terms(base + change, weights, at), level

    jitter = (mixed(windows, 5, 13) - 6) / 8
    outlier = torch.zeros(windows, dtype=torch.float64)
    outlier[3] = 8.0
    two = (torch.arange(windows) >= windows // 2).int()
    return {
        "nothing": pair(torch.zeros(windows), documents, 0.05),
        "a constant": pair(weights / 64, documents, 0.05),
        "not significant": pair(jitter, documents, 0.05),
        "significant": pair(4 + jitter, documents, 0.05),
        "at a level that signs cannot reach": pair(4 + jitter, documents, 1e-3),
        "worse and better alike": pair(-4 - jitter, documents, 0.05),
        "one document astray": pair(outlier, documents, 0.9),
        "of two documents": pair(4 + jitter, two, 1e-4),
        "of two documents, at a level that signs cannot reach": pair(4 + jitter, two, 1e-9),
        "of one window": (Terms(base[:1], weights[:1], two[:1]), Terms(base[:1] + 1, weights[:1], two[:1]), 0.05),
    }


# --- rules and floors -----------------------------------------------------------------------------------


def _ruled() -> Answer:
    names = [*records.text(), *records.recall(), *records.inside(), *records.tasks(), "something.new"]
    noisy = arrays.noisy_names(dict.fromkeys(names, _column(1.0)))
    return {
        "rules": [f"{name}: {arrays.rule_of(name).value}" for name in names],
        "noisy": list(noisy),
        "tolerance": _numbers([arrays.REFERENCE_TOLERANCE]),
    }


def _measured() -> Answer:
    old, moved = torch.ones(16, dtype=torch.float64), {}
    for n in (1, 2, 3, 16):
        new = old.clone()
        new[:n] += torch.arange(1, n + 1)
        moved[f"{n} of 16"] = new
    gaps = 1 + mixed(16, 0, 5)
    spoilt = gaps.clone()
    spoilt[::3] = torch.nan
    terms = [Terms(x, torch.full_like(x, 4.0), torch.arange(len(x))) for x in (gaps, gaps + mixed(16, 1, 7) - 3)]
    apart = [
        Noise({"kl": 0.25, "decode_kl": 1.0}, {"kl": 1.0}, {rows: _column(*sites)}, {"prefill.kl": 0.5})
        for rows in noise.SITE_ROWS[:1]
        for sites in ((0.0, 2.0, 1.0), (0.5, 1.0, 0.0))
    ]
    apart[1] = replace(apart[1], means={"kl": 0.5}, units={"kl": 0.75, "decode_kl": 0.25})
    worst = noise.largest(apart)
    whole = records.text()
    again = whole | {"prefill.kl": whole["prefill.kl"] + mixed(records.WINDOWS, 1, 5) - 1}
    gated = ("loss_rise", "kl", "accuracy")
    lying = noise.spread(whole | records.inside(), again | records.inside(), gated)
    x = torch.ones(64, 16, dtype=torch.float64)
    added = (noise.disturbance(0)(x) - x) / (4 * EPS)  # of norms of 4
    return {
        "moved": _numbers(arrays.moved("decode.kl", old, new) for new in moved.values()),
        "moved, gaps": _numbers([arrays.moved("decode.kl", spoilt, gaps + 1), arrays.moved("decode.kl", old * 4, old)]),
        "moved, quantiles": _numbers([arrays.moved("prefill.kl_quantiles", gaps, gaps + mixed(16, 2, 3))]),
        "most": arrays.most(spoilt * 8).nan_to_num(-1.0).int(),
        "lost": arrays.lost(_column(NAN, 1, 1, 1, INF), _column(NAN, NAN, INF, 2, 1)).int(),
        "per window": _numbers([noise.unit_moved(*terms), noise.unit_size(terms[0])]),
        "per site": _numbers(noise.site_moved(torch.ones(4, 16).double(), torch.stack(list(moved.values()))).tolist()),
        "site floors": _numbers(worst.site_floors(noise.SITE_ROWS[0]).tolist()),  # type: ignore[union-attr]
        "least floor": _numbers(_floors(0, 0, 0.25, 0.125, 0.5, 0) + _floors(0, 0)),
        "no floor": [str(worst.site_floors("decode.accumulated"))],
        "largest": _numbers([*worst.means.values(), *worst.units.values(), *worst.arrays.values()]),
        "spread": _numbers([*lying.means.values(), *lying.units.values(), *lying.arrays.values()]),
        "spread, names": [*lying.means, *lying.arrays],
        "a NaN among repetitions": [_said(lambda a=a: noise.largest(a).means) for a in _spoilt(apart)]  # type: ignore[misc]
        + [_said(lambda: noise.spread(whole, whole | {"decode.kl": whole["decode.kl"] * NAN}, gated))],
        "implausible": [
            _repeated(whole, share, times * limit, name)
            for share, limit in ((noise.DISTURBED, 0.5), (noise.ELSEWHERE, 0.1))
            for times in (WITHIN, BEYOND)
            for name in ("kl", "decode_kl")
        ],
        "implausible beside": [
            _repeated(whole, 0.0, times, "kl", beside=Noise({"kl": 0.25, "decode_kl": 0.25})) for times in (0.7, 0.8)
        ],
        "disturbance": [f"{(added.abs().max() < 1).item()} {added.square().mean().sqrt().item():.1f}"],
    }


def _repeated(whole: Mapping[str, Tensor], share: float, away: float, name: str, beside: Noise | None = None) -> str:
    """Whether a repetition is noise whose KL lies `away` of itself away, or as many nats where no share is allowed."""
    of_kl = {n: abs(noise.terms_of(n, whole).mean()) for n in ("kl", "decode_kl")}
    means = dict.fromkeys(of_kl, 0.0) | {name: away * (of_kl[name] if share else 1.0)}
    return "no noise" if noise.implausible("there", Noise(means), whole, share, beside) else "noise"


def _floors(*measured: float) -> list[float]:
    floors = Noise(sites={noise.SITE_ROWS[1]: _column(*measured)}).site_floors(noise.SITE_ROWS[1])
    return [] if floors is None else floors.tolist()


def _spoilt(apart: list[Noise]) -> Iterator[list[Noise]]:
    """A repetition that is no number, first and last."""
    bad = replace(apart[0], means=dict.fromkeys(apart[0].means, NAN))
    yield [bad, *apart]
    yield [*apart, bad]


# --- the second count, comparisons ----------------------------------------------------------------------


def _counted() -> Answer:
    evidence = records.text() | records.recall()
    counted = recount.recounted(evidence)
    measured = records.measured(evidence | records.inside())
    answer: dict[str, Tensor | list[str]] = {name: _numbers(pair) for name, pair in sorted(counted.items())}
    alone = records.text() | {
        f"{phase}.document": torch.zeros(records.WINDOWS, dtype=torch.int32) for phase in ("prefill", "decode")
    }
    answer["of one document"] = [
        f"{name} {error}" for name, (_, error) in recount.recounted(alone).items() if math.isnan(error)
    ]
    told = []
    for name in ("kl", "loss_rise", "decode_ppl_ratio", "accuracy", "recall_induction", "kl_p99", "decode_gap"):
        value, error = measured[name].value, measured[name].standard_error
        size = abs(value) + error
        for what, other in {
            "value, within": Measurement(value + 0.9e-6 * size, error),
            "value": Measurement(value + 1.1e-6 * size, error),
            "error, within": Measurement(value, error * (1 + 0.9e-6)),
            "error": Measurement(value, error * (1 + 1.1e-6)),
            "no value": Measurement(NAN, error),
            "no error": Measurement(value, NAN),
        }.items():
            found = recount.miscounted(measured | {name: other}, evidence)
            told.append(f"{name}, {what}: {found[0] if found else 'right'}")
    answer["told"] = told
    return answer


def _compared() -> Answer:
    """Every gated metric, unchanged and in three ways changed; at two levels; stored with a floor and without."""
    whole = records.text() | records.recall() | records.tasks()
    floors = records.record().noise
    means = dict(floors.means) | {name: 0.0 for name in ("task_choice", "task_loss", "task_loss_nats")}
    answer: dict[str, Tensor | list[str]] = {"gated": list(comparisons.gated(whole))}
    answer["least change"] = _numbers(comparisons.least_change(whole).values())
    for name, new in (
        ("better", _shifted(whole, -2.0)),
        ("worse", _shifted(whole, 2.0)),
        ("a little", _shifted(whole, 0.125)),
    ):
        for level in (1e-3, 1e-6) if name == "worse" else (1e-3,):
            made = comparisons.compare(whole, new, replace(floors, means=means), level)
            said = f"{name}, at {level:g}"
            answer[said] = [f"{c.metric}: {_marks(c)}" for c in made]
            answer[f"{said}, numbers"] = _numbers(
                x for c in made for x in (c.worse, c.floor, c.margin, c.paired.p_value)
            )
    few = comparisons.compare(whole, _shifted(whole, 2.0), Noise(), 1e-3, names=("kl", "accuracy", "state_error"))
    answer["without floors, of three names"] = [f"{c.metric}: {_marks(c)} {c.floor == c.margin}" for c in few]
    answer["say"] = [comparisons.say(few)]
    known = metrics_of(whole)
    known["task_a"] = known["task_choice"]
    answer["by item"] = [
        f"{name}: {comparisons.by_item(known[name], Terms(x, x, x))}"
        for name, x in (
            ("accuracy", _column(3)),
            ("kl", _column(1, 0)),
            ("task_a", _column(1, 0)),
            ("task_a", _column(2)),
        )
    ]
    return answer


def _shifted(evidence: Mapping[str, Tensor], by: float) -> dict[str, Tensor]:
    """Everything worse by about so much, not evenly; of what is right or wrong, some."""
    found = dict(evidence)
    for name, x in evidence.items():
        n = x.numel()
        if name.endswith((".nll", ".kl", ".kl_prefill", "loss.value")):
            found[name] = x + by * (4 + mixed(n, 1, 7)) / 8
        elif name.endswith(".agree"):
            found[name] = x - by * (1 + mixed(n, 2, 3))
        elif name.endswith("state_error"):
            found[name] = x * (1 + by / 8)
        elif name.endswith(".log_likelihood"):
            found[name] = x - by / 4
        elif name == "items.correct":
            found[name] = (x.double() * (mixed(n, 3, 5) >= (1 + by))).to(x.dtype) if by > 0 else torch.ones_like(x)
        elif name.endswith((".right", "choice.value")):
            found[name] = (x.double() - by * (mixed(n, 1, 2))).clamp(min=0).to(x.dtype)
    return found


def _marks(c: comparisons.Comparison) -> str:
    marks = {"worse": c.worse > 0, "significant": c.significant, "suspicious": c.suspicious, "unsure": c.unsure}
    return " ".join(name for name, holds in marks.items() if holds)


# --- findings -------------------------------------------------------------------------------------------


def _found() -> Answer:
    """Each finder, of changes just within and just beyond what it allows: the place that it names."""
    old = records.record()
    return {
        "scales": [*_scales(old)],
        "local errors": [*_local_errors(old)],
        "shares": [*_shares(old)],
        "counts": [*_counts(old)],
        "order": [*_orders(old)],
        "references": [*_references(old)],
        "sites": [*_moved_sites(old)],
        "metrics": [*_moved_metrics(old)],
        "arrays": [*_moved_arrays(old)],
        "gone": [*_gone(old)],
        "broken": [*_broken(old)],
    }


def _at(found: Finding | None) -> str:
    return found.place if found else "nothing"


def _scales(old: Record) -> Iterator[str]:
    for name, scale in old.artefacts.scales.items():
        for steps in (1, 2, -2, 500_000):
            new = with_scales(old, {name: steps_on(scale, steps, at=-1)})
            yield f"{name} {steps} ulp: {_at(findings.first_changed_artefact(old, new))}"
    first, last = SITES[0], SITES[-1]
    twice = {last: torch.tensor([9.0]), first: torch.tensor([9.0])}
    other = dict(old.artefacts.digests) | {"embedding.weight": "x"}
    for what, new in {
        "gone": with_scales(old, {first: None}),
        "left float": with_scales(old, {first: torch.empty(0)}),
        "as a group": with_scales(old, {first: old.artefacts.scales[first].repeat(2)}),
        "two": with_scales(old, twice),
        "integers": replace(old, artefacts=replace(old.artefacts, digests=other)),
        "no integers": replace(old, artefacts=replace(old.artefacts, digests={})),
    }.items():
        found = (_at(findings.first_changed_artefact(*pair)) for pair in ((old, new), (new, old)))
        yield f"{what}: {', '.join(found)}"
    yield str(recording.scale_steps_apart(torch.tensor([1.0, 2.0]), torch.tensor([1.0, 2.0 + 2 * EPS])).tolist())


def _local_errors(old: Record) -> Iterator[str]:
    """By the bound's own formula, once more: 2 sqrt(mse) d + d^2, d = 2 q eps step, of the larger mse."""
    shifted = replace(old, settings=dict(old.settings) | {"symmetric": False})
    for what, stored in (("", old), (" at 4 bits", replace(old, settings=dict(old.settings) | {"act_bits": 4})),
                         (" of one step and its zero point", shifted)):  # fmt: skip
        q = 8 if "4 bits" in what else 128
        for site, step in zip(SITES, (0.05, 0.25 if "zero" in what else 1.0, 0.0625, 2.0), strict=True):
            if "zero" in what and site != SITES[1]:
                continue  # only that one has a second half
            d = 2 * q * EPS * step
            mse = old.evidence["sites.local_mse"][SITES.index(site)].item()
            for times in (WITHIN, BEYOND):
                array = old.evidence["sites.local_mse"].clone()
                array[SITES.index(site)] -= times * (2 * mse**0.5 * d + d * d)
                found = findings.first_changed_local_error(stored, altered(stored, {"sites.local_mse": array}))
                yield f"{site}{what} {times}: {_at(found)}"


def _shares(old: Record) -> Iterator[str]:
    for name in ("clipped", "range_used", "range_wasted"):
        for i, site in enumerate(SITES):
            before = old.evidence[f"sites.{name}"][i].item()
            for times in (WITHIN, BEYOND):
                array = old.evidence[f"sites.{name}"].clone()
                array[i] += times * 1e-4 * max(1.0, before)
                new = altered(old, {f"sites.{name}": array})
                yield f"{name} {site} {times}: {_at(findings.first_changed_local_error(old, new))}"


def _counts(old: Record) -> Iterator[str]:
    for name in ("scales.count", "scales.bytes", "model.bytes"):
        for more in (1, -1):
            new = altered(old, {name: old.evidence[name] + more})
            yield f"{name} {more:+d}: {_at(findings.first_changed_count(old, new))}"
    unknown = altered(old, {"scales.count": torch.tensor(NAN)})
    yield f"unknown: {_at(findings.first_changed_count(unknown, old))}"


def _orders(old: Record) -> Iterator[str]:
    for name in ("groups.channel_index", "groups.of_channel"):
        for layer in (0, 1):
            array = old.evidence[name].clone()
            array[layer] = array[layer].roll(1)
            new = altered(old, {name: array})
            yield f"{name} of layer {layer}: {_at(findings.first_changed_order(old, new))}"
        new = without(old, name)
        found = (_at(findings.first_changed_order(*pair)) for pair in ((old, new), (new, old)))
        yield f"{name} gone: {', '.join(found)}"


def _references(old: Record) -> Iterator[str]:
    whole = dict(old.evidence) | records.tasks()
    for name, array in whole.items():
        rule = arrays.rule_of(name)
        if rule is Rule.REFERENCE:
            changed = {str(t): array * (1 + t * 2 * EPS) for t in (WITHIN, BEYOND)}
            one = array.clone()
            one[-1] *= 1 + BEYOND * 2 * EPS
            changed["the last alone"] = one
        elif rule is Rule.EXACT:
            one = array.clone()
            one.view(-1)[-1] += 1
            changed = {"by one": one}
        else:
            changed = {"all else": array + 1}
        for what, new in changed.items():
            yield f"{name} {what}: {_at(findings.first_changed_reference({name: array}, {name: new}))}"


def _moved_sites(old: Record) -> Iterator[str]:
    """Floors are 1, 1, 2, 2 of SITE; three of them are noise, and what is below a thousandth."""
    quiet = replace(old, noise=replace(old.noise, sites={r: torch.zeros(len(SITES)).double() for r in old.noise.sites}))
    for stored, limits, what in (
        (old, [3 * SITE * n for n in (1, 1, 2, 2)], ""),
        (quiet, [1e-3] * 4, " without noise"),
    ):
        for rows in ("sites.accumulated", "decode.accumulated"):
            for i, limit in enumerate(limits):
                for times in (WITHIN, -BEYOND):
                    array = old.evidence[rows].clone()
                    array[i] *= torch.tensor(times * limit).double().exp()
                    new = altered(stored, {rows: array})
                    yield f"{rows} {SITES[i]} {times}{what}: {_at(findings.first_moved_site(stored, new))}"
    for windows in (2, 4):
        array = old.evidence["decode.accumulated"].clone()
        array[2, :windows] *= 4
        new = altered(old, {"decode.accumulated": array})
        yield f"{windows} windows of {records.WINDOWS}: {_at(findings.first_moved_site(old, new))}"
    unmeasured = replace(old, noise=Noise())
    array = old.evidence["sites.accumulated"] * 4
    new = altered(old, {"sites.accumulated": array})
    yield f"without floors: {_at(findings.first_moved_site(unmeasured, new))}"


ALTERNATING = torch.tensor([1.0, -1.0], dtype=torch.float64)


def _moved_metrics(old: Record) -> Iterator[str]:
    """Up and down by turns, so that no mean moves; in windows of 48, 56 and 64 tokens, of 56 on the mean."""
    quiet = replace(old, noise=replace(old.noise, units=dict.fromkeys(old.noise.units, 0.0)))
    compared = comparisons.compare(old.evidence, old.evidence, old.noise, 1e-3, names=comparisons.sensitive())
    for stored, what in ((old, ""), (quiet, " without noise")):
        for name in ("prefill.nll", "prefill.kl", "decode.nll", "decode.kl", "decode.kl_prefill", "long.state_error"):
            array, phase = old.evidence[name], name.split(".")[0]
            if phase == "long":
                size, unit = array[:, -1].mean(0).square().mean().sqrt(), _column(1.0)
            else:
                unit = old.evidence[f"{phase}.tokens"].mean()
                size = max((old.evidence[f"{p}.kl"] / old.evidence[f"{p}.tokens"].mean()).square().mean().sqrt()
                           for p in ("prefill", "decode"))  # fmt: skip
            limit = unit * (1e-3 * size if what else max(3 * UNIT, 1e-3 * float(size)))
            for times in (WITHIN, BEYOND):
                change = times * limit * ALTERNATING.repeat(array.shape[-1] // 2)
                new = altered(stored, {name: array + change})
                found = findings.first_moved_metric(stored, new, compared)
                yield f"{name} {times}{what}: {_at(found)}"


def _moved_arrays(old: Record) -> Iterator[str]:
    quiet = dict.fromkeys(old.noise.arrays, 0.0)
    for name, array in old.evidence.items():
        rule = arrays.rule_of(name)
        if rule is Rule.NOISY:
            for floors, limit, what in ((old.noise.arrays, 3 * ARRAY, ""), (quiet, 1e-3, " without noise")):
                for times in (WITHIN, BEYOND):
                    new = {name: array.double() * (1 + times * limit)}
                    found = findings.first_moved_array({name: array}, new, Noise(arrays=floors))
                    yield f"{name} {times}{what}: {_at(found)}"
        if rule is Rule.QUANTILES:
            yield from _moved_quantiles(old, name, quiet)


def _moved_quantiles(old: Record, name: str, quiet: Mapping[str, float]) -> Iterator[str]:
    """By their own error, where noise is none; by noise, where their error is none."""
    phase = name.split(".")[0]
    table = old.evidence[f"{phase}.kl_quantiles"].clone()
    unsure = {name: old.evidence[name], f"{phase}.kl_quantiles": table}
    sure = unsure | {f"{phase}.kl_quantiles": torch.stack([table[:, 0], 0 * table[:, 1]], dim=1)}
    for evidence, floors, what in ((unsure, quiet, "its error"), (sure, dict.fromkeys(quiet, ARRAY), "noise")):
        for row in (0, 3):
            limit = table[row, 1] if what == "its error" else 3 * ARRAY * evidence[name][row, 0]
            for times in (WITHIN, -BEYOND):
                array = evidence[name].clone()
                array[row, 0] += times * limit
                found = findings.first_moved_array(evidence, dict(evidence) | {name: array}, Noise(arrays=floors))
                yield f"{name} {row} {times} of {what}: {_at(found)}"


def _gone(old: Record) -> Iterator[str]:
    whole = dict(old.evidence) | records.tasks()
    for name, array in whole.items():
        less = {n: x for n, x in whole.items() if n != name}
        half = whole | {name: array.view(-1)[::2]} if array.ndim else whole | {name: array.view(1).repeat(2)}
        both = _at(findings.first_gone(whole, less)), _at(findings.first_gone(whole, half))
        yield f"{name}: {both[0]}, half {both[1]}, new {_at(findings.first_gone(less, whole))}"
    yield f"a metric: {_at(findings.first_gone(whole, whole, ('of old',)))}"
    restated = replace(old, restated={"kl": ("1", "2")})
    yield f"restated: {_at(findings.first_restated(restated))}, {_at(findings.first_restated(old))}"


def _broken(old: Record) -> Iterator[str]:
    for name, array in old.evidence.items():
        if array.is_floating_point():
            for value in (NAN, -INF):
                spoilt = array.clone()
                spoilt.view(-1)[-1] = value
                beside = {n: x for n, x in old.evidence.items() if n == name.replace("left_out", "quantiles")}
                was, now = (replace(old, evidence=beside | {name: x}, metrics={}) for x in (array, spoilt))
                yield f"{name} {value}: {_at(findings.first_broken(was, now))}, {_at(findings.first_broken(now, was))}"
    float_now = old.evidence["sites.range_used"].clone()
    float_now[0] = NAN
    new = with_scales(altered(old, {"sites.range_used": float_now}), {SITES[0]: torch.empty(0)})
    yield f"a site left float: {_at(findings.first_broken(old, new))}"
    wrong = replace(old, metrics=dict(old.metrics) | {"kl": Measurement(0.5, 0.5)})
    yield f"a metric that its evidence contradicts: {_at(findings.first_broken(old, wrong))}"


# --- verdicts -------------------------------------------------------------------------------------------


def _judged() -> Answer:
    return {
        "first looks": [*_first_looks()],
        "second looks": [*_second_looks()],
        "by the number of cases": [*_by_cases()],
        "what passes": [*_passes()],
    }


def _verdict(*args: object, **more: object) -> str:
    """Status, unit, place, and whether a second look is called for; or what is raised."""
    try:
        v = verdicts.judge(*args, **more)  # type: ignore[arg-type]
    except NonFinite:
        return "NonFinite"
    marks = (f"unit {v.unit}" * bool(v.unit), "suspicious" * v.suspicious, "portable" * v.portable)
    return " ".join(filter(None, (v.status.value, v.place, *marks)))


def _kl(record: Record, by: Tensor | float) -> Record:
    return with_arrays(record, {"prefill.kl": record.evidence["prefill.kl"] + by})


def _first_looks() -> Iterator[str]:
    whole, old = records.record(), records.record(*SOME)
    scale = with_scales(old, {SITES[1]: steps_on(old.artefacts.scales[SITES[1]], 2)})
    probe = Finding("observer/percentile", "0.5 -> 0.25")
    one = torch.zeros(records.WINDOWS, dtype=torch.float64)
    one[0] = 40.0  # of a document alone
    quiet = replace(old, noise=replace(old.noise, arrays=dict(old.noise.arrays) | {"decode.kl_by_step": NAN}))
    made: dict[str, tuple[Record, Record | None, dict[str, object]]] = {
        "nothing, of another machine class": (whole, whole, {"portable": True}),
        "all worse": (with_arrays(whole, _shifted(whole.evidence, 2.0)), whole, {}),
        "nothing": (old, old, {}),
        "nothing stored": (old, None, {}),
        "another setting": (replace(old, settings=dict(old.settings) | {"calib_length": 64}), old, {}),
        "a setting more": (replace(old, settings=dict(old.settings) | {"seed": 1}), old, {}),
        "a metric more": (replace(old, settings=dict(old.settings) | {"metric.new": 1}), old, {}),
        "a metric's version": (replace(old, settings=dict(old.settings) | {"metric.kl": 2}), old, {}),
        "a probe": (old, old, {"probe": probe}),
        "a probe and a scale": (scale, old, {"probe": probe}),
        "a scale": (scale, old, {}),
        "a count": (with_arrays(old, {"model.bytes": old.evidence["model.bytes"] + 1}), old, {}),
        "a reference": (with_arrays(old, {"sites.signal": old.evidence["sites.signal"] * 2}), old, {}),
        "an error inside": (with_arrays(old, {"decode.accumulated": old.evidence["decode.accumulated"] * 2}), old, {}),
        "an array": (with_arrays(old, {"decode.kl_by_step": old.evidence["decode.kl_by_step"] * 2}), old, {}),
        "worse": (_kl(old, 1 + mixed(records.WINDOWS, 1, 5) / 16), old, {}),
        "worse, and a scale": (_kl(scale, 1 + mixed(records.WINDOWS, 1, 5) / 16), old, {}),
        "better": (_kl(old, -1 - mixed(records.WINDOWS, 1, 5) / 16), old, {}),
        "worse in one document, and a scale": (_kl(scale, one), old, {}),
        "a formula": (old, replace(old, restated={"kl": ("1", "2")}), {}),
        "a metric less": (old, replace(old, gone=("of old",)), {}),
        "items less": (without(old, "items.correct"), old, {}),
        "no number": (altered(old, {"decode.kl": old.evidence["decode.kl"] * NAN}), old, {}),
        "a floor that is none": (old, quiet, {}),
        "without floors": (_kl(old, -1 - mixed(records.WINDOWS, 1, 5) / 16), replace(old, noise=Noise()), {}),
    }
    for what, (new, stored, more) in made.items():
        yield f"{what}: {_verdict(new, stored, FEW, **more)}"


def _second_looks() -> Iterator[str]:
    """Of 40 items some turn wrong, and of the rest's 120. In a file of 200 cases, at three metrics, 21 in one look are
    enough to tell and 22 where there may be two; 14 would be if the row stood alone.
    """
    right = torch.ones(records.ITEMS, dtype=torch.uint8)
    base = with_arrays(records.record(*SOME), {"items.correct": right})
    floors = replace(base.noise, arrays={n: x for n, x in base.noise.arrays.items() if n != "items.correct"})
    rest = records.text(windows=48, items=120, shift=3) | {"items.correct": torch.ones(120, dtype=torch.uint8)}
    old = replace(base, noise=floors, rest=rest, rest_digest="rest")

    def wrong(n: int) -> Record:
        return with_arrays(old, {"items.correct": (torch.arange(len(right)) >= n).to(torch.uint8)})

    for n in (20, 21):
        yield f"{n} wrong in one look: {_verdict(wrong(n), replace(old, rest={}), MANY)}"
    for n in (12, 14, 21, 22):
        yield f"{n} wrong at first: {_verdict(wrong(n), old, MANY)}"
    for n in (0, 21, 22):
        again = rest | {"items.correct": (torch.arange(120) >= n).to(torch.uint8)}
        yield f"{n} wrong in the rest: {_verdict(wrong(14), old, MANY, rest=again)}"
    less = {name: x for name, x in rest.items() if name != "items.correct"}
    yield f"a rest without items: {_verdict(wrong(14), old, MANY, rest=less)}"
    one = torch.zeros(records.WINDOWS, dtype=torch.float64)
    one[0] = 40.0
    doubtful = _kl(with_scales(old, {SITES[1]: torch.tensor([9.0, 9.0, 9.0])}), one)
    yield f"too few to tell: {_verdict(doubtful, old, FEW)}"
    yield f"too few to tell, cleared: {_verdict(doubtful, old, FEW, rest=rest)}"
    yield f"sure at first, cleared by the rest: {_verdict(wrong(40), old, MANY, rest=rest)}"
    better = rest | {"prefill.kl": rest["prefill.kl"] - 2 - mixed(48, 1, 5) / 16}
    yield f"better in the rest: {_verdict(wrong(14), old, MANY, rest=better)}"


def _by_cases() -> Iterator[str]:
    """How many cases a file may have for a change to be red: Holm's first share of a thousandth over them."""
    old = replace(records.record(*SOME), noise=Noise())
    new = _kl(old, 0.5 + mixed(records.WINDOWS, 1, 5) / 8)
    (c,) = [
        c for c in comparisons.compare(old.evidence, new.evidence, old.noise, 1e-3, old.metrics) if c.metric == "kl"
    ]
    tested = len(comparisons.compare(old.evidence, old.evidence, old.noise, 1e-3, old.metrics))
    limit = 1e-3 / (tested * c.paired.p_value)
    for n in (int(limit), int(limit) + 1):
        yield f"{'within' if n < limit else 'beyond'}: {_verdict(new, old, n)}"


def _passes() -> Iterator[str]:
    for status in verdicts.Status:
        row = verdicts.Verdict("c", status)
        written = replace(row, written=True).passes()
        yield f"{status.value}: {row.passes()}, {row.passes(allow_drift=True)}, written {written}"
    yield ", ".join(status.value for status in verdicts.SEVERITY)


# --- stored files ---------------------------------------------------------------------------------------


def _stored() -> Answer:
    """Written to a folder that goes again, and read; harmed in each way, and read."""
    whole = records.record()
    noted = replace(
        whole,
        evidence=dict(whole.evidence) | records.tasks(),
        accepted="why",
        rest=records.text(windows=4, items=4),
        rest_digest="rest",
        metrics=dict(whole.metrics) | {"decode_kl": Measurement(1.0, 2.0)},  # as another formula would have it
        settings=dict(whole.settings) | {"metric.decode_kl": 1},
    )
    with scratch() as root:
        path = root / "suite" / "cpu-x86_64-avx512" / "m.json"
        baselines.write_baseline(path, {whole.case_id: noted})
        read = _said_read(path, noted)
        small = records.record(*SOME)
        baselines.write_baseline(path, {small.case_id: small})
        harmed = [*_harmed(path)]
        baselines.write_baseline(path, {small.case_id: replace(small, noise=replace(small.noise, units={"kl": NAN}))})
        harmed.append(f"a floor that is no number: {_said(lambda: baselines.read_baseline(path))}")
        return {"read": read, "refused": harmed, "store": [*_kept(root, small)], "nearest": [*_nearest(root)]}


def _said_read(path: Path, stored: Record) -> list[str]:
    (read,) = baselines.read_baseline(path).values()
    kinds: dict[str, tuple[Mapping[str, Tensor], Mapping[str, Tensor]]] = {
        "evidence": (stored.evidence, read.evidence),
        "rest": (stored.rest, read.rest),
        "scales": (stored.artefacts.scales, read.artefacts.scales),
        "floors of sites": (stored.noise.sites, read.noise.sites),
    }
    said = [f"{kind}: {_equal(a, b)}" for kind, (a, b) in kinds.items()]
    same = [
        name
        for name in (
            "case_id",
            "settings",
            "provenance",
            "accepted",
            "rest_digest",
            "gone",
            "protocol",
            "artefact_digest",
        )
        if getattr(read, name) == getattr(stored, name)
    ]
    floors = [k for k in ("means", "units", "arrays") if getattr(read.noise, k) == getattr(stored.noise, k)]
    values = [n for n, m in stored.metrics.items() if n in read.metrics and _near(m, read.metrics[n])]
    return [
        *said,
        f"same: {', '.join(same)}",
        f"floors: {', '.join(floors)}",
        f"integers: {read.artefacts.digests == stored.artefacts.digests}",
        f"order: {list(read.artefacts.scales) == list(stored.artefacts.scales)}",
        f"metrics: {len(values)} of {len(stored.metrics)}",
        f"restated: {', '.join(read.restated)}",
        f"judged: {_verdict(read, replace(read, restated={}), FEW)}",
    ]


def _equal(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> bool:
    return list(sorted(a)) == list(sorted(b)) and all(a[n].dtype == b[n].dtype and torch.equal(a[n], b[n]) for n in a)


def _near(a: Measurement, b: Measurement) -> bool:
    pairs = ((a.value, b.value), (a.standard_error, b.standard_error))
    return all(x == y or (math.isnan(x) and math.isnan(y)) for x, y in pairs)


def _harmed(path: Path) -> Iterator[str]:
    whole = path.read_text()
    (evidence,) = path.parent.glob("*.safetensors")
    blob = evidence.read_bytes()
    document = json.loads(whole)
    case = next(iter(document["cases"]))

    def edited(change: Callable[[dict[str, object]], object], and_digest: bool = False) -> str:
        other = json.loads(whole)
        change(other["cases"][case])
        if and_digest:
            other["sha256"] = hashlib.sha256(json.dumps(other["cases"], sort_keys=True).encode()).hexdigest()
        return json.dumps(other)

    texts = {
        "whole": whole,
        "cut short": whole[:-20],
        "a list": "[]",
        "of a newer schema": json.dumps(document | {"schema": 99}),
        "of no schema": json.dumps(document | {"schema": 0}),
        "a setting edited": edited(lambda e: e["settings"].update(calib_length=1)),  # type: ignore[attr-defined]
        "a setting edited, and the digest": edited(lambda e: e["settings"].update(calib_length=1), True),  # type: ignore[attr-defined]
        "a metric edited": edited(lambda e: e["metrics"].update(kl=[1.0, 1.0])),  # type: ignore[attr-defined]
        "a floor edited": edited(lambda e: e["noise"]["means"].update(kl=9.0)),  # type: ignore[index]
        "a floor below nothing": edited(lambda e: e["noise"]["means"].update(kl=-1.0), True),  # type: ignore[index]
        "a floor without end": edited(lambda e: e["noise"]["means"].update(kl=INF), True),  # type: ignore[index]
        "integers edited, and the digest": edited(lambda e: e["weights"].update({"embedding.weight": "x"}), True),  # type: ignore[attr-defined]
        "evidence elsewhere": json.dumps(document | {"evidence": {**document["evidence"], "file": "../m.safetensors"}}),
    }
    for what, text in texts.items():
        path.write_text(text)
        yield f"{what}: {_read(path)}"
    path.write_text(whole)
    for what, bytes_ in {"evidence cut short": blob[:-1], "one bit of it": blob[:-1] + bytes([blob[-1] ^ 1])}.items():
        evidence.write_bytes(bytes_)
        yield f"{what}: {_read(path)}"
    evidence.unlink()
    yield f"no evidence: {_read(path)}"


def _read(path: Path) -> str:
    try:
        return ", ".join(baselines.read_baseline(path))
    except NewerSchema:
        return "newer"
    except BadArtefact:
        return "refused"


def _kept(root: Path, small: Record) -> Iterator[str]:
    """What a class's file has after each write; what is read is what stands there."""
    store = baselines.BaselineStore(root / "kept", "cpu-x86_64-avx512")

    def there() -> str:
        found = store.find("suite", "m")
        return (
            "nothing" if found is None else ", ".join(f"{i} {r.provenance['machine']}" for i, r in found.cases.items())
        )

    yield there()
    store.write("suite", "m", [small])
    yield there()
    store.write("suite", "m", [replace(small, provenance={"machine": "again"}), replace(small, case_id="m/other")])
    yield there()
    store.remove("suite", "m", ["m/other"])
    yield f"{there()}, {'a case that is not there' if store.find('suite', 'm', 'm/other') else 'no such case'}"
    store.write("suite", "m", [replace(small, case_id="m/other")], afresh=True)
    yield there()
    store.remove("suite", "m", ["m/other"])
    yield f"{there()}, {len(list((root / 'kept').rglob('*.*')))} files"


def _nearest(root: Path) -> Iterator[str]:
    classes = ("cpu-aarch64-default", "cpu-x86_64-avx2", "cpu-x86_64-default", "cuda-x86_64-h100")
    for machine in classes:
        path = root / "near" / "suite" / machine / "m.json"
        path.parent.mkdir(parents=True)
        path.touch()
    for machine in ("cpu-x86_64-avx512", "cpu-x86_64-default", "cpu-aarch64-sve", "cuda-x86_64-a100"):
        files = baselines.BaselineStore(root / "near", machine).files("suite", "m")
        yield f"{machine}: {', '.join(path.parent.name for path in files)}"
