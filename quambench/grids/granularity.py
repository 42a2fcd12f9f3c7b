"""Granularities: how many values share a scale. Only this module lays a tensor out for observers.

An observer sees (n_obs, *scale_shape, group): n_obs observations, and in each of them `group`
values per scale. So it needs to know nothing of sites, axes or heads.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from quambench.core.errors import BadParameter
from quambench.core.registry import Registry
from quambench.grouping.groups import Groups
from quambench.models.config import ModelConfig
from quambench.models.sites import layer_of, shape_at


@dataclass(frozen=True, slots=True)
class Layout:
    """The correspondence of a site's tensor and its scales.

    lay_out   (B, ..., C) float -> parts (n_obs, *scale_shape, group), each for an observer of its own
    join      the parts' scales, (..., *scale_shape) each -> the site's
    expand    the site's scale -> one that broadcasts to the tensor
    """

    lay_out: Callable[[Tensor], tuple[Tensor, ...]]
    expand: Callable[[Tensor], Tensor]
    join: Callable[[list[Tensor]], Tensor] = lambda scales: scales[0]


GRANULARITIES: Registry[Callable[[str, ModelConfig], Layout]] = Registry(
    "granularity", "quambench/grids/granularity.py"
)
"""Name -> (site in its block, config) -> Layout; coarsest first."""

UNQUANTIZED = "float"  # takes the place of a granularity: the site has no grid
GROUPS = "groups"  # takes that place too: a scale per group of the layer's Groups; of a state, per group and n


def groups_at(site: str, groups: Mapping[int, Groups]) -> Groups | None:
    """Return the Groups of a site's layer; None where the layer has none, or the site is in no layer."""
    layer = layer_of(site)
    return None if layer is None else groups.get(layer)


def scale_shape(granularity: str, site: str, config: ModelConfig, groups: Groups | None = None) -> tuple[int, ...]:
    """Return the shape of one site's scale on a symmetric grid, as `layout` makes it; an asymmetric one has two such.

    raises UnknownName, BadParameter
    """
    if granularity == UNQUANTIZED:
        return (0,)
    own = shape_at(site, config)
    of = layout(granularity, site, config, groups)
    parts = of.lay_out(torch.zeros(1, *own) if len(own) > 1 else torch.zeros(1, 1, *own))
    return tuple(of.join([torch.zeros(part.shape[1:-1]) for part in parts]).shape)


def layout(granularity: str, site: str, config: ModelConfig, groups: Groups | None = None) -> Layout:
    """Return the Layout of a site at a granularity.

    site    "layers.0.z", or its part behind the layer
    groups  the layer's, where the granularity is GROUPS
    raises UnknownName, BadParameter
    """
    name = site.rpartition(".")[2]
    if granularity != GROUPS:
        return GRANULARITIES[granularity](name, config)
    if groups is None:
        raise BadParameter(f"{site} cannot have a scale per group: its layer has no groups")
    return _grouped_state(groups, config) if name == "ssm_state" else _grouped(groups)


def _as_is(scale: Tensor) -> Tensor:
    return scale


def _rows(x: Tensor) -> Tensor:
    """Return x (B, L, C) as (B*L, C)."""
    return x.flatten(0, -2)


@GRANULARITIES.register("tensor")
def _tensor(site: str, config: ModelConfig) -> Layout:
    """A single scale. An activation is L observations of C values for each sequence, a state one of all its values."""
    if site == "ssm_state":
        return Layout(lambda x: (x.flatten(1),), _as_is)
    return Layout(lambda x: (_rows(x),), _as_is)


@GRANULARITIES.register("split")
def _split(site: str, config: ModelConfig) -> Layout:
    """A scale for each part with a consumer of its own: (B, L, C) -> (B*L, size) for each."""
    c = config
    sizes = {
        "in_proj:output": [c.d_inner, c.d_inner],  # x, z
        "x_proj:output": [c.dt_rank, c.d_state, c.d_state],  # Δ_low, B, C
    }[site]
    return Layout(
        lambda x: _rows(x).split(sizes, dim=-1),
        lambda scale: scale.repeat_interleave(torch.tensor(sizes)),
        lambda scales: torch.stack(scales, dim=-1),
    )


@GRANULARITIES.register("ssd_group")
def _ssd_group(site: str, config: ModelConfig) -> Layout:
    """A scale per SSD group: (B, L, G*N) -> (B*L, G, N)."""
    shape = (config.n_groups, config.d_state)
    return Layout(lambda x: (_rows(x).unflatten(-1, shape),), lambda scale: scale.repeat_interleave(shape[1]))


@GRANULARITIES.register("head")
def _head(site: str, config: ModelConfig) -> Layout:
    """A scale per head: (B, L, H*P) -> (B*L, H, P); Δ has one value a head, a state P*N."""
    if site == "ssm_state":
        return Layout(lambda x: (x.flatten(2),), lambda scale: scale[:, None, None])
    width = 1 if site == "dt" else config.head_dim
    shape = (config.n_heads, width)
    return Layout(lambda x: (_rows(x).unflatten(-1, shape),), lambda scale: scale.repeat_interleave(width))


@GRANULARITIES.register("channel")
def _channel(site: str, config: ModelConfig) -> Layout:
    """A scale per channel of the last axis, (B, L, C) -> (B*L, C, 1); in a state, per row of N values."""
    if site == "ssm_state":
        return Layout(lambda x: (x,), lambda scale: scale[..., None])
    return Layout(lambda x: (_rows(x)[..., None],), _as_is)


@GRANULARITIES.register("channel_state")
def _channel_state(site: str, config: ModelConfig) -> Layout:
    """A scale per channel and n: a state's (B, ..., N) -> (B, ..., N, 1)."""
    return Layout(lambda x: (x[..., None],), _as_is)


def _grouped(groups: Groups) -> Layout:
    """A scale per group, (G, n_head_groups, n_dim_groups).

    Groups of equal size stand together, so that (B, L, E) becomes (B*L, groups of a size, size) for each size.
    """
    parts, join = _by_size(groups)

    def lay_out(x: Tensor) -> tuple[Tensor, ...]:
        return tuple(_rows(x)[:, channels] for channels in parts)

    return Layout(lay_out, groups.per_channel, lambda scales: join(scales, -1).unflatten(-1, groups.shape))


def _grouped_state(groups: Groups, config: ModelConfig) -> Layout:
    """A scale per group and n: a state's (B, H, P, N) -> (B, groups of a size, N, size) for each size."""
    parts, join = _by_size(groups)

    def lay_out(state: Tensor) -> tuple[Tensor, ...]:
        rows = state.flatten(1, 2)
        return tuple(rows[:, channels].transpose(2, 3) for channels in parts)

    def expand(scale: Tensor) -> Tensor:
        return groups.per_channel(scale).view(config.n_heads, config.head_dim, config.d_state)

    return Layout(lay_out, expand, lambda scales: join(scales, -2).unflatten(-2, groups.shape))


def _by_size(groups: Groups) -> tuple[list[Tensor], Callable[[list[Tensor], int], Tensor]]:
    """Return, for each size of group, the channels (groups of it, size), and a function that puts scales in groups'
    order.
    """
    by_group = groups.of_channel.argsort(stable=True).split(groups.sizes.tolist())  # channels of each group
    sizes = groups.sizes.unique()
    members = [(groups.sizes == size).nonzero().flatten() for size in sizes]
    parts = [torch.stack([by_group[i] for i in of.tolist()]) for of in members]
    back = torch.cat(members).argsort()
    return parts, lambda scales, dim: torch.cat(scales, dim).index_select(dim, back)
