"""What a probe is: a unit of the quantization path, asked a stored question."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor

Streams = Mapping[str, Tensor]
Answer = Mapping[str, Tensor | list[str]]
"""Name -> integers or float32 scales of any shape, or words."""


@dataclass(frozen=True, slots=True)
class Probe:
    """One question; `name` is "<unit>" or "<unit>/<variant>", and is what a red row shows."""

    name: str
    ask: Callable[[Streams], Answer]
