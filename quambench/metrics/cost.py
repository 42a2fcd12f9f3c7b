"""What the scales and the integer weights take."""

from __future__ import annotations

import math

from quambench.metrics.base import Evidence, Measurement, Metric, add


def _add(name: str, unit: str, key: str) -> None:
    def measure(evidence: Evidence) -> Measurement:
        return Measurement(float(evidence[key]), math.nan)

    add(Metric(name=name, unit=unit, better="lower", version=1, measure=measure))


_add("n_scales", "scales", "scales.count")
_add("scale_bytes", "bytes", "scales.bytes")
_add("model_bytes", "bytes", "model.bytes")
