"""A grouping from outside: `module:function`, or an entry point of the group `quambench.groupings`.

The function has the signature of Quamba's group_wise_sort_indices (c474646, quamba/reorder_utils.py); `adapted`
puts it behind Grouping's.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar

import torch
from torch import Tensor

from quambench.core.errors import BadParameter
from quambench.core.plugins import Kind, calling
from quambench.grouping.base import GROUPINGS, ChannelStatistics, Grouping
from quambench.grouping.groups import Groups
from quambench.models.config import ModelConfig

GROUPING = Kind("grouping")
PARAMETERS = ("tensor", "headdim", "ssd_ngroups", "group_heads", "nhead_groups", "ndim_groups")
RETURNED = ("channel_index", "head_groups", "head_index", "dim_groups")


def is_outside(name: str) -> bool:
    """Whether a name without parameters is that of a grouping from outside."""
    return ":" in name or (name in GROUPING.installed and name not in GROUPINGS)


def find_outside(name: str) -> type[Grouping]:
    """Return the function behind `module:function` or behind an installed entry point, as a Grouping.

    raises UnknownName, BadParameter: each says in one line what is wrong
    """
    function = GROUPING.find(name, (), "quambench/grouping/", "function")
    if not inspect.isroutine(function):
        raise BadParameter(f"{name} must be a function (got {type(function).__name__})")
    try:
        takes = list(inspect.signature(function).parameters)
    except (TypeError, ValueError):  # some builtins have no signature
        takes = []
    if missing := [p for p in PARAMETERS if p not in takes]:
        raise BadParameter(f"{name} must take {', '.join(PARAMETERS)}, as group_wise_sort_indices does"
                           f" (it lacks {', '.join(missing)})")  # fmt: skip
    GROUPING.used(name, function)
    return adapted(name, function)


@dataclass(frozen=True)
class FromOutside(Grouping):
    """A function from outside, called for each layer with group_heads=True.

    nhead_groups, ndim_groups  handed to it as they are
    """

    nhead_groups: float = 4
    ndim_groups: float = 4

    name: ClassVar[str]
    function: ClassVar[Callable[..., Any]]

    def __post_init__(self) -> None:
        for key in ("nhead_groups", "ndim_groups"):
            value = getattr(self, key)
            if value < 1 or value != int(value):
                raise BadParameter(f"{self.name}: {key} must be a whole number, 1 or more (got {value!r})")

    def groups(self, statistics: Mapping[int, ChannelStatistics], config: ModelConfig) -> dict[int, Groups]:
        return {layer: self._layer(layer, s.mean_abs.float(), config) for layer, s in statistics.items()}

    def _layer(self, layer: int, mean_abs: Tensor, config: ModelConfig) -> Groups:
        with calling(f"{self.name} in layer {layer}"):
            found = type(self).function(
                mean_abs, config.head_dim, config.n_groups, group_heads=True,
                nhead_groups=int(self.nhead_groups), ndim_groups=int(self.ndim_groups),
            )  # fmt: skip
        groups = checked_groups(f"{self.name}: layer {layer}", found)
        ours = config.n_groups, config.n_heads, config.d_inner
        theirs = len(groups.head_sizes), len(groups.head_index), len(groups.channel_index)
        if theirs != ours:
            raise BadParameter(
                f"{self.name}: layer {layer}: must be of {ours[0]} SSD groups, {ours[1]} heads, {ours[2]} channels"
                f" (got {theirs[0]}, {theirs[1]}, {theirs[2]})"
            )
        return groups


def checked_groups(whose: str, found: Any) -> Groups:
    """Return the Groups of (channel_index, head_groups, head_index, dim_groups), tensors or what tensors are made of.

    whose  the beginning of the message
    raises BadParameter
    """
    if not isinstance(found, tuple | list) or len(found) != len(RETURNED):
        raise BadParameter(f"{whose}: must return {', '.join(RETURNED)} (got {_described(found)})")
    try:
        arrays = [torch.as_tensor(array).detach().cpu() for array in found]
    except (TypeError, ValueError, RuntimeError) as error:
        raise BadParameter(f"{whose}: {', '.join(RETURNED)} must be arrays of whole numbers ({error})") from None
    for name, array in zip(RETURNED, arrays, strict=True):
        if array.is_floating_point() or array.is_complex():
            raise BadParameter(f"{whose}: {name} must be whole numbers (got {array.dtype})")
    channel_index, head_groups, head_index, dim_groups = (array.long() for array in arrays)
    try:
        return Groups(head_index, channel_index, head_groups, dim_groups)
    except (BadParameter, RuntimeError, IndexError) as error:
        raise BadParameter(f"{whose}: {error}") from None


@cache
def adapted(name: str, function: Callable[..., Any]) -> type[Grouping]:
    """Return a subclass of FromOutside with this function behind it."""
    about = {"__doc__": function.__doc__, "__module__": function.__module__}
    return type(function.__name__, (FromOutside,), {**about, "name": name, "function": staticmethod(function)})


def _described(found: Any) -> str:
    if isinstance(found, tuple | list):
        return f"{len(found)} things"
    return type(found).__name__
