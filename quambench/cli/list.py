"""quambench list: what there is, by name."""

from __future__ import annotations

import argparse
import dataclasses
import json

from tabulate import tabulate

from quambench.metrics import METRICS
from quambench.models.checkpoint import bundled_names
from quambench.models.sites import SITES
from quambench.observers import OBSERVERS
from quambench.policy import POLICIES

Rows = list[dict[str, object]]


def _first_line(thing: object) -> str:
    return (thing.__doc__ or "").strip().splitlines()[0]


def _models() -> Rows:
    return [{"name": n, "language": kind} for kind in ("prose", "recall") for n in bundled_names(kind)]


def _observers() -> Rows:
    rows: Rows = []
    for name, kind in OBSERVERS.items():
        fields = [f for f in dataclasses.fields(kind) if f.name != "bits"]
        defaults = ", ".join(f"{f.name}={f.default}" for f in fields)
        rows.append({"name": name, "parameters": defaults or "-", "what": _first_line(kind)})
    return rows


def _policies() -> Rows:
    return [{"name": name, "what": _first_line(policy)} for name, policy in POLICIES.items()]


def _metrics() -> Rows:
    return [{"name": m.name, "unit": m.unit, "better": m.better, "version": m.version} for m in METRICS.values()]


def _sites() -> Rows:
    return [
        {
            "architecture": kind,
            "site": s.name,
            "tensor": s.tensor,
            "observer": s.observer,
            "allowed": ", ".join(s.allowed),
            "feeds": s.consumer.split(",")[0],
        }
        for kind, sites in SITES.items()
        for s in sites
    ]


KINDS = {"models": _models, "observers": _observers, "policies": _policies, "metrics": _metrics, "sites": _sites}


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
