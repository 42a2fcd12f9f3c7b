"""The table of activation sites: what may be quantized, in the order a forward pass meets it.

One row per site and architecture, after Quamba (commit c474646). `observer` is what Quamba uses
there: "case" marks the sites where it takes a percentile, which is where a case's observer goes;
all others keep their running maximum. `allowed` are the granularities that the site's consumer
can work with: an INT8 matrix product needs one scale for its whole input, a scan can take more.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from quambench.models.config import ModelConfig

_PRODUCT = "an INT8 matrix product, which takes one scale for its whole input"
_FLOAT = "float arithmetic on dequantized values"


@dataclass(frozen=True, slots=True)
class Site:
    """One named activation inside a block (or, for lm_head:input, after the last)."""

    name: str
    tensor: str  # what it is, for people
    observer: str  # "case" or the registry name of a fixed observer
    allowed: tuple[str, ...]  # granularities, coarsest first
    consumer: str  # what reads it, and so limits `allowed`
    grouped: bool = False  # whether a grouping of heads and channels gives it a scale per group


_MAMBA = (
    Site("in_proj:input", "normed hidden, B·L·D", "running_max", ("tensor",), _PRODUCT),
    Site("in_proj:output", "x and z together, B·L·2E", "running_max", ("tensor", "split", "channel"), _FLOAT),
    Site("x_proj:input", "x after conv and SiLU, B·L·E", "case", ("tensor",), _PRODUCT),
    Site(
        "x_proj:output",
        "Δ_low, B and C together, B·L·(R+2N)",
        "running_max",
        ("tensor", "split"),
        "an INT8 matrix product, which takes one scale for all of Δ_low",
    ),
    Site("dt_proj:output", "Δ before bias and softplus, B·L·E", "running_max", ("tensor", "channel"), _FLOAT),
    Site("ssm_state", "state, B·E·N", "case", ("tensor", "channel", "channel_state"), _FLOAT),
    Site("out_proj:input", "y after gate and Hadamard, B·L·E", "running_max", ("tensor",), _PRODUCT),
)
_MAMBA2 = (
    Site("in_proj:input", "normed hidden, B·L·D", "running_max", ("tensor",), _PRODUCT),
    Site("z", "gate, B·L·E", "running_max", ("tensor", "head", "channel"), _FLOAT),
    Site("x_conv_in", "x before conv, B·L·E", "running_max", ("tensor", "head", "channel"), _FLOAT),
    Site("B_conv_in", "B before conv, B·L·GN", "running_max", ("tensor", "channel"), _FLOAT),
    Site("C_conv_in", "C before conv, B·L·GN", "running_max", ("tensor", "channel"), _FLOAT),
    Site("dt", "Δ before bias and softplus, B·L·H", "running_max", ("tensor", "head"), _FLOAT),
    Site("x_conv_out", "x after conv and SiLU, B·L·E", "case", ("tensor", "head", "channel"), _FLOAT, True),
    Site("B_conv_out", "B after conv and SiLU, B·L·GN", "running_max", ("tensor", "ssd_group", "channel"), _FLOAT),
    Site("C_conv_out", "C after conv and SiLU, B·L·GN", "running_max", ("tensor", "ssd_group", "channel"), _FLOAT),
    Site("ssm_state", "state, B·H·P·N", "case", ("tensor", "head", "channel", "channel_state"), _FLOAT, True),
    Site("out_proj:input", "y after gated norm and Hadamard, B·L·E", "running_max", ("tensor",), _PRODUCT),
)
_HEAD = Site("lm_head:input", "final normed hidden, B·L·D", "running_max", ("tensor",), _PRODUCT)

SITES = {"mamba": _MAMBA, "mamba2": _MAMBA2}


def sites_of(config: ModelConfig) -> dict[str, Site]:
    """All sites of a model, "layers.<i>.<site>" and "lm_head:input", in forward order."""
    block = SITES[config.architecture]
    table = {f"layers.{i}.{site.name}": site for i in range(config.n_layers) for site in block}
    return table | {_HEAD.name: _HEAD}


def shape_at(site: str, config: ModelConfig) -> tuple[int, ...]:
    """Of a site's tensor, without what comes before: without B and L of an activation, without B of a state."""
    c, name = config, local_name(site)
    if name in ("in_proj:input", "lm_head:input"):
        return (c.d_model,)
    if c.architecture == "mamba":
        inner = {"in_proj:output": (2 * c.d_inner,), "x_proj:output": (c.dt_rank + 2 * c.d_state,)}
        return {**inner, "ssm_state": (c.d_inner, c.d_state)}.get(name, (c.d_inner,))
    inner = dict.fromkeys(("B_conv_in", "C_conv_in", "B_conv_out", "C_conv_out"), (c.n_groups * c.d_state,))
    return {**inner, "dt": (c.n_heads,), "ssm_state": (c.n_heads, c.head_dim, c.d_state)}.get(name, (c.d_inner,))


_OF_A_LAYER = re.compile(r"layers\.(?:0|[1-9][0-9]{0,5})\.(.+)")


def architectures_with(site: str) -> set[str]:
    """The architectures that have a site of this name, in a layer or after the last; none for what is no site."""
    if site == _HEAD.name:
        return set(SITES)
    match = _OF_A_LAYER.fullmatch(site)
    return {name for name, table in SITES.items() if match and match[1] in {one.name for one in table}}


def layer_of(site: str) -> int | None:
    """3 for "layers.3.z", None for "lm_head:input"."""
    return int(site.split(".")[1]) if site.startswith("layers.") else None


def local_name(site: str) -> str:
    """Within its block: "in_proj:input" for "layers.3.in_proj:input"."""
    return site.split(".", 2)[2] if site.startswith("layers.") else site
