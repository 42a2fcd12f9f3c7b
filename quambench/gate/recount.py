"""The numbers of a row counted once more, from its evidence, by other code than that which measured them.

A wrong standard error or a wrong clustering makes every comparison wrong at once and looks like nothing. So each
metric is compared with a second formula that shares no code with it (quambench/metrics).
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress

from quambench.gate.arrays import Evidence
from quambench.metrics import Measurement

# Bound for sums of at most 1e5 float64 terms, whose relative error is at most 1e5 * 2^-53 = 1e-11 of the sum of their
# sizes; loss_rise is a thousandth of the losses that it is the difference of.
TOLERANCE = 1e-6
QUANTILE_ROWS = ("p50", "p90", "p99", "p999")
_Column = Sequence[float]


def miscounted(metrics: Mapping[str, Measurement], evidence: Evidence) -> tuple[str, str] | None:
    """Return (metric, what is wrong) of the first number that its own evidence contradicts."""
    for name, (value, error) in recounted(evidence).items():
        if name not in metrics:
            continue
        measured = metrics[name]
        if not _equal(measured.value, value, abs(value) + _finite(error)):
            return name, f"{name} is said to be {measured.value:.6g}, and its evidence gives {value:.6g}"
        if not _equal(measured.standard_error, error, _finite(error)):
            said = f"{measured.standard_error:.3g}"
            return name, f"{name}'s standard error is said to be {said}, and its evidence gives {error:.3g}"
    return None


def recounted(evidence: Evidence) -> dict[str, tuple[float, float]]:
    """Return metric -> (value, standard error by documents), for those whose evidence is there."""
    found: dict[str, tuple[float, float]] = {}
    columns: dict[str, _Column] = {n: a.double().tolist() for n, a in evidence.items() if a.ndim == 1}

    def put(name: str, needs: Sequence[str], value: Callable[..., float], weight: str, owner: str) -> None:
        if all(n in columns for n in (*needs, weight, owner)) and columns[weight]:
            values = [value(*row) for row in zip(*(columns[n] for n in needs), strict=True)]
            found[name] = _ratio(values, columns[weight], columns[owner])

    for prefix, phase in (("", "prefill"), ("decode_", "decode")):
        at = (f"{phase}.tokens", f"{phase}.document")
        nll, of_float = f"{phase}.nll", f"{phase}.nll_float"
        put(f"{prefix}kl", [f"{phase}.kl"], float, *at)
        put(f"{prefix}agreement", [f"{phase}.agree"], float, *at)
        put(f"{prefix}ppl_ratio", [nll, of_float], lambda a, b: a - b, *at)
        if f"{prefix}ppl_ratio" in found and not prefix:
            found["loss_rise"] = found["ppl_ratio"]
        _exponential(found, f"{prefix}ppl_ratio")
        found |= _quantiles(evidence, phase, prefix)
    put("perplexity", ["prefill.nll"], float, "prefill.tokens", "prefill.document")
    _exponential(found, "perplexity")
    put("decode_gap", ["decode.kl_prefill"], float, "decode.tokens", "decode.document")
    if not any(math.isnan(x) for x in columns.get("prefill.bytes", [math.nan])):
        put("bits_per_byte", ["prefill.nll"], lambda a: a / math.log(2), "prefill.bytes", "prefill.document")
    if "items.correct" in columns:
        columns["items"] = [1.0] * len(columns["items.correct"])
    for name, right in (
        ("accuracy", lambda q, f: q),
        ("accuracy_float", lambda q, f: f),
        ("flips_to_wrong", lambda q, f: float(f > q)),
        ("flips_to_right", lambda q, f: float(q > f)),
    ):
        put(name, ["items.correct", "items.correct_float"], right, "items", "items.document")
    for name in evidence:
        if name.startswith("recall.") and name.endswith(".asked"):
            task = name.split(".")[1]
            each = list(range(len(columns[name])))
            for column, suffix in (("right", ""), ("right_float", "_float")):
                if f"recall.{task}.{column}" in columns:
                    values = columns[f"recall.{task}.{column}"]
                    found[f"recall_{task}{suffix}"] = _ratio(values, columns[name], each)
    return found


def _ratio(values: _Column, weights: _Column, owners: _Column) -> tuple[float, float]:
    """Return the sum of values over the sum of weights, and its standard error where whole documents are drawn."""
    total = math.fsum(weights)
    mean = math.fsum(values) / total
    by_owner: dict[float, list[float]] = defaultdict(list)
    for value, weight, owner in zip(values, weights, owners, strict=True):
        by_owner[owner].append(value - mean * weight)
    n = len(by_owner)
    if n < 2:
        return mean, math.nan
    squares = math.fsum(math.fsum(of_one) ** 2 for of_one in by_owner.values())
    return mean, math.sqrt(n * squares / (n - 1)) / total


def _exponential(found: dict[str, tuple[float, float]], name: str) -> None:
    """Replace a number by its exponential, and its error by the first derivative's."""
    if name in found:
        mean, error = found.pop(name)
        with suppress(OverflowError):
            found[name] = math.exp(mean), math.exp(mean) * error


def _quantiles(evidence: Evidence, phase: str, prefix: str) -> dict[str, tuple[float, float]]:
    """Return quantiles with their delete-one-document jackknife errors, from the quantiles without each document."""
    left_out = evidence.get(f"{phase}.kl_left_out")
    if left_out is None:
        return {}
    found = {}
    for row, name, (value, _) in zip(
        left_out.tolist(), QUANTILE_ROWS, evidence[f"{phase}.kl_quantiles"].tolist(), strict=True
    ):
        n, mean = len(row), math.fsum(row) / len(row)
        error = math.sqrt((n - 1) / n * math.fsum((x - mean) ** 2 for x in row)) if n > 1 else math.nan
        found[f"{prefix}kl_{name}"] = value, error
    return found


def _equal(said: float, counted: float, size: float) -> bool:
    if math.isnan(counted):
        return math.isnan(said)
    return said == counted or (math.isfinite(counted) and abs(said - counted) <= TOLERANCE * size)


def _finite(error: float) -> float:
    return error if math.isfinite(error) else 0.0
