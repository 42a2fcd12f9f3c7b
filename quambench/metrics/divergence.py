"""How far the quantized next-token distribution lies from the float one, in prefill."""

from __future__ import annotations

from quambench.metrics.base import Column, Evidence, Judged, Measurement, Metric, add, add_mean, per_token

QUANTILES = ("p50", "p90", "p99", "p999")  # rows of kl_quantiles, see quambench/evaluation/evidence.py


def add_quantile(prefix: str, quantile: str, phase: str, column: Column | None = None, in_eval: bool = False) -> None:
    """Register a quantile of KL over tokens."""

    def measure(evidence: Evidence) -> Measurement:
        value, error = evidence[f"{phase}.kl_quantiles"][QUANTILES.index(quantile)].tolist()
        return Measurement(value, error)

    name = f"{prefix}kl_{quantile}"
    add(Metric(name=name, unit="nats", better="lower", version=1, measure=measure, column=column, in_eval=in_eval))


def add_kl(name: str, phase: str, column: Column) -> None:
    """Register the mean of KL over tokens."""
    add_mean(
        name,
        "nats/token",
        "lower",
        per_token(phase, "kl"),
        judged=Judged.BY_DOCUMENT,
        continuous=True,
        in_nats=True,
        column=column,
        in_eval=True,
    )


add_kl("kl", "prefill", Column("KL\nmnat/token", 1e3, 2))
add_quantile("", "p50", "prefill", in_eval=True)
add_quantile("", "p90", "prefill")
add_quantile("", "p99", "prefill", Column("KL 99 %\nmnat", 1e3, 3), in_eval=True)
add_quantile("", "p999", "prefill")
add_mean(
    "agreement",
    "share",
    "higher",
    per_token("prefill", "agree"),
    judged=Judged.BY_DOCUMENT,
    column=Column("top-1\nagree %", 100, 5),
    in_eval=True,
)
