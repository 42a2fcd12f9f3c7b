"""Calibrations as Quamba's own quantizer takes them, and back (structure after commit c474646, facts alone).

act_scales      a list: one dict per layer, the last for lm_head; "<op>:input" or "<op>:output" -> scale.
                A scale is a tensor of one number, except in a grouped Mamba2 layer, where B's and C's are
                (G,), and those of x and of the state are lists over SSD groups of lists over head groups of
                (h_gsize, ch_gsize, scales): () int32, (n_dim_groups,) int32, (n_dim_groups,) float32; a
                state's scales are (n_dim_groups, N), and its ch_gsize the last alone, which nobody reads.
reorder_params  "head_groups", "channel_group", "head_index", "channel_index" -> a list over layers of
                (G, n_head_groups) int32, (G, n_head_groups, n_dim_groups) int32, (H,) and (E,) int64;
                an index holds, at a new position, what stood there before. None where nothing is in groups.

The keys that Quamba reads are written. Others that it observes, such as out_proj:output, are not written,
and they are ignored where they are present.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeGuard

import torch
from torch import Tensor

from quambench.calibration.scales import Calibration, check_calibration
from quambench.core.errors import BadArtefact, BadParameter
from quambench.grids.granularity import GROUPS, UNQUANTIZED
from quambench.grids.grid import check_steps
from quambench.grouping import Groups
from quambench.models.config import ModelConfig
from quambench.models.sites import ARCHITECTURES, Architecture, architecture_of, layer_of, local_name, sites_of
from quambench.policy.base import granularity_in_groups

ActScales = list[dict[str, Any]]
ReorderParams = dict[str, list[Tensor]]

BITS = 8  # bits of Quamba's activations

HEAD_KEY = "lm_head:input"  # in the last dict; the site has the same name
ORDER_KEYS = ("head_groups", "channel_group", "head_index", "channel_index")  # of reorder_params

_X, _X_KEY = "x_conv_out", "x_conv_out:input"


def to_act_scales(calibration: Calibration) -> tuple[ActScales, ReorderParams | None]:
    """Return the scales and the order of channels that a quantizer of Quamba takes.

    raises BadParameter naming the first site, in forward order, whose scale Quamba has no place for
    """
    kind, n_layers = _model_of(calibration)
    _check_expressible(calibration, kind, n_layers)
    act_scales: ActScales = [{} for _ in range(n_layers + 1)]
    for name, scale in calibration.scales.items():
        layer, value = layer_of(name), scale.clone()
        if layer is None:
            act_scales[-1][HEAD_KEY] = value
            continue
        site = local_name(name)
        grouped = calibration.granularities[name] == GROUPS
        found = _as_tuples(value, calibration.groups[layer], site) if grouped else value
        act_scales[layer] |= dict.fromkeys(kind.quamba_keys[site], found)
    return act_scales, reorder_params_of(calibration.groups)


def from_act_scales(
    act_scales: Any,
    reorder_params: Any,
    config: ModelConfig,
    *,
    model_digest: str,
    data_digest: str = "",
    observer: str = "quamba",
) -> Calibration:
    """Return the Calibration that these make for a model of `config`; both come from outside and are checked
    throughout.

    observer  the name of what made the scales, at every site
    raises BadArtefact in one line, naming layer and key
    """
    entries = _entries(act_scales, config)
    order = {} if reorder_params is None else _orders(reorder_params, config)
    kind = architecture_of(config)
    grouped = kind.has_heads and isinstance(entries[0].get(_X_KEY), list)
    if grouped and not order:
        raise BadArtefact(f"layer 0, {_X_KEY} is in groups: reorder_params must come with act_scales, and are missing")
    scales, granularities = {}, {}
    for name, site in sites_of(config).items():
        layer = layer_of(name)
        keys = (HEAD_KEY,) if layer is None else kind.quamba_keys[site.name]
        granularities[name] = granularity_in_groups(site) if grouped else "tensor"
        scales[name] = _scale(entries, layer, keys, granularities[name], config, order)
    made = Calibration(
        scales=scales,
        granularities=granularities,
        observers=dict.fromkeys(scales, observer),
        act_bits=BITS,
        model_digest=model_digest,
        data_digest=data_digest,
        groups=order,
    )
    check_calibration(made, config)
    return made


# --- Calibration -> Quamba


def _model_of(calibration: Calibration) -> tuple[Architecture, int]:
    """Return architecture and number of layers, by the sites. raises BadParameter where one has no scale"""
    layers = [layer for name in calibration.scales if (layer := layer_of(name)) is not None]
    n_layers = max(layers, default=-1) + 1
    there = {local_name(name) for name in calibration.scales}
    kind = max(ARCHITECTURES.values(), key=lambda one: len(there & one.quamba_keys.keys()))
    wanted = [f"layers.{i}.{site}" for i in range(n_layers) for site in kind.quamba_keys] + [HEAD_KEY]
    for name in wanted:
        if name not in calibration.scales:
            raise BadParameter(f"the calibration has no scale for {name}: Quamba needs one for every site")
    return kind, n_layers


def _check_expressible(calibration: Calibration, kind: Architecture, n_layers: int) -> None:
    bits = calibration.act_bits
    if bits != BITS:
        raise BadParameter(f"Quamba's activations have {BITS} bits, these scales are for {bits}: calibrate at {BITS}")
    if not calibration.symmetric:
        raise BadParameter("Quamba's grid is symmetric, these scales are of an asymmetric one: calibrate without it")
    sites = {site.name: site for site in kind.sites}
    grouped = GROUPS in calibration.granularities.values()
    for name, granularity in calibration.granularities.items():
        wanted = "tensor"
        if grouped and layer_of(name) is not None:
            wanted = granularity_in_groups(sites[local_name(name)])
        if granularity != wanted:
            raise BadParameter(_no_place(name, granularity, wanted, kind))
    if (grouped or calibration.groups) and set(calibration.groups) != set(range(n_layers)):
        n = len(calibration.groups)
        raise BadParameter(f"Quamba reorders every layer or none, and this calibration has groups of {n} of {n_layers}")


_READS = {"tensor": "one number", "ssd_group": "one per SSD group", GROUPS: "one per group of heads and channels"}


def _no_place(name: str, granularity: str, wanted: str, kind: Architecture) -> str:
    if granularity == UNQUANTIZED:
        return f"{name} stays float in this calibration, and Quamba quantizes it: take a policy that leaves none float"
    has = {"tensor": "one scale", GROUPS: "a scale per group"}.get(granularity, f"a scale per {granularity}")
    groups = ", or in groups, e.g. --policy quamba2 --grouping channel" if kind.has_heads else ""
    return f"{name} has {has}, and Quamba reads {_READS[wanted]} there: calibrate with --grouping 1x1{groups}"


def _as_tuples(scale: Tensor, groups: Groups, site: str) -> list[list[tuple[Tensor, Tensor, Tensor]]]:
    """Return scale (G, n_head_groups, n_dim_groups, ...) as (h_gsize, ch_gsize, scales) by SSD group and head group."""
    by_ssd_group = zip(groups.head_sizes.int(), groups.dim_sizes.int(), scale, strict=True)
    last_alone = site == "ssm_state"
    return [
        [(h, d[-1] if last_alone else d, s) for h, d, s in zip(heads, dims, scales, strict=True)]
        for heads, dims, scales in by_ssd_group
    ]


def reorder_params_of(groups: Mapping[int, Groups]) -> ReorderParams | None:
    """Return Quamba's reorder_params for Groups by layer; None without any."""
    if not groups:
        return None
    by_layer = [groups[layer] for layer in sorted(groups)]
    return {
        "head_groups": [g.head_sizes.int() for g in by_layer],
        "channel_group": [g.dim_sizes.int() for g in by_layer],
        "head_index": [g.head_index.clone() for g in by_layer],
        "channel_index": [g.channel_index.clone() for g in by_layer],
    }


