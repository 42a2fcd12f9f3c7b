"""A calibration: the scales of one model under one plan, as it is saved, loaded and checked."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from quambench.core.errors import BadArtefact, BadParameter
from quambench.core.files import locked, write
from quambench.core.pointers import check_fetched
from quambench.core.reading import Unreadable, is_file, mappings, read_bytes, read_json, read_pair, shown, text
from quambench.grids.granularity import GRANULARITIES, GROUPS, UNQUANTIZED, groups_at, scale_shape
from quambench.grids.grid import check_steps, check_zero_points
from quambench.grids.precision import FLOAT_BITS
from quambench.grouping import Groups
from quambench.models.config import ModelConfig
from quambench.models.sites import ARCHITECTURES, architectures_with, local_name, sites_of

SCHEMA = 1
_ABOUT, _SCALES = "calibration.json", "scales.safetensors"
_GROUPS = ("head_index", "channel_index", "head_sizes", "dim_sizes")  # fields of Groups, as they are saved


@dataclass(frozen=True)
class Calibration:
    """The scales of one model under one plan, and what they were made from."""

    scales: Mapping[str, Tensor]  # site -> (*scale_shape) float32, in forward order
    granularities: Mapping[str, str]  # site -> granularity name
    observers: Mapping[str, str]  # site -> observer, parameters written out
    act_bits: int
    model_digest: str
    data_digest: str  # of the sequences
    symmetric: bool = True  # else a scale is (2, *scale_shape): step and shifted zero point
    groups: Mapping[int, Groups] = field(default_factory=dict)  # by layer; the model's channels stand in their order

    @property
    def digest(self) -> str:
        """A hash of scales, granularities and bits: of all that the runtime would read."""
        h = hashlib.sha256(f"{self.act_bits}{'' if self.symmetric else ' asymmetric'}".encode())
        for site, scale in self.scales.items():
            h.update(f"{site} {self.granularities[site]} {tuple(scale.shape)}".encode())
            h.update(scale.contiguous().numpy().tobytes())
        for layer, groups in self.groups.items():
            h.update(f"{layer} {groups.digest}".encode())
        return h.hexdigest()

    def save(self, folder: Path) -> None:
        """Write scales.safetensors and calibration.json. If killed at any moment, the old pair or the new one can be
        loaded.

        raises NotWritten
        """
        about, arrays = self.described()
        with locked(folder):
            with suppress(BadArtefact):  # for as long as one of the two files is the old one, the JSON describes both
                write(folder / _ABOUT, _dump(Calibration.load(folder).described()[0] | {"replaced_by": about}))
            write(folder / _SCALES, save(arrays))
            write(folder / _ABOUT, _dump(about))

    def described(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Return the content of a JSON file about this calibration, and the arrays that it refers to."""
        arrays = dict(self.scales)
        for layer, groups in self.groups.items():
            arrays |= {f"groups.{layer}.{name}": getattr(groups, name).contiguous() for name in _GROUPS}
        return self._about(), arrays

    def _about(self) -> dict[str, Any]:
        sites = {s: {"observer": self.observers[s], "granularity": self.granularities[s]} for s in self.scales}
        about = {
            "schema": SCHEMA,
            "act_bits": self.act_bits,
            "symmetric": self.symmetric,
            "model_digest": self.model_digest,
            "data_digest": self.data_digest,
            "scales_digest": self.digest,
            "sites": sites,
        }
        return about | ({"grouped_layers": list(self.groups)} if self.groups else {})

    @classmethod
    def load(cls, folder: Path) -> Calibration:
        """Read a saved calibration.

        raises BadArtefact when a file is missing, corrupt, of another schema, not the other's twin, or when it holds
        what no calibration can make (`check_calibration`)
        """
        return read_pair(lambda: _text_of(folder), lambda _: cls._loaded(folder))

    @classmethod
    def _loaded(cls, folder: Path) -> Calibration:
        """Read the pair of files once. raises BadArtefact"""
        about, stored = _read(folder)
        following = about.get("replaced_by")
        if following is not None:
            with suppress(BadArtefact):  # killed on the way: the scales are the new ones, or still not
                return cls.from_described(following, stored, folder)
        return cls.from_described(about, stored, folder)

    @classmethod
    def from_described(cls, about: Any, stored: Mapping[str, Tensor], folder: Path) -> Calibration:
        """Read what `described` gave, as it came back from the files of a folder. raises BadArtefact"""
        _check_about(folder, about)
        sites = about["sites"]
        try:
            loaded = cls(
                scales={s: stored[s] for s in sites},
                granularities={s: entry["granularity"] for s, entry in sites.items()},
                observers={s: entry["observer"] for s, entry in sites.items()},
                act_bits=about["act_bits"],
                model_digest=about["model_digest"],
                data_digest=about["data_digest"],
                symmetric=about.get("symmetric", True),  # files from before there was a choice
                groups={
                    layer: Groups(*(stored[f"groups.{layer}.{name}"] for name in _GROUPS))
                    for layer in about.get("grouped_layers", ())
                },
            )
            same = loaded.digest == about["scales_digest"]
        except (ValueError, LookupError, TypeError, AttributeError, RuntimeError, BadParameter) as error:
            raise BadArtefact(f"{shown(folder)} holds a corrupt calibration: {shown(repr(error))}") from None
        if not same:
            raise BadArtefact(f"{shown(folder)}: {_SCALES} is not the file that {_ABOUT} describes")
        try:
            check_calibration(loaded)
        except BadArtefact as error:
            raise BadArtefact(f"{shown(folder)} holds a corrupt calibration: {error}") from None
        return loaded


