"""The definition of a kind of layer, in one place: its mixer, sites and shapes, what may be grouped, Quamba's names.

`mamba.py` and `mamba2.py` each enter one; nothing else asks a model for the name of its architecture. Rooms further
right keep a table by that name for what they need of a kind: its INT8 block, and its spelling in a config.json.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from quambench.core.registry import Registry
from quambench.models.backbone import Mixer
from quambench.models.config import ModelConfig

PRODUCT = "an INT8 matrix product, which takes one scale for its whole input"
FLOAT = "float arithmetic on dequantized values"


@dataclass(frozen=True, slots=True)
class Site:
    """A named activation inside a block (or, for lm_head:input, after the last)."""

    name: str
    tensor: str  # the name of the tensor, for people
    observer: str  # "case" or the registry name of a fixed observer
    allowed: tuple[str, ...]  # granularities, coarsest first
    consumer: str  # the operation that reads it, which limits `allowed`
    grouped: bool = False  # whether a grouping of heads and channels gives it a scale per group


@dataclass(frozen=True, slots=True, kw_only=True)
class Architecture:
    """A kind of layer.

    sites        of one block, in the order in which a forward pass meets them
    shapes       config -> site -> shape of its tensor, without B and L of an activation, without B of the state
    scan_input   the site that the scan reads as x; where there are heads, it decides their groups
    has_heads    whether heads and channels can be put into groups, and so into another order
    quamba_keys  site -> the keys of Quamba's act_scales that stand for it. Where there are two, one tensor is quantized
                 by the scale at :input and read by the one at :output
    half         parameters of the mixer that the runtime keeps in half precision
    """

    name: str
    title: str  # in sentences
    mixer: type[Mixer]
    sites: tuple[Site, ...]
    shapes: Callable[[ModelConfig], Mapping[str, tuple[int, ...]]]
    scan_input: str
    has_heads: bool
    quamba_keys: Mapping[str, tuple[str, ...]]
    half: tuple[str, ...] = ()


ARCHITECTURES: Registry[Architecture] = Registry("architecture", "models/")