# --- Quamba -> Calibration


def _place(layer: int | None, key: str) -> str:
    return key if layer is None else f"layer {layer}, {key}"


def _entries(act_scales: Any, config: ModelConfig) -> Sequence[Mapping[str, Any]]:
    """Return act_scales, after a check that there are as many dicts as the model needs. raises BadArtefact"""
    n = config.n_layers + 1
    if not isinstance(act_scales, list | tuple) or not all(isinstance(entry, Mapping) for entry in act_scales):
        raise BadArtefact(f"act_scales must be a list of {n} dicts, one per layer and one for lm_head")
    if len(act_scales) != n:
        raise BadArtefact(f"act_scales must be of the model's {n - 1} layers and lm_head (got {len(act_scales)} dicts)")
    for name, other in ARCHITECTURES.items():
        keys = {key for keys in other.quamba_keys.values() for key in keys}
        if name != config.architecture and keys <= act_scales[0].keys():
            raise BadArtefact(f"layer 0: these act_scales are of a {name} model, and this one is {config.architecture}")
    return act_scales


def _scale(
    entries: Sequence[Mapping[str, Any]],
    layer: int | None,
    keys: tuple[str, ...],
    granularity: str,
    config: ModelConfig,
    order: Mapping[int, Groups],
) -> Tensor:
    """Return the scale of one site. raises BadArtefact"""
    entry = entries[-1 if layer is None else layer]
    for key in keys:
        if key not in entry:
            raise BadArtefact(f"{_place(layer, key)}: missing, and Quamba reads it")
    place, value = _place(layer, keys[0]), entry[keys[0]]
    if granularity == GROUPS:
        assert layer is not None
        rest = (config.d_state,) if keys[0].startswith("ssm_state") else ()
        return _from_tuples(value, place, order[layer], rest)
    found = _numbers(value, place, (config.n_groups,) if granularity == "ssd_group" else ())
    for key in keys[1:]:
        again = _numbers(entry[key], _place(layer, key), ())
        if not torch.equal(again, found):
            raise BadArtefact(
                f"{_place(layer, key)} must equal {keys[0]}, by which the same tensor is quantized "
                f"(got {again.item():.9g} and {found.item():.9g})"
            )
    return found


