"""Faults in the judge itself: what it allows, what it looks at, how it counts, what it reads, what it lets pass.

None changes a result, so that nothing but the judge's own probes can tell; and since a judge with a fault cannot be
trusted to tell it, the row is an ERROR that names the probe. Judging knows no architecture: each stands in one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import replace
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import torch
from scipy import stats as scipy_stats
from torch import Tensor

from quambench.evaluation import fields
from quambench.gate import arrays, baselines, comparisons, deciding, findings, noise, probes, recount, stats, verdicts
from quambench.gate.baselines import BaselineStore
from quambench.gate.noise import Noise
from quambench.gate.stats import Paired
from quambench.gate.verdicts import Status, Verdict
from quambench.metrics import Terms
from quambench.selftest.faults.base import ONE, OTHER, Plant, fault
from quambench.selftest.faults.planting import planted, wrapped

_TURNS = cycle((ONE, OTHER))


def judging(name: str, unit: str) -> Callable[[Plant], Plant]:
    """Enter a fault of the judge, in one architecture after the other."""
    return fault(name, f"judge/({unit})", error=True, architectures=next(_TURNS))


@contextmanager
def both(*planted: AbstractContextManager[Any]) -> Iterator[None]:
    with ExitStack() as stack:
        for one in planted:
            stack.enter_context(one)
        yield


# --- what is allowed ------------------------------------------------------------------------------------


@judging("a scale may be 500,000 steps off", "findings")
def _() -> AbstractContextManager[Any]:
    return planted(findings, "MAX_SCALE_ULP", 500_000)


@judging("a scale may be two steps off", "findings")
def _() -> AbstractContextManager[Any]:
    return planted(findings, "MAX_SCALE_ULP", 2)


@judging("thirty times the noise is noise", "comparisons")
def _() -> AbstractContextManager[Any]:
    return planted(comparisons, "BEYOND", 30.0)


@judging("nothing counts below the size of what is measured", "comparisons")
def _() -> AbstractContextManager[Any]:
    return planted(comparisons, "LEAST_CHANGE", 1.0)


@judging("shares are compared relative to what they were", "findings")
def _() -> AbstractContextManager[Any]:
    def relative(original: Any, old: Any, new: Any, name: str) -> Iterator[tuple[str, float, float]]:
        share = name in findings.SHARES
        return ((s, 1.0, b / a) if share and a else (s, a, b) for s, a, b in original(old, new, name))

    return wrapped(findings, "_by_site", relative)


@judging("counts are compared to a hundredth", "findings")
def _() -> AbstractContextManager[Any]:
    def close(original: Any, old: Any, new: Any) -> Any:
        near = {
            name: old.evidence[name]
            for name in findings.COUNTED
            if math.isclose(old.evidence[name].item(), new.evidence[name].item(), rel_tol=1e-2)
        }
        return original(old, replace(new, evidence=dict(new.evidence) | near))

    return wrapped(findings, "first_changed_count", close)


@judging("what float says may be a hundredth off", "arrays|findings")
def _() -> AbstractContextManager[Any]:
    return planted(arrays, "REFERENCE_TOLERANCE", 1e-2)


@judging("half of the windows may be lost to ties", "noise")
def _() -> AbstractContextManager[Any]:
    return planted(arrays, "TIES", 0.5)


@judging("a row's numbers may be a hundredth beside their evidence", "recount")
def _() -> AbstractContextManager[Any]:
    return planted(recount, "TOLERANCE", 1e-2)


@judging("repetitions ten times apart are noise", "noise")
def _() -> AbstractContextManager[Any]:
    def ten_times(original: Any, side: str, apart: Any, evidence: Any, share: float, beside: Any = None) -> Any:
        return original(side, apart, evidence, 10.0 * share, beside)

    return wrapped(noise, "implausible", ten_times)


@judging("a repetition in another process may be ten times itself away", "noise")
def _() -> AbstractContextManager[Any]:
    return planted(noise, "ELSEWHERE", 10.0)


# --- what is looked at ----------------------------------------------------------------------------------


@judging("local errors of the first site alone", "findings")
def _() -> AbstractContextManager[Any]:
    return wrapped(findings, "_by_site", lambda original, *args: islice(original(*args), 1))


@judging("errors inside the model in prefill alone", "findings")
def _() -> AbstractContextManager[Any]:
    return planted(findings, "SITE_ROWS", ("sites.accumulated", "sites.accumulated"))


@judging("what was stored and is gone is skipped", "findings")
def _() -> AbstractContextManager[Any]:
    def kept(original: Any, old: Mapping[str, Tensor], new: Mapping[str, Tensor], *more: Any) -> Any:
        return original({name: array for name, array in old.items() if name in new}, new, *more)

    return wrapped(findings, "first_gone", kept)


@judging("an array that is shorter now is compared with no other", "findings")
def _() -> AbstractContextManager[Any]:
    def alike(original: Any, old: Mapping[str, Tensor], new: Mapping[str, Tensor], *more: Any) -> Any:
        same = {name: a for name, a in old.items() if name not in new or new[name].shape == a.shape}
        return original(same, new, *more)

    return wrapped(findings, "first_gone", alike)


@judging("arrays that nobody named are compared by no rule", "arrays")
def _() -> AbstractContextManager[Any]:
    return planted(fields, "FROM_OUTSIDE", replace(fields.FROM_OUTSIDE, rule=fields.Rule.ELSEWHERE))


@judging("documents may be others", "arrays")
def _() -> AbstractContextManager[Any]:
    document = replace(fields.field_of("prefill.document"), rule=fields.Rule.ELSEWHERE)
    return planted(fields, "FIELDS", (document, *fields.FIELDS))


@judging("infinity is no failed measurement", "noise")
def _() -> AbstractContextManager[Any]:
    return planted(arrays, "lost", lambda old, new: old.isfinite() & new.isnan())


@judging("a metric's other formula is ignored", "findings")
def _() -> AbstractContextManager[Any]:
    return planted(findings, "first_restated", lambda old: None)


# --- how it is counted ----------------------------------------------------------------------------------


@judging("the level is not split over cases", "verdicts")
def _() -> AbstractContextManager[Any]:
    def whole(original: Any, old: Any, new: Any, floors: Any, level: float, *more: Any) -> Any:
        return original(old, new, floors, comparisons.FAMILY_LEVEL, *more)

    return wrapped(verdicts, "compare", whole)


@judging("each of two looks has the whole level", "verdicts")
def _() -> AbstractContextManager[Any]:
    return planted(verdicts, "LOOKS", 1)


@judging("Holm's correction goes on where it must stop", "stats")
def _() -> AbstractContextManager[Any]:
    def on(p_values: Mapping[str, float], level: float) -> set[str]:
        ranked = sorted(p_values, key=lambda name: p_values[name])
        return {name for rank, name in enumerate(ranked) if p_values[name] < level / (len(ranked) - rank)}

    return planted(stats, "holm", on)


@judging("no correction for many metrics", "stats")
def _() -> AbstractContextManager[Any]:
    return planted(stats, "holm", lambda p, level: {name for name in p if p[name] < level})


@judging("tests are one-sided", "stats")
def _() -> AbstractContextManager[Any]:
    def halved(original: Any, *args: Any) -> Paired:
        found: Paired = original(*args)
        return replace(found, p_value=found.p_value / 2)

    return wrapped(stats, "_t_test", halved)


@judging("McNemar's test over all items", "stats")
def _() -> AbstractContextManager[Any]:
    def over_all(original: Any, old: Tensor, new: Tensor, level: float) -> Paired:
        found: Paired = original(old, new, level)
        p_value = scipy_stats.binomtest(int((new > old).sum()), len(old)).pvalue
        return replace(found, p_value=float(p_value))

    return both(
        wrapped(stats, "mcnemar", over_all),
        planted(comparisons, "mcnemar", lambda *args: stats.mcnemar(*args)),
    )


@judging("means are tested over windows", "stats")
def _() -> AbstractContextManager[Any]:
    def each(terms: Terms) -> Terms:
        return Terms(terms.values, terms.weights, torch.arange(len(terms.values)))

    original = stats.paired
    return planted(stats, "paired", lambda old, new, level: original(each(old), each(new), level))


@judging("the larger of NaN and a number is what Python makes of it", "deciding")
def _() -> AbstractContextManager[Any]:
    return planted(deciding, "larger", lambda *values, what: max(values))


@judging("NaN is beyond nothing", "deciding")
def _() -> AbstractContextManager[Any]:
    return planted(deciding, "beyond", lambda value, limit, what: value > limit)


@judging("the noise is the last repetition's", "noise")
def _() -> AbstractContextManager[Any]:
    return planted(noise, "largest", lambda of: of[-1])


@judging("each site's floor is its own, or none", "noise")
def _() -> AbstractContextManager[Any]:
    return planted(Noise, "site_floors", lambda self, rows: self.sites.get(rows))


@judging("standard errors are not counted again", "recount")
def _() -> AbstractContextManager[Any]:
    def values(metrics: Any, evidence: Any) -> tuple[str, str] | None:
        for name, (value, _) in recount.recounted(evidence).items():
            if name in metrics and not math.isclose(metrics[name].value, value, rel_tol=1e-6):
                return name, "another value"
        return None

    return planted(recount, "miscounted", values)


# --- what is said ---------------------------------------------------------------------------------------


@judging("everything is the same", "verdicts")
def _() -> AbstractContextManager[Any]:
    return planted(verdicts, "_decide", lambda *_: (Status.SAME, ""))


@judging("a second look stands in for the first", "verdicts")
def _() -> AbstractContextManager[Any]:
    def second(original: Any, first: Any, again: Any, changed: bool) -> Any:
        return original(() if again else first, again, changed)

    return wrapped(verdicts, "_decide", second)


@judging("nothing is suspicious", "verdicts|comparisons")
def _() -> AbstractContextManager[Any]:
    original = comparisons.compare

    def sure(*args: Any, **more: Any) -> Any:
        return tuple(replace(c, suspicious=False) for c in original(*args, **more))

    return planted(comparisons, "compare", sure)


@judging("too few to tell passes", "verdicts")
def _() -> AbstractContextManager[Any]:
    return lets_pass(Status.INCONCLUSIVE)


@judging("drift always passes", "verdicts")
def _() -> AbstractContextManager[Any]:
    return lets_pass(Status.DRIFTED)


@judging("a setting that changed makes nothing stale", "verdicts")
def _() -> AbstractContextManager[Any]:
    return planted(verdicts, "changed_fields", lambda old, new: "")


def lets_pass(status: Status) -> AbstractContextManager[Any]:
    """Rows of this status are green."""

    def passes(original: Any, self: Verdict, allow_drift: bool = False) -> bool:
        return self.status is status or original(self, allow_drift)

    return wrapped(Verdict, "passes", passes)


# Its rows are ERROR as those above; that they pass is told by an exception, which names no unit.
@fault("whatever is said passes", error=True, architectures=ONE)
def _() -> AbstractContextManager[Any]:
    return planted(Verdict, "passes", lambda self, allow_drift=False: True)


# --- what is read ---------------------------------------------------------------------------------------


@judging("a stored file is read once and for all", "baselines")
def _() -> AbstractContextManager[Any]:
    known: dict[Path, Any] = {}

    def once(original: Any, path: Path) -> Any:
        if path not in known:
            known[path] = original(path)
        return known[path]

    return wrapped(baselines, "read_baseline", once)


@judging("floors are read as they stand", "baselines")
def _() -> AbstractContextManager[Any]:
    return planted(
        baselines, "_floors", lambda stored: {n: math.nan if v is None else float(v) for n, v in stored.items()}
    )


@judging("another class' file is any", "baselines")
def _() -> AbstractContextManager[Any]:
    return planted(BaselineStore, "_distance", lambda self, path: (0, path.parent.name))


@judging("answers of probes are compared by nothing", "probes")
def _() -> AbstractContextManager[Any]:
    return planted(probes, "_difference", lambda answer, stored: "")


@judging("answers of probes may be 1,000 steps off", "probes")
def _() -> AbstractContextManager[Any]:
    return planted(probes, "MAX_SCALE_ULP", 1000)


@judging("a probe that crashes says nothing", "probes")
def _() -> AbstractContextManager[Any]:
    def silent(original: Any, *args: Any) -> Any:
        result = original(*args)
        return replace(result, status="same") if result.status == "error" else result

    return wrapped(probes, "_ask", silent)
