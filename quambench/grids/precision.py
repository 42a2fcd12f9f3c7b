"""Precisions: the bits of weights and of activations, of a whole model or of each layer.

16 bits are half precision and no grid at all: w4a16 rounds weights alone, w16a8 activations alone. The
latter is for comparison, no runtime has it. A mix of precisions by layer is Quamba2's (its hybrid blocks).
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any

from quambench.core.errors import BadParameter
from quambench.core.pointers import check_fetched
from quambench.core.reading import Unreadable, read_json, shown
from quambench.models.sites import layer_of

FLOAT_BITS = 16
MOST_LAYERS = 10_000  # most layers of a mix; the deepest model that we know of has 64
_RUNS = 8  # runs of equal layers that a mix's id spells out; of more, it gives the counts alone


@dataclass(frozen=True, slots=True)
class Bits:
    """The bits of weights and of activations: 2 to 8, or FLOAT_BITS."""

    weights: int = 8
    acts: int = 8

    def __str__(self) -> str:
        return f"w{self.weights}a{self.acts}"

    @classmethod
    def parse(cls, text: str) -> Bits:
        """Read "w4a8" or, as Quamba2's files have it, "W4A8".

        raises BadParameter
        """
        match = re.fullmatch(r"w([2-8]|16)a([2-8]|16)", text.lower())
        if match is None:
            raise BadParameter(f"{text!r} is no precision: write W4A8, bits 2 to 8 or 16")
        return cls(int(match[1]), int(match[2]))


_FLOAT = Bits(FLOAT_BITS, FLOAT_BITS)
HEAD_OF_A_MIX, EMBEDDING_OF_A_MIX = Bits(4, 8), 4  # as Quamba2 has them beside its hybrid blocks


@dataclass(frozen=True, slots=True, kw_only=True)
class Precision:
    """The bits of weights and activations; embedding, lm_head and the carried SSM state may stay float.

    layers          a mix: the bits of each; weight_bits and act_bits are then lm_head's
    embedding_bits  the embedding's own; None: as the recipe of weights has it

    The asymmetric grid is for comparison: the INT8 runtime has none.
    raises BadParameter where layers have integer activations of different widths
    """

    weight_bits: int = 8
    act_bits: int = 8
    embedding: bool = True
    lm_head: bool = True
    ssm_state: bool = True
    symmetric: bool = True
    layers: tuple[Bits, ...] = ()
    embedding_bits: int | None = None

    def __post_init__(self) -> None:
        widths = sorted({bits.acts for bits in self.everywhere} - {FLOAT_BITS})
        if len(widths) > 1:
            raise BadParameter(f"a mix rounds activations to one width (got {widths[0]} and {widths[1]} bits)")

    @property
    def id(self) -> str:
        """The name for people: "w8a8", "mix[w8a8,w4a16*3]", followed by what stays float."""
        kept = [name for name in ("embedding", "lm_head", "ssm_state") if not getattr(self, name)]
        named = [f"float_{name}" for name in kept] + ([] if self.symmetric else ["asymmetric"])
        return "-".join([self._mixed() if self.layers else str(self.of(None)), *named])

    def _mixed(self) -> str:
        runs = [(str(bits), len(list(run))) for bits, run in groupby(self.layers)]
        parts = [f"{bits}*{n}" if n > 1 else bits for bits, n in runs]
        if len(parts) > _RUNS:
            digest = hashlib.sha256(" ".join(map(str, self.layers)).encode()).hexdigest()[:8]
            parts = [f"{n}x{bits}" for bits, n in sorted(Counter(map(str, self.layers)).items())] + [f"layers={digest}"]
        if self.embedding_bits != EMBEDDING_OF_A_MIX:
            parts.append(f"embedding=w{self.embedding_bits}")
        if self.of(None) != HEAD_OF_A_MIX:
            parts.append(f"lm_head={self.of(None)}")
        return f"mix[{','.join(parts)}]"

    def of(self, layer: int | None) -> Bits:
        """Return the bits of a layer; for None, those of lm_head."""
        if layer is None or not self.layers:
            return Bits(self.weight_bits, self.act_bits)
        return self.layers[layer]

    @property
    def everywhere(self) -> tuple[Bits, ...]:
        """The bits of lm_head, then of each layer where layers have their own."""
        return (self.of(None), *self.layers)

    @property
    def _rounds_anything(self) -> bool:
        """Whether a weight or an activation has fewer bits than half precision."""
        embedding = self.weight_bits if self.embedding_bits is None else self.embedding_bits
        rounded = {*self.layers, *((self.of(None),) if self.lm_head or not self.layers else ())} - {_FLOAT}
        return bool(rounded) or (self.embedding and embedding < FLOAT_BITS)

    @property
    def grid_bits(self) -> int:
        """The bits of all activations that are rounded at all; FLOAT_BITS where none is."""
        return min(bits.acts for bits in self.everywhere)

    def has_grid(self, site: str) -> bool:
        """Whether a site's activations have so few bits that calibration makes a scale for it."""
        return self.of(layer_of(site)).acts < FLOAT_BITS

    def quantizes(self, site: str) -> bool:
        """Whether a site's values become integers at all."""
        kept = (not self.ssm_state and site.endswith("ssm_state")) or (not self.lm_head and site == "lm_head:input")
        return self.has_grid(site) and not kept

    def check_layers(self, n_layers: int) -> None:
        """Check that a mix is for as many layers as the model has. raises BadParameter"""
        if self.layers and len(self.layers) != n_layers:
            raise BadParameter(f"{self.id} is for {len(self.layers)} layers, and this model has {n_layers}")

    @classmethod
    def parse(cls, text: str) -> Precision:
        """Read an id, "w8a4", "w8a8-float_ssm_state-asymmetric", "mix[w8a8,w4a16*3]"; or a mix's file, "mix.json".

        Where more is to be said of a file, it stands in brackets: "mix[mix.json]-float_ssm_state".
        raises BadParameter
        """
        match = re.fullmatch(r"(mix\[.*\]|\w*)((?:-\w+)*)", f"mix[{text}]" if text.endswith(".json") else text)
        fields = {f"float_{name}": name for name in ("embedding", "lm_head", "ssm_state")} | {"asymmetric": "symmetric"}
        named = match[2].split("-")[1:] if match else []
        made = cls._bare(match[1]) if match and set(named) <= set(fields) else None
        if made is None:
            if is_width(text):
                raise BadParameter(
                    f"a precision names the bits of weights and of activations: {_meant(text)} (got {text!r})"
                )
            known = "".join(f"[-{name}]" for name in fields)
            raise BadParameter(
                f"a precision is written w8a8{known}, bits 2 to 8 or 16, or it is a mix of them, a .json file"
                f" (got {text!r})"
            )
        off: dict[str, Any] = {fields[name]: False for name in named}
        made = replace(made, **off)
        if not made._rounds_anything:
            raise BadParameter(f"{text} quantizes nothing: take fewer bits for weights or activations")
        return made

    @classmethod
    def _bare(cls, text: str) -> Precision | None:
        """Read a precision without the parts that stay float; None where the text is none at all."""
        if text.startswith("mix["):
            inner = text.removeprefix("mix[").removesuffix("]")
            return _read(Path(inner)) if inner.endswith(".json") else _spelled(inner, text)
        try:
            bits = Bits.parse(text)
        except BadParameter:
            return None
        return cls(weight_bits=bits.weights, act_bits=bits.acts)