def _from_tuples(value: Any, place: str, groups: Groups, rest: tuple[int, ...]) -> Tensor:
    """Return lists of tuples, whose sizes are the groups', as a tensor (G, n_head_groups, n_dim_groups, *rest).

    rest  () for x; (N,) for a state, whose ch_gsize is not read, as Quamba does not read it
    raises BadArtefact
    """
    n_groups, n_heads, n_dims = groups.shape
    if not isinstance(value, list):
        raise BadArtefact(f"{place} is not in groups, and layer 0, {_X_KEY} is: Quamba groups all or none")
    if len(value) != n_groups:
        raise BadArtefact(f"{place} must have {n_groups} SSD groups (got {len(value)})")
    found = []
    for g, runs in enumerate(value):
        if not isinstance(runs, list | tuple) or len(runs) != n_heads:
            got = len(runs) if isinstance(runs, list | tuple) else type(runs).__name__
            raise BadArtefact(f"{place}, SSD group {g} must have {n_heads} head groups, as in head_groups (got {got})")
        for h, run in enumerate(runs):
            here = f"{place}, SSD group {g}, head group {h}"
            if not isinstance(run, list | tuple) or len(run) != 3:
                raise BadArtefact(f"{here} must be a tuple (h_gsize, ch_gsize, scales)")
            _check_sizes(run[0], f"{here}: h_gsize", groups.head_sizes[g, h], "head_groups")
            if not rest:
                _check_sizes(run[1], f"{here}: ch_gsize", groups.dim_sizes[g, h], "channel_group")
            found.append(_numbers(run[2], f"{here}: scales", (n_dims, *rest)))
    stacked: Tensor = torch.stack(found).unflatten(0, (n_groups, n_heads))
    return stacked


def _check_sizes(value: Any, place: str, expected: Tensor, key: str) -> None:
    sizes = _integers(value, place)
    if not torch.equal(sizes, expected):
        raise BadArtefact(f"{place} is {sizes.tolist()}, and {key} of reorder_params says {expected.tolist()}")


def _numbers(value: Any, place: str, shape: tuple[int, ...]) -> Tensor:
    """Return scales of this shape, float32. A single number may have any shape that holds one. raises BadArtefact"""
    if not _is_tensor(value) or not value.is_floating_point():
        raise BadArtefact(f"{place} must be a float tensor (got {_kind(value)})")
    if tuple(value.shape) != shape and not (shape == () and value.numel() == 1):
        raise BadArtefact(f"{place} must have shape {shape} (got {tuple(value.shape)})")
    scales = value.detach().to("cpu", torch.float32).reshape(shape).clone()
    check_steps(scales, place)
    return scales


