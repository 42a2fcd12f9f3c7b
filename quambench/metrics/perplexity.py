"""Loss of the next token: perplexity, bits per byte, and both against the float model."""

from __future__ import annotations

import math
import sys

from quambench.metrics.base import METRICS, NO_TERMS, Evidence, Measurement, Metric, Terms, add_mean, per_token

_LARGEST = math.log(sys.float_info.max)  # a model that went astray may lose more nats than that


def _exp(terms: Terms) -> Measurement:
    """exp of a mean, its error by the delta method."""
    value = math.exp(terms.mean()) if terms.mean() < _LARGEST else math.inf
    return Measurement(value, value * terms.standard_error())


def _add(name: str, phase: str, *columns: str) -> None:
    terms = per_token(phase, *columns)
    METRICS.add(
        name,
        Metric(
            name=name,
            unit="ppl" if len(columns) == 1 else "ratio",
            better="lower",
            version=1,
            measure=lambda evidence: _exp(terms(evidence)),
            terms=terms,
        ),
    )


_add("perplexity", "prefill", "nll")
# Against the float model on the same windows, so that the text's own difficulty cancels.
_add("ppl_ratio", "prefill", "nll", "nll_float")
_add("decode_ppl_ratio", "decode", "nll", "nll_float")


def _bits_per_byte(evidence: Evidence) -> Terms:
    terms = per_token("prefill", "nll")(evidence)
    if evidence["prefill.bytes"].isnan().any():
        return NO_TERMS  # made sequences spell no text
    return Terms(terms.values / math.log(2), evidence["prefill.bytes"], terms.documents)


add_mean("bits_per_byte", "bits/byte", "lower", _bits_per_byte)
add_mean("loss_rise", "nats/token", "lower", per_token("prefill", "nll", "nll_float"))
