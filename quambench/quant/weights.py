"""Weights on the integer grid: symmetric, ties to even, one scale per tensor, per split or per row."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from quambench.observers import ObserverSpec
from quambench.quant.grid import dequantize, quantize, symmetric_scale

LARGEST = ObserverSpec("running_max")


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
        """Hash of the integers alone; scales are compared as numbers."""
        return hashlib.sha256(self.q.contiguous().numpy().tobytes()).hexdigest()[:16]


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
