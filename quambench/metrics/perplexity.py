"""Loss of the next token in prefill: perplexity, bits per byte, and both against the float model."""

from __future__ import annotations

import math

from quambench.metrics.base import NO_TERMS, Column, Evidence, Judged, Terms, add_exp_of_mean, add_mean, per_token


def _bits_per_byte(evidence: Evidence) -> Terms:
    terms = per_token("prefill", "nll")(evidence)
    if evidence["prefill.bytes"].isnan().any():
        return NO_TERMS  # made sequences spell no text
    return Terms(terms.values / math.log(2), evidence["prefill.bytes"], terms.documents)


add_exp_of_mean("perplexity", "ppl", per_token("prefill", "nll"), in_eval=True)
add_mean("bits_per_byte", "bits/byte", "lower", _bits_per_byte, in_eval=True)
# Against the float model on the same windows, so that the text's own difficulty cancels.
add_exp_of_mean("ppl_ratio", "ratio", per_token("prefill", "nll", "nll_float"), in_eval=True)
add_mean(
    "loss_rise",
    "nats/token",
    "lower",
    per_token("prefill", "nll", "nll_float"),
    judged=Judged.BY_DOCUMENT,
    continuous=True,
    in_nats=True,
    column=Column("loss rise\nmnat/token", 1e3, 1),
)
