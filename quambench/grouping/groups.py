"""The groups of channels of a Mamba2 layer that share a scale: an order of heads and channels, and runs in that order.

Quamba2 (Chiang et al. 2025, arXiv:2503.22879) sorts and clusters heads and channels so that those of
like magnitude stand together; a kernel then finds a channel's scale by its position.
Letters: G SSD groups, H heads, P head_dim, E = H P channels.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from quambench.core.errors import BadParameter
from quambench.models.config import ModelConfig


@dataclass(frozen=True, eq=False)
class Groups:
    """The groups of one layer. An index holds, at a new position, the old position of what now stands there.

    head_index     (H,) int64, a permutation within each SSD group
    channel_index  (E,) int64, each head's own channels, in the new order of heads
    head_sizes     (G, n_head_groups) int64: heads of each run, H / G in all
    dim_sizes      (G, n_head_groups, n_dim_groups) int64: channels of each run in its heads, P in all

    raises BadParameter where these do not fit together
    """

    head_index: Tensor
    channel_index: Tensor
    head_sizes: Tensor
    dim_sizes: Tensor

    def __post_init__(self) -> None:
        n_groups, n_heads = len(self.head_sizes), len(self.head_index)
        whole = all(
            t.dtype == torch.int64 for t in (self.head_index, self.channel_index, self.head_sizes, self.dim_sizes)
        )
        divides = n_groups and n_heads and n_heads % n_groups == 0 and len(self.channel_index) % n_heads == 0
        if not (whole and divides and self.dim_sizes.ndim == 3 and self.dim_sizes.shape[:2] == self.head_sizes.shape):
            raise BadParameter("groups: the types or shapes of the arrays do not fit together")
        per_group = n_heads // n_groups
        inside = self.head_index.view(n_groups, -1) - per_group * torch.arange(n_groups)[:, None]
        channels = self.channel_index.view(n_heads, -1)
        dims = channels - channels.shape[1] * self.head_index[:, None]
        if not (_permutes(inside) and _permutes(dims)):
            raise BadParameter("groups: an index must be a permutation within SSD groups and heads")
        sizes = (self.head_sizes, per_group), (self.dim_sizes, channels.shape[1])
        if any((s < 1).any() or (s.sum(-1) != total).any() for s, total in sizes):
            raise BadParameter("groups: sizes must be 1 or more and add up to the number of heads and of channels")

    @property
    def shape(self) -> tuple[int, int, int]:
        """The shape of one scale per group: (G, n_head_groups, n_dim_groups)."""
        return tuple(self.dim_sizes.shape)  # type: ignore[return-value]

    @property
    def n_scales(self) -> int:
        """The number of scales of x; a state has d_state times as many."""
        return self.dim_sizes.numel()

    @cached_property
    def of_channel(self) -> Tensor:
        """The group of each channel in the new order, counted along `shape`: (E,) int64."""
        n_dims = self.shape[2]
        run_of_head = torch.repeat_interleave(self.head_sizes.flatten())  # (H,)
        dims = torch.stack([torch.repeat_interleave(sizes) for sizes in self.dim_sizes.flatten(0, 1)])  # (runs, P)
        return (run_of_head[:, None] * n_dims + dims[run_of_head]).flatten()

    @cached_property
    def sizes(self) -> Tensor:
        """The number of channels of each group, (n_scales,) int64."""
        return (self.head_sizes[..., None] * self.dim_sizes).flatten()

    @property
    def keeps_order(self) -> bool:
        """Whether every channel stays where it is."""
        return bool((self.channel_index == torch.arange(len(self.channel_index))).all())

    def largest(self, per_channel: Tensor) -> Tensor:
        """Return each group's largest, (E, ...) -> (G, n_head_groups, n_dim_groups, ...), in one pass by group
        index.
        """
        rest = per_channel.shape[1:]
        index = self.of_channel.view(-1, *[1] * len(rest)).expand_as(per_channel)
        found = per_channel.new_zeros(self.n_scales, *rest)
        return found.scatter_reduce(0, index, per_channel, "amax", include_self=False).view(*self.shape, *rest)

    def per_channel(self, grouped: Tensor) -> Tensor:
        """Return the table that a kernel reads, (G, n_head_groups, n_dim_groups, ...) -> (E, ...)."""
        return grouped.flatten(0, 2)[self.of_channel]

    @property
    def digest(self) -> str:
        h = hashlib.sha256()
        for index in (self.channel_index, self.head_sizes, self.dim_sizes):
            h.update(f"{tuple(index.shape)}".encode() + index.contiguous().numpy().tobytes())
        return h.hexdigest()


def in_order(config: ModelConfig, n_head_groups: int, n_dim_groups: int) -> Groups:
    """Return Groups of equal sizes that leave channels in place: 1 and 1, one head each, or one channel each."""
    c = config
    heads = c.n_heads // c.n_groups
    return Groups(
        torch.arange(c.n_heads),
        torch.arange(c.n_heads * c.head_dim),
        torch.full((c.n_groups, n_head_groups), heads // n_head_groups),
        torch.full((c.n_groups, n_head_groups, n_dim_groups), c.head_dim // n_dim_groups),
    )


def _permutes(rows: Tensor) -> bool:
    """Whether each row holds 0, 1, ... once each."""
    return bool((rows.sort(-1).values == torch.arange(rows.shape[-1])).all())
