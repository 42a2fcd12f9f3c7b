"""quambench list: what there is, by name."""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Mapping
from typing import cast

from tabulate import tabulate

from quambench.calibration.refine import REFINEMENTS
from quambench.core.spec import Value, written
from quambench.grids.granularity import GRANULARITIES
from quambench.grouping import GROUPINGS, GroupingSpec
from quambench.harness import offered_tasks
from quambench.metrics import METRICS
from quambench.models.checkpoint import bundled_names
from quambench.models.sites import ARCHITECTURES
from quambench.observers import OBSERVERS
from quambench.policy import POLICIES
from quambench.policy.base import PER_TENSOR, clusterings, groupings

Rows = list[dict[str, object]]


def _first_line(thing: object) -> str:
    return (thing.__doc__ or "").strip().splitlines()[0]


def _models() -> Rows:
    return [{"name": n, "language": kind} for kind in ("prose", "recall") for n in bundled_names(kind)]


def _with_parameters(kinds: Mapping[str, type]) -> Rows:
    """Dataclasses by name, their fields with defaults as a spec writes them."""
    rows: Rows = []
    for name, kind in kinds.items():
        fields = ", ".join(
            f"{f.name}={written(cast(Value, f.default))}" for f in dataclasses.fields(kind) if f.name != "bits"
        )
        rows.append({"name": name, "parameters": fields or "-", "what": _first_line(kind)})
    return rows


def _groupings() -> Rows:
    rows: Rows = [{"name": PER_TENSOR, "parameters": "-", "what": "One scale."}]
    finer = [n for n in groupings() if n != PER_TENSOR]
    rows += [{"name": n, "parameters": "-", "what": _first_line(GRANULARITIES[n])} for n in finer]
    clustered = {"2x2, 4x4, NxM": GroupingSpec("2x2"), **{name: GroupingSpec(name) for name in clusterings()}}
    for name, spec in clustered.items():
        parameters = ", ".join(f"{f.name}={written(cast(Value, f.default))}" for f in spec.settable().values())
        rows.append({"name": name, "parameters": parameters or "-", "what": "Mamba2: " + _first_line(spec.found())})
    in_order = [n for n in GROUPINGS if n in finer]
    rows += [
        {"name": f"{n}/quamba2", "parameters": "-", "what": "Mamba2: " + _first_line(GROUPINGS[n])} for n in in_order
    ]
    return rows


def _metrics() -> Rows:
    return [{"name": m.name, "unit": m.unit, "better": m.better, "version": m.version} for m in METRICS.values()]


def _sites() -> Rows:
    return [
        {
            "architecture": kind,
            "site": s.name,
            "tensor": s.tensor,
            "observer": s.observer,
            "allowed": ", ".join([*s.allowed, *(["groups"] if s.grouped else [])]),
            "feeds": s.consumer.split(",")[0],
        }
        for kind, architecture in ARCHITECTURES.items()
        for s in architecture.sites
    ]


def _tasks() -> Rows:
    return [{"name": t.name, "metric": t.metric, "what": t.what, "file": str(t.file)} for t in offered_tasks()]


KINDS = {
    "models": _models,
    "observers": lambda: _with_parameters(OBSERVERS),
    "groupings": _groupings,
    "policies": lambda: _with_parameters(POLICIES),
    "refinements": lambda: _with_parameters(REFINEMENTS),
    "metrics": _metrics,
    "sites": _sites,
    "tasks": _tasks,
}


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("kind", nargs="?", choices=sorted(KINDS), help="one kind only (default: all)")
    parser.add_argument("--json", action="store_true", help="for machines")


def run(options: argparse.Namespace) -> int:
    wanted = [options.kind] if options.kind else list(KINDS)
    found = {kind: KINDS[kind]() for kind in wanted}
    if options.json:
        print(json.dumps(found, indent=1, ensure_ascii=False))
        return 0
    for kind, rows in found.items():
        print(f"{kind}\n{tabulate(rows, headers='keys', tablefmt='simple')}\n")
    return 0
