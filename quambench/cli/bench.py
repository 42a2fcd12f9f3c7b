"""quambench bench: what kernels and whole models cost, as ratios; and whether the latency gate can be trusted."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from tabulate import tabulate

from quambench.bench.bars import Bar, Memory, conv_bars, model_bars
from quambench.bench.drill import Drill, drill
from quambench.bench.gate import latency_class
from quambench.bench.interleave import Ratio, interleaved
from quambench.bench.kernels import SHAPES, Rates, rows
from quambench.bench.models import CONFIGS
from quambench.cli.options import check_out, progress_bars, refuse_beside, show
from quambench.core.errors import BadParameter
from quambench.core.files import write
from quambench.core.memory import keep_freed_memory
from quambench.core.provenance import provenance
from quambench.run.runner import Progress


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "what", choices=("kernels", "models", "gate"),
        help="kernels: every operator and the whole models; models: these alone; gate: planted slowdowns and clean"
        " repeats of the latency gate",
    )  # fmt: skip
    parser.add_argument(
        "--shape", action="append", choices=SHAPES, help="of a published model; repeatable (default: all)"
    )
    parser.add_argument("--json", action="store_true", help="for machines")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write it there as well, as JSON")


def run(options: argparse.Namespace) -> int:
    if options.what == "gate":
        refuse_beside(options, "gate", ["--shape"], "drills rows of its own")
    if options.what == "models" and (none := [s for s in options.shape or () if s not in CONFIGS]):
        raise BadParameter(f"--shape {none[0]} is of kernels alone; whole models are {', '.join(CONFIGS)}")
    check_out(options.out)
    keep_freed_memory()
    with progress_bars() as progress, torch.inference_mode():
        found = _gate(progress) if options.what == "gate" else _all(options, progress)
    text = json.dumps({"class": latency_class(), "provenance": provenance(), **found}, indent=1)
    shown = text if options.json else "\n\n".join(_tables(found))
    show(shown + "\n", lambda: write(options.out, text + "\n") if options.out else None)
    return 0 if _passes(found) else 1


def _passes(found: dict[str, Any]) -> bool:
    """No bar is missed; of planted slowdowns 19 in 20 are caught, of clean repeats at most 1 in 40 is red."""
    drills = [Drill(**row) for row in found.get("gate", [])]
    missed = any(bar["met"] is False for bar in found.get("bars", []))
    caught = sum(d.caught for d in drills) >= 0.95 * sum(d.planted for d in drills)
    return not missed and caught and sum(d.alarms for d in drills) <= sum(d.clean for d in drills) / 40


def _gate(progress: Progress) -> dict[str, Any]:
    return {"gate": [asdict(row) for row in drill(progress)]}


def _all(options: argparse.Namespace, progress: Progress) -> dict[str, Any]:
    shapes = options.shape or list(SHAPES)
    found: dict[str, Any] = {}
    if options.what == "kernels":
        rates = Rates.measure()
        found = {"rates": asdict(rates), "kernels": list(_kernels(shapes, rates, progress))}
    bars: list[Bar] = []
    memory: list[Memory] = []
    for row in _models([name for name in CONFIGS if name in shapes], progress):
        (bars if isinstance(row, Bar) else memory).append(row)  # type: ignore[arg-type]
    return found | {"bars": [asdict(bar) | {"met": bar.met} for bar in bars], "memory": [asdict(m) for m in memory]}


def _kernels(shapes: list[str], rates: Rates, progress: Progress) -> Iterator[dict[str, Any]]:
    todo = list(rows(shapes))
    for i, row in enumerate(todo):
        progress("kernels", i, len(todo))
        ratio = interleaved(*row.make())
        share = rates.share(row, ratio.seconds)
        yield {"name": row.name, "of": row.counterpart, "ratio": asdict(ratio), "share_of_bound": share}


def _models(names: list[str], progress: Progress) -> Iterator[Bar | Memory]:
    progress("whole models", 0, len(names) + 1)
    yield from conv_bars()
    for i, name in enumerate(names):
        progress("whole models", i + 1, len(names) + 1)
        yield from model_bars(name)


def _tables(found: dict[str, Any]) -> Iterator[str]:
    if "kernels" in found:
        yield _table(found["kernels"], {"of bound": lambda row: _percent(row["share_of_bound"])})
        rates = found["rates"]
        yield (
            f"of bound: share of what this machine copied ({rates['copied'] / 1e9:.1f} GB/s read and written) or"
            f" multiplied ({rates['multiplied'] / 1e9:.0f} G int8 products/s) in this run, whichever decides"
        )
    if "bars" in found:
        yield _table(found["bars"], {"at most": _limit, "": lambda row: _MET[row["met"]]})
        yield tabulate(
            [[m["name"], _mib(m["kept"]), _mib(m["working"])] for m in found["memory"]],
            ["MiB", "parameters and buffers", "working memory, 512 tokens"],
            disable_numparse=True, colalign=["left", "right", "right"],
        )  # fmt: skip
    if "gate" in found:
        yield _drilled([Drill(**row) for row in found["gate"]])


_MET = {None: "", True: "met", False: "MISSED"}


def _table(found: list[dict[str, Any]], more: dict[str, Any]) -> str:
    rows = []
    for row in found:
        if row["ratio"] is None:
            rows.append([row["name"], row["of"], f"not measured: {row['why']}", "", "", *("" for _ in more)])
            continue
        r = Ratio(**row["ratio"])
        times = [f"{r.seconds * 1e3:.3g}", f"{r.counterpart_seconds * 1e3:.3g}"] if r.seconds else ["", ""]
        rows.append([row["name"], row["of"], str(r), *times, *(cell(row) for cell in more.values())])
    headers = ["", "against", "ratio [95 %]", "ms", "its ms", *more]
    aligned = ["left", "left", *["right"] * (len(headers) - 2)]
    table: str = tabulate(rows, headers, disable_numparse=True, colalign=aligned)
    return table


def _limit(row: dict[str, Any]) -> str:
    return "" if row["limit"] is None else f"{row['limit']:.2f}"


def _percent(share: float | None) -> str:
    return "" if share is None else f"{share:.0%}"


def _mib(n: int | None) -> str:
    return "unknown" if n is None else f"{n / 2**20:.0f}"


def _drilled(found: list[Drill]) -> str:
    table = tabulate(
        [
            [d.row, f"{d.margin:.0%}", f"{d.caught} of {d.planted}", f"{d.alarms} of {d.clean}", d.caught_at_once,
             d.alarms_at_once]
            for d in found
        ],
        ["", "margin", "20 % slower: caught", "clean: alarms", "caught by one measurement", "alarms by one"],
        disable_numparse=True,
    )  # fmt: skip
    planted, caught = sum(d.planted for d in found), sum(d.caught for d in found)
    clean, alarms = sum(d.clean for d in found), sum(d.alarms for d in found)
    return f"{table}\n\ncaught {caught} of {planted} planted slowdowns; {alarms} false alarms in {clean} clean repeats"
