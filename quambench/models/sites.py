"""The activation sites of a model: the tensors that may be quantized, in the order of a forward pass.

An architecture names those of its block (models/architecture.py), after Quamba (commit c474646). `observer` is what
Quamba uses there: "case" marks the sites where it takes a percentile, which is where a case's observer goes; all
others keep their running maximum. `allowed` are the granularities that the site's consumer can work with: an INT8
matrix product needs one scale for its whole input, a scan can take more.
"""

from __future__ import annotations

import re

from quambench.models import mamba, mamba2  # noqa: F401  (importing enters their architectures)
from quambench.models.architecture import ARCHITECTURES, PRODUCT, Architecture, Site
from quambench.models.config import ModelConfig

__all__ = [
    "ARCHITECTURES",
    "Architecture",
    "Site",
    "architecture_of",
    "architectures_with",
    "layer_of",
    "local_name",
    "shape_at",
    "sites_of",
]

_HEAD = Site("lm_head:input", "final normed hidden, B·L·D", "running_max", ("tensor",), PRODUCT)


def architecture_of(config: ModelConfig) -> Architecture:
    """Return the kind of a model's layers."""
    return ARCHITECTURES[config.architecture]


def sites_of(config: ModelConfig) -> dict[str, Site]:
    """Return all sites of a model, "layers.<i>.<site>" and "lm_head:input", in forward order."""
    block = architecture_of(config).sites
    table = {f"layers.{i}.{site.name}": site for i in range(config.n_layers) for site in block}
    return table | {_HEAD.name: _HEAD}


def shape_at(site: str, config: ModelConfig) -> tuple[int, ...]:
    """Return the shape of a site's tensor without its leading axes: without B and L of an activation, without B of
    a state.
    """
    return (config.d_model,) if site == _HEAD.name else architecture_of(config).shapes(config)[local_name(site)]


_OF_A_LAYER = re.compile(r"layers\.(?:0|[1-9][0-9]{0,5})\.(.+)")


def architectures_with(site: str) -> set[str]:
    """Return the architectures with a site of this name, in a layer or after the last; none for what is no site."""
    if site == _HEAD.name:
        return set(ARCHITECTURES)
    match = _OF_A_LAYER.fullmatch(site)
    return {name for name, kind in ARCHITECTURES.items() if match and match[1] in {s.name for s in kind.sites}}


def layer_of(site: str) -> int | None:
    """Return the layer of a site: 3 for "layers.3.z", None for "lm_head:input"."""
    return int(site.split(".")[1]) if site.startswith("layers.") else None


def local_name(site: str) -> str:
    """Return a site's name within its block: "in_proj:input" for "layers.3.in_proj:input"."""
    return site.split(".", 2)[2] if site.startswith("layers.") else site