def _read(folder: Path) -> tuple[Mapping[str, Any], Mapping[str, Tensor]]:
    """Return calibration.json, of this schema, and scales.safetensors. raises BadArtefact"""
    for name in (_ABOUT, _SCALES):
        if not is_file(folder / name):
            raise BadArtefact(f"{shown(folder)} holds no calibration: {name} is missing")
        check_fetched(folder / name, BadArtefact)
    try:
        about = read_json(folder / _ABOUT)
        _check_about(folder, about)
        return about, load(read_bytes(folder / _SCALES))
    except (Unreadable, SafetensorError, OSError, ValueError, RuntimeError) as error:
        raise BadArtefact(f"{shown(folder)} holds a corrupt calibration: {shown(error)}") from None


def _check_about(folder: Path, about: Any) -> None:
    if not mappings(about, "sites"):
        raise BadArtefact(f"{shown(folder)} holds a corrupt calibration: {_ABOUT} must be an object with sites")
    if about.get("schema") != SCHEMA:
        got = shown(about.get("schema"))
        raise BadArtefact(f"{shown(folder)}: calibration of schema {got}, this version reads {SCHEMA}")


def _text_of(folder: Path) -> bytes:
    """Return the bytes of calibration.json, as far as it can be read."""
    with suppress(Unreadable):
        return read_bytes(folder / _ABOUT)
    return b""


def check_calibration(calibration: Calibration, config: ModelConfig | None = None) -> None:
    """Check that a Calibration from a file or from outside is one that calibration could have made.

    Every reader asks this: of a saved folder, of another program's file, of code from outside.
    config  the model's, where it is known: its sites, each with a scale of the shape that its granularity has there
    raises BadArtefact naming the site
    """
    c = calibration
    if type(c.act_bits) is not int or not (2 <= c.act_bits <= 8 or c.act_bits == FLOAT_BITS):
        raise BadArtefact(f"act_bits must be 2 to 8, or {FLOAT_BITS} where all stays float (got {shown(c.act_bits)})")
    if type(c.symmetric) is not bool:
        raise BadArtefact(f"symmetric must be true or false (got {shown(c.symmetric)})")
    if not (text(c.model_digest) and text(c.data_digest)):
        raise BadArtefact("the digests of model and data must be strings")
    if config is not None and set(c.scales) != set(sites_of(config)):
        apart = sorted(set(c.scales) ^ set(sites_of(config)))[0]
        is_there = "of another model" if apart in c.scales else "missing"
        raise BadArtefact(f"the sites must be those of the model: {shown(apart)} is {is_there}")
    known = set(ARCHITECTURES)
    for site in c.scales:
        known &= architectures_with(site)
        if not known:
            raise BadArtefact(f"{shown(site)} is no site of a model that has the sites before it")
    for layer in c.groups:
        if type(layer) is not int or layer < 0:
            raise BadArtefact(f"a layer in groups must be a number (got {shown(repr(layer))})")
    for site in c.scales:
        _check_site(c, site, config)


def _check_site(c: Calibration, site: str, config: ModelConfig | None) -> None:
    granularity, scale = c.granularities[site], c.scales[site]
    if not text(c.observers[site]):
        raise BadArtefact(f"{site}: the observer must be a string (got {shown(c.observers[site])})")
    if granularity not in (*GRANULARITIES, UNQUANTIZED, GROUPS):
        raise BadArtefact(f"{site}: no granularity is called {shown(granularity)}")
    if scale.dtype != torch.float32:
        raise BadArtefact(f"{site}: scales must be float32 (got {str(scale.dtype).removeprefix('torch.')})")
    sides = () if c.symmetric or granularity == UNQUANTIZED else (2,)
    if tuple(scale.shape[: len(sides)]) != sides or not _fits(c, site, tuple(scale.shape[len(sides) :]), config):
        raise BadArtefact(f"{site}: {tuple(scale.shape)} is no shape of scales per {granularity} there")
    if granularity == UNQUANTIZED:
        return
    if c.act_bits == FLOAT_BITS:
        raise BadArtefact(f"{site} has a scale, and act_bits say that all stays float")
    check_steps(scale[0] if sides else scale, site)
    if sides:
        check_zero_points(scale[1], c.act_bits, site)


# Axes of a scale by granularity, where no model says how long they are; a state has more.
_AXES = {"tensor": (0,), "split": (1,), "ssd_group": (1,), "head": (1,), "channel": (1, 2), "channel_state": (2, 3)}


def _fits(c: Calibration, site: str, shape: tuple[int, ...], config: ModelConfig | None) -> bool:
    """Whether a scale of this shape can stand at a site."""
    granularity, groups = c.granularities[site], groups_at(site, c.groups)
    if granularity == UNQUANTIZED:
        return shape == (0,)
    if config is not None:
        one = sites_of(config)[site]
        if granularity not in (*one.allowed, *([GROUPS] if one.grouped else [])):
            return False
        try:
            return shape == scale_shape(granularity, site, config, groups)
        except (BadParameter, RuntimeError, IndexError):  # groups of another model's heads or channels
            return False
    if granularity == GROUPS:
        state = local_name(site) == "ssm_state"
        return groups is not None and shape[:3] == groups.shape and len(shape) == (4 if state else 3) and 0 not in shape
    return len(shape) in _AXES[granularity] and 0 not in shape


def _dump(about: Mapping[str, Any]) -> str:
    return json.dumps(about, indent=1) + "\n"