_WIDTH = re.compile(r"(w|a|u?int|i|bf|fp|float|f|)-?(2|3|4|5|6|7|8|16|32)-?(?:bits?|b)?", re.IGNORECASE)


def is_width(text: str) -> bool:
    """Whether a text is a single width, as other tools write precisions: int8, fp16, a8, 8bit."""
    return _WIDTH.fullmatch(text) is not None


def _meant(text: str) -> str:
    """Return what to type in place of a single width."""
    match = _WIDTH.fullmatch(text)
    assert match is not None
    kind, bits = match[1].lower(), int(match[2])
    if bits > 8 or kind in ("bf", "fp", "float", "f"):
        return "16 bits are half precision, so write w8a16 or w16a8"
    both = {"w": (bits, 8), "a": (8, bits)}.get(kind, (bits, bits))
    return f"write {Bits(*both)}"


def _spelled(inner: str, text: str) -> Precision:
    """Read the brackets of a mix's id: "w8a8,w4a16*3,embedding=w8". raises BadParameter"""
    if not inner.strip():
        raise BadParameter(
            f"{text} needs a precision for each layer, as in mix[w8a8,w4a16*3], or a file, mix[mix.json]"
        )
    layers: list[str] = []
    top: dict[str, str] = {}
    for item in inner.split(","):
        key, given, value = item.partition("=")
        if key == "layers":
            raise BadParameter(f"{text} says how many layers have which precision, not which: give the mix's file")
        if key in top:
            raise BadParameter(f"{text} says {key} twice: say it once")
        if given:
            top[key] = value
            continue
        bits, times, n = item.partition("*")
        if times and not re.fullmatch(r"[1-9][0-9]*", n):
            raise BadParameter(f"{text}: {item!r} must be a precision and how many layers have it, as in w4a8*3")
        if len(n) > len(str(MOST_LAYERS)) or len(layers) + int(n or 1) > MOST_LAYERS:
            raise BadParameter(f"{shown(text)}: a mix is of {MOST_LAYERS:,} layers at most (got {shown(item)!r})")
        layers += [bits] * int(n or 1)
    return _mix(layers, top, text)


