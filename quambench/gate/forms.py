"""The form of a stored record: the type of each entry of its JSON, type and axes of each of its arrays.

Hashes say that a file is as it was written, not that a measurement wrote it: a script may change a baseline and
sign it anew. What then stands there is of the form that the judge works with, or it is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from quambench.core.reading import number, scalar, shown, text
from quambench.evaluation.fields import SITES, Axis, field_of

_LARGEST = 1e100  # squares of it, and sums of those, are still numbers


def check_entry(entry: Mapping[str, Any]) -> None:
    """Check that a case's JSON, brought up to date, has every field in its type. raises ValueError naming the field"""
    for field in ("settings", "provenance", "metrics", "noise", "weights"):
        _demand(isinstance(entry[field], dict), f"{field} must be an object", entry[field])
    for field in ("protocol", "artefacts", "rest"):
        _demand(text(entry[field]), f"{field} must be a string", entry[field])
    _demand(text(entry.get("accepted", "")), "accepted must be a string", entry.get("accepted"))
    for name, value in entry["settings"].items():
        _demand(scalar(value), f"the setting {name} must be one value", value)
    bits = entry["settings"].get("act_bits")
    _demand(type(bits) is int and 2 <= bits <= 16, "the setting act_bits must be a number from 2 to 16", bits)
    for name, value in entry["provenance"].items():
        plain = all(map(scalar, value.values())) if isinstance(value, dict) else scalar(value)
        _demand(plain or _by_kind(value), f"the provenance's {name} must be one value or an object of such", value)
    for name, pair in entry["metrics"].items():
        fits = isinstance(pair, list) and len(pair) == 2 and all(x is None or number(x) for x in pair)
        _demand(fits, f"the metric {name} must be a number and its standard error", pair)
    for kind, floors in entry["noise"].items():
        _demand(isinstance(floors, dict), f"the noise's {kind} must be an object", floors)
        for name, floor in floors.items():
            _demand(floor is None or number(floor), f"the noise of {name} must be a number", floor)
    for name, digest in entry["weights"].items():
        _demand(text(digest), f"the digest of {name} must be a string", digest)
    names = entry["scales"]
    distinct = isinstance(names, list) and all(map(text, names)) and len(set(names)) == len(names)
    _demand(distinct, "scales must be a list of different names", names)


def _by_kind(value: Any) -> bool:
    """Whether a value lists code from outside: kind -> name -> digest."""
    return isinstance(value, dict) and all(
        isinstance(named, dict) and all(map(scalar, named.values())) for named in value.values()
    )


def check_scales(scales: Mapping[str, Tensor], symmetric: bool) -> None:
    """Check that scales, float32 by name, can be a grid's. raises ValueError naming the first that cannot"""
    for name, scale in scales.items():
        if scale.dtype != torch.float32 or scale.ndim != 1:
            raise ValueError(f"the scales of {shown(name)} must be float32 in a row (got {scale.dtype})")
        bad = ~scale.isfinite() | (scale <= 0 if symmetric else scale.isnan())
        if bad.any():
            raise ValueError(f"a scale of {shown(name)} must be finite and above 0 (got {scale[bad][0].item():g})")


def check_arrays(evidence: Mapping[str, Tensor], n_sites: int | None) -> None:
    """Check that arrays are of the types and lengths that the judge works with.

    n_sites  how many sites the record has; None for a second look, which has none
    raises ValueError naming the first that is not
    """
    lengths: dict[tuple[str, Axis], int] = {} if n_sites is None else {("", SITES): n_sites}
    for name, array in evidence.items():
        field = field_of(name)
        if array.dtype not in field.dtypes:
            raise ValueError(f"{shown(name)} cannot be of type {str(array.dtype).removeprefix('torch.')}")
        if array.is_floating_point() and field.counts and not torch.equal(array, array.round()):
            raise ValueError(f"{shown(name)} holds counts, and not all of its numbers are whole")
        if name.startswith("noise.") and not bool(((array >= 0) & array.isfinite()).all()):
            raise ValueError(f"{shown(name)} must be numbers of 0 or more")
        if field.from_zero and bool((array < 0).any()):
            raise ValueError(f"{shown(name)} cannot be below 0")
        if array.is_floating_point() and bool((array.isfinite() & (array.abs() > _LARGEST)).any()):
            raise ValueError(f"{shown(name)} has a number beyond {_LARGEST:g}, which no measurement comes to")
        if field.axes is None:
            continue
        group = name.rpartition(".")[0]
        keys = [("" if axis == SITES else group, axis) for axis in field.axes]
        shape = tuple(
            axis if isinstance(axis, int) else lengths.setdefault(key, n)
            for axis, key, n in zip(field.axes, keys, array.shape, strict=False)
        )
        if len(field.axes) != array.ndim or shape != tuple(array.shape):
            raise ValueError(f"{shown(name)} cannot have shape {tuple(array.shape)} beside the other arrays")


def _demand(fits: bool, what: str, got: Any) -> None:
    if not fits:
        raise ValueError(f"{shown(what)} (got {shown(repr(got))})")
