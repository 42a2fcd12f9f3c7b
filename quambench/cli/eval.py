"""quambench eval: what quantization costs, against the float model, without any baseline."""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from tabulate import tabulate

from quambench.calibration.scales import Calibration
from quambench.calibration.stored_model import StoredModel
from quambench.case import Case
from quambench.cli import eval_tasks
from quambench.cli.options import (
    add_corpus,
    add_device,
    add_model,
    add_observers,
    check_corpus,
    check_counts,
    corpus_of,
    given,
    note,
    progress_bars,
)
from quambench.core.errors import BadParameter
from quambench.core.plain_text import plain
from quambench.metrics import METRICS, Measurement
from quambench.models.checkpoint import checked_device, load_checkpoint
from quambench.run.runner import ModelRun


def arguments(parser: argparse.ArgumentParser) -> None:
    add_model(parser)
    add_device(parser)
    add_observers(parser)
    add_corpus(parser)
    parser.add_argument(
        "--calibration",
        type=Path,
        metavar="DIR",
        help="use saved scales (quambench calibrate --out) instead of observers",
    )
    parser.add_argument(
        "--quantized",
        type=Path,
        metavar="DIR",
        help="measure a saved INT8 model (quambench quantize --out) of this float model",
    )
    eval_tasks.arguments(parser)
    parser.add_argument("--json", action="store_true", help="for machines")


def run(options: argparse.Namespace) -> int:
    checked_device(options.device)
    specs = options.observer or ["percentile"]
    _check(options, [Case.parse("", spec) for spec in specs])
    checkpoint, corpus = load_checkpoint(options.model), corpus_of(options)
    cases = [Case.parse(checkpoint.name, spec) for spec in specs]
    with progress_bars() as progress:
        work = ModelRun(checkpoint, corpus, cases, progress, device=options.device)
        if options.task:
            return eval_tasks.run(options, work, progress)
        if options.calibration:
            found = {str(options.calibration): work.with_saved(Calibration.load(options.calibration))}
        elif options.quantized:
            found = {str(options.quantized): work.with_stored(StoredModel.load(options.quantized))}
        else:
            found = {case.id: dict(work.result(case).metrics) for case in cases}
    note(work.shortfall)
    if options.json:
        document = {
            name: {n: {"value": _number(m.value), "se": _number(m.standard_error)} for n, m in metrics.items()}
            for name, metrics in found.items()
        }
        print(json.dumps(document, indent=1))
        return 0
    print(_table(found))
    for case, refined in work.refined.items():
        print(plain(f"{case.id}: {refined.summary}"))
    return 0


def _table(found: Mapping[str, Mapping[str, Measurement]]) -> str:
    rows = [
        [metric.name, metric.unit, metric.better, *(_cell(metrics[metric.name]) for metrics in found.values())]
        for metric in METRICS.values()
        if metric.in_eval and not all(math.isnan(metrics[metric.name].value) for metrics in found.values())
    ]
    headings = ["metric", "unit", "better", *(plain(name.split("/", 1)[-1]) for name in found)]
    table: str = tabulate(rows, headers=headings, disable_numparse=True)
    return table


def _check(options: argparse.Namespace, cases: Sequence[Case]) -> None:
    """Whether the options go together, before anything is loaded. raises BadParameter"""
    if options.limit is not None and not options.task:
        raise BadParameter("--limit is of --task alone; a case measures on less as percentile/quick")
    check_counts(options, "--limit")
    asked = [name for name in ("--calibration", "--quantized", "--observer") if given(options, name)]
    if len(asked) > 1:
        raise BadParameter(f"{asked[0]} and {asked[1]} both say where scales come from: give one of them")
    if not options.task:
        check_corpus(options.corpus, [options.model])
    for case, spec in zip(cases, options.observer or [], strict=False):
        if case.tasks:
            raise BadParameter(f"case {spec}: eval asks tasks by --task alone: write --task {','.join(case.tasks)}")


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _cell(measured: Measurement) -> str:
    if math.isnan(measured.value):
        return "-"
    error = measured.standard_error
    return f"{measured.value:.5g}" + (f" ± {error:.2g}" if error > 0 else "")
