"""A case: everything that can change a number, and nothing else."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field

from quambench.observers import ObserverSpec
from quambench.quant.quantized import Precision


@dataclass(frozen=True, slots=True, kw_only=True)
class Protocol:
    """What is measured on, and how much of it. Counts are of windows, lengths of tokens.

    The default is what `pytest suites/` can afford for every case; `FULL` is for a closer look.
    """

    calib_windows: int = 256
    calib_length: int = 128
    quality_windows: int = 48  # prefill: loss, KL, agreement
    quality_length: int = 256
    decode_windows: int = 40  # step by step: loss and KL after a float-free prefix
    decode_prefix: int = 32
    decode_steps: int = 64
    error_windows: int = 8  # local and accumulated error per site
    error_length: int = 256
    max_items: int = 160  # last-word items; 0 takes all
    recall_sequences: int = 100  # of each recall task, for models that know them
    long_windows: int = 4  # sequences of 8 times the training length, for the same models


FULL = Protocol(quality_windows=192, decode_windows=120, error_windows=16, max_items=0, recall_sequences=400)
"""--qb-full: about four times the default; standard errors half as large."""
FULL_SUFFIX = "full"  # of such a case's id


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """model x observer x grouping, under a policy and a precision.

    Defaults are history: add fields, never change a default.
    """

    model: str
    observer: ObserverSpec
    grouping: str = "1x1"
    policy: str = "quamba"
    precision: Precision = field(default_factory=Precision)
    protocol: Protocol = field(default_factory=Protocol)

    @property
    def id(self) -> str:
        """For people, and for -k: mamba2-tiny/percentile[alpha=0.9995,sigma=0.01]/1x1."""
        parts = [self.model, str(self.observer), self.grouping]
        if self.policy != "quamba":
            parts.append(self.policy)
        if self.precision != Precision():
            parts.append(self.precision.id)
        if self.protocol == FULL:
            parts.append(FULL_SUFFIX)
        return "/".join(parts)

    def settings(self) -> dict[str, object]:
        """Every field by name, the observer's defaults written out."""
        flat: dict[str, object] = {"model": self.model, "observer": str(self.observer.complete)}
        flat |= {"grouping": self.grouping, "policy": self.policy}
        return flat | asdict(self.precision) | asdict(self.protocol)


def protocol_hash(settings: dict[str, object]) -> str:
    """For machines: 12 hex digits over a case's settings and its data; decides STALE."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:12]
