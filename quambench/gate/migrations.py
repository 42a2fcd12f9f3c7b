"""Migration of stored results of older schemas, one step at a time while they are read.

1 -> 2  KL quantiles as a table; the error at the last decoding step at every site instead of the
        state's alone; floors per window and site. What was not measured then is NaN.
2 -> 3  Floors of every array; evidence of a second look, of which there is none.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

SCHEMA = 3

Entries = dict[str, dict[str, Any]]
Arrays = dict[str, Tensor]


def migrated(entries: Mapping[str, Any], arrays: Mapping[str, Tensor], schema: int) -> tuple[Entries, Arrays]:
    """Return entries and arrays of `schema` as those of SCHEMA."""
    found: tuple[Entries, Arrays] = ({case: dict(entry) for case, entry in entries.items()}, dict(arrays))
    for step in range(schema, SCHEMA):
        found = STEPS[step](*found)
    return found


def _from_1(entries: Entries, arrays: Arrays) -> tuple[Entries, Arrays]:
    for case, entry in entries.items():
        entry["noise"] = {"means": entry["noise"], "units": {}}
        own = {k.removeprefix(f"{case}//"): arrays.pop(k) for k in list(arrays) if k.startswith(f"{case}//")}
        sites = [name for name in entry["scales"] if name not in entry["weights"]]
        for phase in ("prefill", "decode"):
            quantiles = _unknown(4, 2)
            quantiles[2] = own.pop(f"{phase}.kl_p99")
            own[f"{phase}.kl_quantiles"] = quantiles
        states = own.pop("decode.state_error")
        accumulated = _unknown(len(sites), states.shape[1])
        accumulated[[i for i, site in enumerate(sites) if site.endswith("ssm_state")]] = states
        own["decode.accumulated"] = accumulated
        own["decode.kl_prefill"] = torch.full_like(own["decode.kl"], torch.nan)
        own["sites.range_used"] = _unknown(len(sites))
        for name in ("scales.count", "scales.bytes", "model.bytes"):
            own[name] = torch.tensor(torch.nan)
        arrays |= {f"{case}//{name}": array for name, array in own.items()}
    return entries, arrays


def _unknown(*shape: int) -> Tensor:
    return torch.full(shape, torch.nan, dtype=torch.float64)


def _from_2(entries: Entries, arrays: Arrays) -> tuple[Entries, Arrays]:
    for case, entry in entries.items():
        if "rest" in entry or "arrays" in entry["noise"]:  # else another number in the file would drop them unseen
            raise ValueError(f"{case} has what schema 3 brought, and the file says schema 2")
        entry["noise"] = dict(entry["noise"]) | {"arrays": {}}
        entry["rest"] = ""
    return entries, arrays


STEPS: dict[int, Callable[[Entries, Arrays], tuple[Entries, Arrays]]] = {1: _from_1, 2: _from_2}
"""Schema -> what brings it to the next."""
