"""Model + sequences + plans -> Calibrations. One forward pass feeds every observer of every plan.

The prepared model runs in float64 and each activation is rounded to float32 before an observer
sees it: two machines then disagree only where a float64 rounding error crosses a float32 rounding
boundary, so scales agree to 1 ulp everywhere.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from quambench.errors import BadArtefact, BadCorpus, BadParameter, NonFinite, SiteUnseen
from quambench.models.backbone import LanguageModel
from quambench.observers import Observer
from quambench.policy import Plan
from quambench.quant.granularity import GRANULARITIES

SCHEMA = 1
FORWARD_BATCH = 16  # sequences per forward; observers still see one at a time

K = TypeVar("K", bound=Hashable)
Progress = Callable[[int, int], None]
"""(sequences done, sequences in all) -> None"""


@dataclass(frozen=True)
class Calibration:
    """The scales of one model under one plan, and what they were made from."""

    scales: Mapping[str, Tensor]  # site -> (*scale_shape) float32, in forward order
    granularities: Mapping[str, str]  # site -> granularity name
    observers: Mapping[str, str]  # site -> observer, parameters written out
    act_bits: int
    model_digest: str
    data_digest: str  # of the sequences

    @property
    def digest(self) -> str:
        """Hash of scales, granularities and bits: what the runtime would read."""
        h = hashlib.sha256(str(self.act_bits).encode())
        for site, scale in self.scales.items():
            h.update(f"{site} {self.granularities[site]} {tuple(scale.shape)}".encode())
            h.update(scale.contiguous().numpy().tobytes())
        return h.hexdigest()

    def save(self, folder: Path) -> None:
        """Write scales.safetensors and calibration.json; each file appears whole or not at all."""
        folder.mkdir(parents=True, exist_ok=True)
        about = {
            "schema": SCHEMA,
            "act_bits": self.act_bits,
            "model_digest": self.model_digest,
            "data_digest": self.data_digest,
            "scales_digest": self.digest,
            "sites": {s: {"observer": self.observers[s], "granularity": self.granularities[s]} for s in self.scales},
        }
        save_file(dict(self.scales), folder / "scales.safetensors.partial")
        (folder / "calibration.json.partial").write_text(json.dumps(about, indent=1) + "\n")
        for name in ("scales.safetensors", "calibration.json"):
            os.replace(folder / f"{name}.partial", folder / name)

    @classmethod
    def load(cls, folder: Path) -> Calibration:
        """raises BadArtefact when a file is missing, corrupt, of another schema, or not the other's twin."""
        for name in ("calibration.json", "scales.safetensors"):
            if not (folder / name).is_file():
                raise BadArtefact(f"{folder} holds no calibration: {name} is missing")
        try:
            about = json.loads((folder / "calibration.json").read_text())
            if about["schema"] != SCHEMA:
                raise BadArtefact(f"{folder}: calibration of schema {about['schema']}, this version reads {SCHEMA}")
            stored = load_file(folder / "scales.safetensors")
            sites = about["sites"]
            loaded = cls(
                scales={s: stored[s] for s in sites},
                granularities={s: entry["granularity"] for s, entry in sites.items()},
                observers={s: entry["observer"] for s, entry in sites.items()},
                act_bits=about["act_bits"],
                model_digest=about["model_digest"],
                data_digest=about["data_digest"],
            )
        except (ValueError, KeyError, TypeError, AttributeError, SafetensorError) as error:
            raise BadArtefact(f"{folder} holds a corrupt calibration: {error!r}") from None
        if loaded.digest != about["scales_digest"]:
            raise BadArtefact(f"{folder}: scales.safetensors is not the file that calibration.json describes")
        return loaded


@torch.no_grad()
def calibrate(
    prepared: LanguageModel,
    sequences: Tensor,
    plans: Mapping[K, tuple[Plan, int]],
    model_digest: str,
    progress: Progress = lambda done, total: None,
) -> dict[K, Calibration]:
    """Run `sequences` once through `prepared`, and turn each plan's observers into scales.

    sequences  (S, L) int64; each sequence is one batch to an observer, in this order
    plans      key -> (plan, activation bits); equal (site, observer, granularity, bits) are observed once
    raises NonFinite naming site and sequence; SiteUnseen naming the site; BadCorpus for no sequence
    """
    if sequences.numel() == 0:
        raise BadCorpus("calibration needs at least one sequence of at least one token")
    watchers: dict[tuple, Observer] = {}
    by_site: dict[str, dict[str, list[Observer]]] = {}
    for plan, bits in plans.values():
        for site, (observer, granularity) in ((s, (a.observer.complete, a.granularity)) for s, a in plan.items()):
            if (site, observer, granularity, bits) not in watchers:
                made = watchers[site, observer, granularity, bits] = observer.build(bits)
                by_site.setdefault(site, {}).setdefault(granularity, []).append(made)

    first = 0  # index of the forward batch's first sequence

    def watch(site: str, x: Tensor) -> Tensor:
        for granularity, observers in by_site.get(site, {}).items():
            laid_out = [GRANULARITIES[granularity].lay_out(one) for one in x.float().split(1)]
            for observer in observers:
                for offset, batch in enumerate(laid_out):
                    try:
                        observer.update(batch)
                    except NonFinite as error:
                        raise NonFinite(f"{site}, calibration sequence {first + offset}: {error}") from None
        return x

    for first in range(0, len(sequences), FORWARD_BATCH):
        prepared(sequences[first : first + FORWARD_BATCH], tap=watch)
        progress(min(first + FORWARD_BATCH, len(sequences)), len(sequences))

    data_digest = hashlib.sha256(str(tuple(sequences.shape)).encode() + sequences.numpy().tobytes()).hexdigest()
    return {
        key: Calibration(
            scales={s: _scale(s, watchers[s, a.observer.complete, a.granularity, bits]) for s, a in plan.items()},
            granularities={s: a.granularity for s, a in plan.items()},
            observers={s: str(a.observer.complete) for s, a in plan.items()},
            act_bits=bits,
            model_digest=model_digest,
            data_digest=data_digest,
        )
        for key, (plan, bits) in plans.items()
    }


def _scale(site: str, observer: Observer) -> Tensor:
    try:
        return observer.scale()
    except SiteUnseen:
        raise SiteUnseen(f"no calibration data passed through {site}") from None
    except (BadParameter, NonFinite) as error:  # an observer from outside may say anything
        raise type(error)(f"{site}: {error}") from None
