"""The table of activation sites: what may be quantized, in the order a forward pass meets it.

One row per site and architecture, after Quamba (commit c474646). `observer` is what Quamba uses
there: "case" marks the sites where it takes a percentile, which is where a case's observer goes;
all others keep their running maximum. `allowed` are the granularities that the site's consumer
can work with: an INT8 matrix product needs one scale for its whole input, a scan can take more.
"""

from __future__ import annotations

from dataclasses import dataclass

from quambench.models.config import ModelConfig


@dataclass(frozen=True, slots=True)
class Site:
    """One named activation inside a block (or, for lm_head:input, after the last)."""

    name: str
    tensor: str  # what it is, for people
    observer: str  # "case" or the registry name of a fixed observer
    allowed: tuple[str, ...]  # granularities, coarsest first


_MAMBA = (
    Site("in_proj:input", "normed hidden, B·L·D", "running_max", ("tensor",)),
    Site("in_proj:output", "x and z together, B·L·2E", "running_max", ("tensor", "split", "channel")),
    Site("x_proj:input", "x after conv and SiLU, B·L·E", "case", ("tensor",)),
    Site("x_proj:output", "Δ_low, B and C together, B·L·(R+2N)", "running_max", ("tensor", "split")),
    Site("dt_proj:output", "Δ before bias and softplus, B·L·E", "running_max", ("tensor", "channel")),
    Site("ssm_state", "state, B·E·N", "case", ("tensor", "channel", "channel_state")),
    Site("out_proj:input", "y after gate and Hadamard, B·L·E", "running_max", ("tensor",)),
)
_MAMBA2 = (
    Site("in_proj:input", "normed hidden, B·L·D", "running_max", ("tensor",)),
    Site("z", "gate, B·L·E", "running_max", ("tensor", "channel", "head")),
    Site("x_conv_in", "x before conv, B·L·E", "running_max", ("tensor", "channel", "head")),
    Site("B_conv_in", "B before conv, B·L·GN", "running_max", ("tensor", "channel")),
    Site("C_conv_in", "C before conv, B·L·GN", "running_max", ("tensor", "channel")),
    Site("dt", "Δ before bias and softplus, B·L·H", "running_max", ("tensor", "head")),
    Site("x_conv_out", "x after conv and SiLU, B·L·E", "case", ("tensor", "head", "channel")),
    Site("B_conv_out", "B after conv and SiLU, B·L·GN", "running_max", ("tensor", "ssd_group", "channel")),
    Site("C_conv_out", "C after conv and SiLU, B·L·GN", "running_max", ("tensor", "ssd_group", "channel")),
    Site("ssm_state", "state, B·H·P·N", "case", ("tensor", "head", "channel", "channel_state")),
    Site("out_proj:input", "y after gated norm and Hadamard, B·L·E", "running_max", ("tensor",)),
)
_HEAD = Site("lm_head:input", "final normed hidden, B·L·D", "running_max", ("tensor",))

SITES = {"mamba": _MAMBA, "mamba2": _MAMBA2}


def sites_of(config: ModelConfig) -> dict[str, Site]:
    """All sites of a model, "layers.<i>.<site>" and "lm_head:input", in forward order."""
    block = SITES[config.architecture]
    table = {f"layers.{i}.{site.name}": site for i in range(config.n_layers) for site in block}
    return table | {_HEAD.name: _HEAD}