def _integers(value: Any, place: str) -> Tensor:
    """Return an integer tensor as int64. raises BadArtefact"""
    if not _is_tensor(value) or value.is_floating_point() or value.is_complex() or value.dtype == torch.bool:
        raise BadArtefact(f"{place} must be an integer tensor (got {_kind(value)})")
    return value.detach().to("cpu", torch.int64).clone()


def _is_tensor(value: Any) -> TypeGuard[Tensor]:
    return isinstance(value, Tensor) and value.layout is torch.strided and not value.is_quantized and not value.is_meta


def _kind(value: Any) -> str:
    return f"a tensor of {value.dtype}, {value.layout}" if isinstance(value, Tensor) else type(value).__name__


def _orders(reorder_params: Any, config: ModelConfig) -> dict[int, Groups]:
    """Return Groups by layer, each array of each layer checked by itself; empty where there are none. raises
    BadArtefact
    """
    if not isinstance(reorder_params, Mapping):
        raise BadArtefact(f"reorder_params must be a dict of lists over layers (got {_kind(reorder_params)})")
    if not reorder_params:
        return {}
    if not (kind := architecture_of(config)).has_heads:
        raise BadArtefact(
            f"reorder_params are Mamba2's, and a {kind.title} model has no heads to reorder: leave them out"
        )
    n = config.n_layers
    for key in ORDER_KEYS:
        if key not in reorder_params:
            raise BadArtefact(f"reorder_params: {key} is missing")
        of_layers = reorder_params[key]
        if not isinstance(of_layers, list | tuple) or len(of_layers) != n:
            got = len(of_layers) if isinstance(of_layers, list | tuple) else _kind(of_layers)
            raise BadArtefact(f"reorder_params, {key} must be a list over the model's {n} layers (got {got})")
    return {i: _order({key: reorder_params[key][i] for key in ORDER_KEYS}, i, config) for i in range(n)}


def _order(params: Mapping[str, Any], layer: int, config: ModelConfig) -> Groups:
    c = config
    at = {key: f"reorder_params, {_place(layer, key)}" for key in ORDER_KEYS}
    read = {key: _integers(params[key], at[key]) for key in ORDER_KEYS}
    heads, dims = read["head_groups"], read["channel_group"]
    _check_runs(heads, at["head_groups"], (c.n_groups,), c.n_heads // c.n_groups, "heads of an SSD group")
    if not dims.numel():  # heads alone are in groups: all channels of each are one run
        dims = torch.full((*heads.shape, 1), c.head_dim)
    _check_runs(dims, at["channel_group"], tuple(heads.shape), c.head_dim, "channels of a head")
    head_index, channel_index = read["head_index"], read["channel_index"]
    by_group = torch.arange(c.n_heads).view(c.n_groups, -1)
    if head_index.shape != (c.n_heads,) or not torch.equal(_sorted_rows(head_index, by_group), by_group):
        raise BadArtefact(f"{at['head_index']} must be a permutation of the {c.n_heads} heads within their SSD groups")
    own = c.head_dim * head_index[:, None] + torch.arange(c.head_dim)
    if channel_index.shape != (c.d_inner,) or not torch.equal(_sorted_rows(channel_index, own), own):
        raise BadArtefact(
            f"{at['channel_index']} must be a permutation of the {c.d_inner} channels, each head's own together, in "
            "head_index's order"
        )
    return Groups(head_index, channel_index, heads, dims)


def _check_runs(sizes: Tensor, place: str, leading: tuple[int, ...], total: int, of: str) -> None:
    """Check sizes (*leading, runs): each row has sizes from 1 on that add up to total. raises BadArtefact"""
    if tuple(sizes.shape[:-1]) != leading or sizes.ndim != len(leading) + 1:
        raise BadArtefact(f"{place} must have shape {(*leading, 'n')} (got {tuple(sizes.shape)})".replace("'", ""))
    wrong = (sizes < 1).any(-1) | (sizes.sum(-1) != total)
    if wrong.any():
        first = sizes[wrong][0].tolist()
        raise BadArtefact(f"{place}: sizes must be 1 or more and add up to the {total} {of} (got {first})")


def _sorted_rows(index: Tensor, like: Tensor) -> Tensor:
    return index.view(like.shape).sort(-1).values
