"""When a latency is a regression, and where its baselines are."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from quambench.errors import BadArtefact
from quambench.latency.interleave import Ratio
from quambench.provenance import machine_class

SCHEMA = 1
MARGIN = 0.05  # beyond the stored ratio: what another build of the same code was seen to differ by


@dataclass(frozen=True, slots=True)
class LatencyVerdict:
    """status: "NEW", "SAME", "REGRESSED" or "IMPROVED"; latest: the last measurement made."""

    status: str
    latest: Ratio
    stored: Ratio | None

    @property
    def fails(self) -> bool:
        return self.status == "REGRESSED"

    def __str__(self) -> str:
        if self.stored is None:
            return f"{self.status}: ratio {self.latest}; no baseline of this machine's class"
        return f"{self.status}: ratio {self.stored.value:.3f} -> {self.latest} (margin {MARGIN:.0%})"


def judge(measure: Callable[[], Ratio], stored: Ratio | None) -> LatencyVerdict:
    """Regressed (or improved) when the interval clears the stored ratio by MARGIN, and does so again."""
    latest = measure()
    if stored is None:
        return LatencyVerdict("NEW", latest, None)
    for status, clears in (("REGRESSED", slower), ("IMPROVED", faster)):
        if clears(latest, stored):
            latest = measure()
            return LatencyVerdict(status if clears(latest, stored) else "SAME", latest, stored)
    return LatencyVerdict("SAME", latest, stored)


def slower(now: Ratio, stored: Ratio) -> bool:
    """Whether one measurement's interval lies beyond the stored ratio and MARGIN."""
    return now.low > stored.value * (1 + MARGIN)


def faster(now: Ratio, stored: Ratio) -> bool:
    """The like of it on the other side."""
    return now.high < stored.value / (1 + MARGIN)


def latency_class() -> str:
    """Machines whose ratios are compared: finer than numbers' classes, "cpu-x86_64-avx2-amd-epyc-2-threads"."""
    words = [machine_class(), *_processor().lower().split(), f"{torch.get_num_threads()}-threads"]
    return "-".join(_plain(word) for word in words if _plain(word))


def _plain(word: str) -> str:
    return "".join(c for c in word if c.isalnum() or c in "-_")


def _processor() -> str:
    """The processor's name; without the words that name no model."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        name = next(line.partition(":")[2] for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        name = platform.processor()
    dropped = ("processor", "cpu", "@", "(r)", "(tm)")
    return " ".join(w for w in name.split() if w.lower() not in dropped and not w.endswith("GHz"))


class LatencyStore:
    """Ratios of this class: <root>/latency/<class>.json."""

    def __init__(self, root: Path) -> None:
        self.path = root / "latency" / f"{latency_class()}.json"

    def read(self) -> dict[str, Ratio]:
        """Row -> stored ratio; empty where this class has none. raises BadArtefact"""
        if not self.path.exists():
            return {}
        try:
            document = json.loads(self.path.read_text(encoding="utf-8"))
            if document["schema"] != SCHEMA:
                raise BadArtefact(f"{self.path} has schema {document['schema']}, known is {SCHEMA}")
            return {name: Ratio(**row) for name, row in document["rows"].items()}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise BadArtefact(
                f"{self.path} is not a readable latency baseline ({error}); --qb-update records it anew"
            ) from error

    def write(self, rows: Mapping[str, Ratio], source: Mapping[str, Any]) -> Path:
        """Put these rows beside those stored, in one atomic step."""
        kept = self.read() | dict(rows)
        document = {
            "schema": SCHEMA,
            "source": dict(source),
            "rows": {name: asdict(kept[name]) for name in sorted(kept)},
        }
        self.path.parent.mkdir(parents=True, exist_ok=True)
        partial = self.path.with_name(f"{self.path.name}.{os.getpid()}.partial")
        partial.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
        os.replace(partial, self.path)
        return self.path
