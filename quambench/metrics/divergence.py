"""How far the quantized next-token distribution lies from the float one."""

from __future__ import annotations

from quambench.metrics.base import METRICS, Evidence, Measurement, Metric, add_mean, per_token


def _add_p99(name: str, phase: str) -> None:
    def measure(evidence: Evidence) -> Measurement:
        value, error = evidence[f"{phase}.kl_p99"].tolist()
        return Measurement(value, error)

    METRICS.add(name, Metric(name=name, unit="nats", better="lower", version=1, measure=measure))


for _prefix, _phase in (("", "prefill"), ("decode_", "decode")):
    add_mean(f"{_prefix}kl", "nats/token", "lower", per_token(_phase, "kl"))
    add_mean(f"{_prefix}agreement", "share", "higher", per_token(_phase, "agree"))
    _add_p99(f"{_prefix}kl_p99", _phase)
