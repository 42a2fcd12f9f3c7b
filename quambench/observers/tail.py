"""The largest values of a tensor, exactly, without sorting or partitioning the rest."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

# Blocks are as long as makes the two selections about equal in cost: n / block maxima, then
# n_largest * block candidates. Within these bounds, so that a block's maximum is one vector reduction.
_SHORTEST_BLOCK, _LONGEST_BLOCK = 16, 1024


def largest(x: Tensor, n_largest: int) -> Tensor:
    """Return the largest values along the last axis, ascending: x (..., n) float, no NaN -> (..., n_largest).

    If k blocks have a maximum of at least t, at least k values are at least t. So with t the k-th largest
    of the blocks' maxima, the k largest values lie in blocks whose maximum is at least t: k blocks, and
    others only where they tie with t, whose values then equal t and are counted already.
    """
    n = x.shape[-1]
    block = _block_length(n, n_largest)
    if block == 0:
        return _partitioned(x, n_largest)
    whole = n - n % block
    blocks = x[..., :whole].unflatten(-1, (-1, block))
    chosen = blocks.amax(-1).topk(n_largest, dim=-1, sorted=False).indices
    candidates = blocks.gather(-2, chosen[..., None].expand(*chosen.shape, block)).flatten(-2)
    return _partitioned(torch.cat([candidates, x[..., whole:]], dim=-1), n_largest)


def _block_length(n: int, n_largest: int) -> int:
    """Return the length of a block; 0 where a partition of everything is cheaper."""
    if n_largest * _SHORTEST_BLOCK * 4 > n:
        return 0
    return int(min(max((n / n_largest) ** 0.5, _SHORTEST_BLOCK), _LONGEST_BLOCK))


def _partitioned(x: Tensor, n_largest: int) -> Tensor:
    """Return the largest values by a partition (linear in n) and a sort of the tail alone."""
    if n_largest == 1:
        return x.amax(-1, keepdim=True)
    values = x.contiguous().numpy()
    n = values.shape[-1]
    tail = np.partition(values, n - n_largest, axis=-1)[..., n - n_largest :] if n_largest < n else values
    return torch.from_numpy(np.sort(tail, axis=-1))
