"""The same while decoding token by token, where the carried state is of integers."""

from __future__ import annotations

from quambench.metrics.base import Column, Evidence, Judged, Terms, add_exp_of_mean, add_mean, per_token
from quambench.metrics.divergence import add_kl, add_quantile


def _gap(evidence: Evidence) -> Terms:
    """KL of decoding to the same model's prefill."""
    return per_token("decode", "kl_prefill")(evidence)


add_exp_of_mean(
    "decode_ppl_ratio",
    "ratio",
    per_token("decode", "nll", "nll_float"),
    judged=Judged.BY_DOCUMENT,
    continuous=True,
    in_nats=True,
    in_eval=True,
)
add_kl("decode_kl", "decode", Column("decode KL\nmnat/token", 1e3, 4))
add_quantile("decode_", "p50", "decode")
add_quantile("decode_", "p90", "decode")
add_quantile("decode_", "p99", "decode", in_eval=True)
add_quantile("decode_", "p999", "decode")
add_mean("decode_agreement", "share", "higher", per_token("decode", "agree"))
add_mean("decode_gap", "nats/token", "lower", _gap, judged=Judged.BY_DOCUMENT, continuous=True, in_nats=True)