def _read(path: Path) -> Precision:
    """Read a mix's file: a JSON list with a string per layer, or an object with "layers", "embedding" and "lm_head"."""
    check_fetched(path, BadParameter)
    try:
        found: Any = read_json(path)
    except Unreadable as error:
        raise BadParameter(f"cannot read the mix {shown(path)}: {error.why}") from None
    top = dict(found) if isinstance(found, dict) else {"layers": found}
    layers = top.pop("layers", None)
    if not isinstance(layers, list):
        raise BadParameter(f'the mix {path} must be a list with a precision for each layer, or {{"layers": that list}}')
    return _mix(layers, top, str(path))


def _mix(layers: Sequence[object], top: Mapping[str, object], where: str) -> Precision:
    """Make a mix. raises BadParameter naming what cannot be read, and where"""
    if unknown := sorted(set(top) - {"embedding", "lm_head"}):
        raise BadParameter(f"{where}: a mix says layers, embedding and lm_head (got {unknown[0]!r})")
    if len(layers) > MOST_LAYERS:
        raise BadParameter(f"{where}: a mix is of {MOST_LAYERS:,} layers at most (got {len(layers):,})")
    if not layers:
        raise BadParameter(f"{where}: a mix needs a precision for each layer (got none)")
    made = [_bits(text, f"{where}, layer {i}") for i, text in enumerate(layers)]
    embedding = str(top.get("embedding", f"w{EMBEDDING_OF_A_MIX}"))
    match = re.fullmatch(r"w([2-8]|16)", embedding.lower())
    if match is None:
        raise BadParameter(f"{where}: the embedding's precision is written W8, bits 2 to 8 or 16 (got {embedding!r})")
    head = _bits(top.get("lm_head", str(HEAD_OF_A_MIX)), f"{where}, lm_head")
    widths = {bits.acts for bits in made} - {FLOAT_BITS}
    if "lm_head" not in top and len(widths) == 1 and widths != {head.acts}:
        acts = widths.pop()
        raise BadParameter(
            f"{where}: a mix rounds activations to one width, and its layers have {acts} bits, lm_head {head.acts}"
            f" unless it is said: say lm_head={Bits(acts=acts)}"
        )
    try:
        return Precision(weight_bits=head.weights, act_bits=head.acts, layers=tuple(made), embedding_bits=int(match[1]))
    except BadParameter as error:
        raise BadParameter(f"{where}: {error}") from None


def _bits(text: object, where: str) -> Bits:
    try:
        return Bits.parse(str(text))
    except BadParameter as error:
        raise BadParameter(f"{where}: {error}") from None
