"""How far the quantized next-token distribution lies from the float one."""

from __future__ import annotations

from quambench.metrics.base import METRICS, Evidence, Measurement, Metric, Terms, add_mean, per_token

_QUANTILES = ("p50", "p90", "p99", "p999")  # rows of kl_quantiles, see quambench/evaluation/evidence.py


def _add_quantile(name: str, phase: str, row: int) -> None:
    def measure(evidence: Evidence) -> Measurement:
        value, error = evidence[f"{phase}.kl_quantiles"][row].tolist()
        return Measurement(value, error)

    METRICS.add(name, Metric(name=name, unit="nats", better="lower", version=1, measure=measure))


for _prefix, _phase in (("", "prefill"), ("decode_", "decode")):
    add_mean(f"{_prefix}kl", "nats/token", "lower", per_token(_phase, "kl"))
    add_mean(f"{_prefix}agreement", "share", "higher", per_token(_phase, "agree"))
    for _row, _quantile in enumerate(_QUANTILES):
        _add_quantile(f"{_prefix}kl_{_quantile}", _phase, _row)


def _decode_gap(evidence: Evidence) -> Terms:
    return per_token("decode", "kl_prefill")(evidence)


add_mean("decode_gap", "nats/token", "lower", _decode_gap)  # KL of decoding to the same model's prefill
