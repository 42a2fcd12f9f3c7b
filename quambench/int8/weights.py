"""What weights become: on the integer grid, symmetric, ties to even, one scale per tensor, split or row; or float."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from quambench.grids.grid import dequantize, quantize, symmetric_scale
from quambench.observers import ObserverSpec

LARGEST = ObserverSpec("running_max")


class Weight(Protocol):
    """What becomes of a weight: `QuantizedTensor`, `w4.GroupedWeight` or `FloatWeight`."""

    @property
    def q(self) -> Tensor:
        """What is kept, of the weight's shape: int8, or floats."""

    @property
    def scale(self) -> Tensor:
        """float32; none, shape (0,), of floats."""

    @property
    def n_bytes(self) -> int:
        """What it takes, scales and all."""

    @property
    def digest(self) -> str:
        """Hash of what is kept without the scales, which are compared as numbers."""

    def dequantize(self) -> Tensor:
        """float32, of the weight's shape."""


def digest_of(q: Tensor) -> str:
    """Hash of a tensor's bytes."""
    return hashlib.sha256(q.contiguous().numpy().tobytes()).hexdigest()[:16]


@dataclass(frozen=True, slots=True)
class FloatWeight:
    """A weight that is not rounded to a grid; q half precision, or float32 where Quamba keeps that."""

    q: Tensor

    @property
    def scale(self) -> Tensor:
        return torch.zeros(0)

    @property
    def n_bytes(self) -> int:
        return self.q.nbytes

    @property
    def digest(self) -> str:
        return digest_of(self.q)

    def dequantize(self) -> Tensor:
        return self.q.float()


@dataclass(frozen=True, slots=True)
class QuantizedTensor:
    """q int8, and a float32 scale that broadcasts to it."""

    q: Tensor
    scale: Tensor
    packed_bytes: int | None = None  # what it takes where it is kept in fewer bits than 8

    def dequantize(self) -> Tensor:
        return dequantize(self.q, self.scale)

    @property
    def n_bytes(self) -> int:
        return self.q.nbytes + self.scale.nbytes if self.packed_bytes is None else self.packed_bytes

    @property
    def digest(self) -> str:
        return digest_of(self.q)


def grid_end(laid_out: Tensor, observer: ObserverSpec = LARGEST, bits: int = 8) -> Tensor:
    """Weights (n_obs, *scale_shape, group), seen as one batch -> (*scale_shape) float64."""
    watcher = observer.build(bits)
    watcher.update(laid_out)
    return watcher.grid_end()


def quantize_tensor(weight: Tensor, bits: int = 8, observer: ObserverSpec = LARGEST) -> QuantizedTensor:
    """One scale () for the whole tensor; rounded in the weight's own dtype."""
    scale = symmetric_scale(grid_end(weight.reshape(1, -1), observer, bits), bits)
    return QuantizedTensor(quantize(weight, scale.to(weight.dtype), bits), scale)


def quantize_rows(weight: Tensor, bits: int = 8, observer: ObserverSpec = LARGEST) -> QuantizedTensor:
    """One scale per row: (rows, columns) -> scale (rows, 1).

    By the row's largest magnitude; the original takes the signed maximum, whose scale has the wrong
    sign in a row without positive entries.
    """
    scale = symmetric_scale(grid_end(weight[None], observer, bits), bits)[:, None]
    return QuantizedTensor(quantize(weight, scale.to(weight.dtype), bits), scale)


def quantize_splits(
    weight: Tensor, sizes: Sequence[int], bits: int = 8, observer: ObserverSpec = LARGEST
) -> QuantizedTensor:
    """One scale per run of rows: (rows, ...) -> scale (rows, 1, ...), constant within each run."""
    parts = [quantize_tensor(part, bits, observer) for part in weight.split(list(sizes))]
    per_row = torch.cat([p.scale.expand(n) for p, n in zip(parts, sizes, strict=True)])
    return QuantizedTensor(torch.cat([p.q for p in parts]), per_row.view(-1, *[1] * (weight.ndim - 1)))
