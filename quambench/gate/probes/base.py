"""What a probe is: a unit of the quantization path, asked a stored question."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from quambench.gate.probes.resting import Rests, every_case

Streams = Mapping[str, Tensor]
Answer = Mapping[str, Tensor | list[str]]
"""Name -> integers or float32 scales of any shape, or words."""


@dataclass(frozen=True, slots=True)
class Probe:
    """One question; `name` is "<unit>" or "<unit>/<variant>", and is what a red row shows.

    shares  the name that the stored answer has, where several probes must answer alike; "" for the probe's own
    defines whether its answer is the one that is stored for all that share it
    partial whether it may leave a part of what is stored unanswered
    rests   whether a case depends on the unit
    """

    name: str
    ask: Callable[[Streams], Answer]
    shares: str = ""
    defines: bool = True
    partial: bool = False
    rests: Rests = every_case

    @property
    def stored_as(self) -> str:
        """The name of its answer among the stored ones."""
        return self.shares or self.name


def told(x: Tensor) -> Tensor:
    """(2,) int64 of whole numbers: their sum, and their sum by position.

    No single value can change, and no two can change places, without one of them; where a question has many values
    this is all that is stored.
    """
    flat = x.flatten().long()
    return torch.stack([flat.sum(), (flat * torch.arange(1, len(flat) + 1)).sum()])


def some(*shape: int, step: int = 37, low: int = -128) -> Tensor:
    """int8 of every size and sign, the lowest among them."""
    count = torch.Size(shape).numel()
    return (torch.arange(count) * step % 256 + low).clamp(-128, 127).to(torch.int8).view(shape)


def floats(
    *shape: int, turn: float = 0.61803, about: float = 0.0, reach: float = 1.0, dtype: torch.dtype | None = None
) -> Tensor:
    """Numbers from about - reach to about + reach that never come back: the fractions of multiples of `turn`.

    They are multiples of 2^-12, which every dtype from float32 on holds.
    """
    count = torch.Size(shape).numel()
    fractions = ((torch.arange(1, count + 1, dtype=torch.float64) * turn) % 1 * 4096).round() / 4096
    return (about + reach * (2 * fractions - 1)).to(dtype or torch.float32).view(shape)


def inside(x: Tensor, by: int = 3) -> Tensor:
    """The same values as a slice of a wider tensor: the last axis dense, the others not."""
    wide = torch.full((*x.shape[:-1], x.shape[-1] + 2 * by), 77, dtype=x.dtype)
    wide[..., by : by + x.shape[-1]] = x
    return wide[..., by : by + x.shape[-1]]
