"""quambench sensitivity: what each site and each layer costs by itself."""

from __future__ import annotations

import argparse
import json

from tabulate import tabulate

from quambench.case import Case
from quambench.cli.options import add_corpus, add_model, corpus_of, progress_bars
from quambench.models.checkpoint import load_checkpoint
from quambench.runner import ModelRun
from quambench.sensitivity import LENGTH, WINDOWS, Cost, Scale, by_layer, by_site, grids_of

HEADINGS = ["", "KL alone\nmnat/token", "KL saved\nmnat/token", "logit MSE\nalone", "logit MSE\nsaved"]


def arguments(parser: argparse.ArgumentParser) -> None:
    add_model(parser)
    add_corpus(parser)
    parser.add_argument(
        "--observer", default="percentile", metavar="SPEC", help='with grouping and bits if wanted: "mse/channel/w8a4"'
    )
    parser.add_argument("--json", action="store_true", help="for machines")


def run(options: argparse.Namespace) -> int:
    checkpoint, corpus = load_checkpoint(options.model), corpus_of(options)
    case = Case.parse(checkpoint.name, options.observer)
    with progress_bars() as progress:
        work = ModelRun(checkpoint, corpus, [case], progress)
        grids = grids_of(work.plain, work.calibration(case))
        scale = Scale(work.plain, work.calibration_sequences[-WINDOWS:, :LENGTH])
        every = scale.cost(grids, grids.keys())
        layers = {f"layer {i}": costs for i, costs in by_layer(scale, grids).items()}
        rows = layers | by_site(scale, grids)
    found = {name: _numbers(alone, every, without) for name, (alone, without) in rows.items()}
    if options.json:
        print(json.dumps(found, indent=1))
        return 0
    table = [
        [name, *(f"{n['kl'] * 1e3:.4g}" for n in (row["alone"], row["saved"])),
         *(f"{n['output_mse']:.4g}" for n in (row["alone"], row["saved"]))]
        for name, row in found.items()
    ]  # fmt: skip
    print(tabulate(table, headers=HEADINGS, disable_numparse=True, colalign=["left", *["right"] * 4]))
    print(
        "\nalone: this one quantized and the rest float; saved: what leaving this one float saves when all others are"
        f" quantized. Activations only, on {WINDOWS} calibration windows of {LENGTH} tokens. All together:"
        f" {every.kl * 1e3:.4g} mnat/token."
    )
    return 0


def _numbers(alone: Cost, every: Cost, without: Cost) -> dict[str, dict[str, float]]:
    return {
        "alone": {"kl": alone.kl, "output_mse": alone.output_mse},
        "saved": {"kl": every.kl - without.kl, "output_mse": every.output_mse - without.output_mse},
    }
