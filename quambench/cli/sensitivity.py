"""quambench sensitivity: what each site and each layer costs by itself."""

from __future__ import annotations

import argparse
import json
from dataclasses import replace

from tabulate import tabulate

from quambench.calibration.sensitivity import LENGTH, WINDOWS, Cost, Scale, by_layer, by_site, grids_of
from quambench.case import Case, Protocol
from quambench.cli.options import add_corpus, add_model, check_corpus, corpus_of, progress_bars
from quambench.core.errors import BadParameter
from quambench.int8.recipe import WeightRecipe
from quambench.models.checkpoint import load_checkpoint
from quambench.run.runner import ModelRun

HEADINGS = ["", "KL alone\nmnat/token", "KL saved\nmnat/token", "logit MSE\nalone", "logit MSE\nsaved"]


def arguments(parser: argparse.ArgumentParser) -> None:
    add_model(parser)
    add_corpus(parser)
    parser.add_argument(
        "--observer", default="percentile", metavar="SPEC", help='with grouping and bits if wanted: "mse/channel/w8a4"'
    )
    parser.add_argument("--json", action="store_true", help="for machines")


def run(options: argparse.Namespace) -> int:
    check_corpus(options.corpus, [options.model])
    case = _checked(options.observer)  # before the model is loaded
    checkpoint, corpus = load_checkpoint(options.model), corpus_of(options)
    case = replace(case, model=checkpoint.name)
    with progress_bars() as progress:
        work = ModelRun(checkpoint, corpus, [case], progress)
        prepared = work.prepared(case)  # in the order of the case's groups
        grids = grids_of(prepared, work.calibration(case))
        scale = Scale(prepared, work.calibration_sequences[-WINDOWS:, :LENGTH])
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


def _checked(text: str) -> Case:
    """The case. raises BadParameter for parts that would change nothing: activations alone are quantized, one by one"""
    case = Case.parse("", text)
    p = case.precision
    idle = {
        case.weights.id: case.weights != WeightRecipe(),
        "tasks": bool(case.tasks),
        "quick or full": case.protocol != Protocol(),
        p.id: bool(p.layers) or (p.weight_bits, p.embedding, p.lm_head, p.ssm_state) != (8, True, True, True),
    }
    if what := next((part for part, written in idle.items() if written), ""):
        raise BadParameter(
            f"case {text}: {what} changes nothing here, where activations alone are quantized: leave it out"
        )
    return case


def _numbers(alone: Cost, every: Cost, without: Cost) -> dict[str, dict[str, float]]:
    return {
        "alone": {"kl": alone.kl, "output_mse": alone.output_mse},
        "saved": {"kl": every.kl - without.kl, "output_mse": every.output_mse - without.output_mse},
    }
