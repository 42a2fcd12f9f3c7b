"""quambench eval --task: the harness' tasks, the quantized model beside the float one, document by document."""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import torch
from tabulate import tabulate
from torch import Tensor

from quambench.core.errors import BadParameter
from quambench.harness import check_installed
from quambench.harness.asking import FLOAT
from quambench.harness.subject import Subject, case_subject, float_subject, saved_subject, stored_subject
from quambench.metrics import Measurement, Terms
from quambench.metrics.tasks import SCORE
from quambench.run.runner import ModelRun, Progress

if TYPE_CHECKING:
    from quambench.harness.running import TaskResult  # which imports the harness, seconds long


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--task",
        action="append",
        metavar="NAME",
        help="run this task of lm-evaluation-harness instead (quambench list tasks); repeatable, or with commas",
    )
    parser.add_argument("--limit", type=int, metavar="N", help="the first N documents of each task alone")


def run(options: argparse.Namespace, work: ModelRun, progress: Progress) -> int:
    """raises MissingExtra, UnknownName, BadParameter"""
    names = [name for given in options.task for name in given.split(",") if name]
    if not names:
        raise BadParameter("--task must name a task, e.g. --task prose_lambada")
    check_installed()
    from quambench.harness.running import load_tasks, run_tasks, task_evidence

    tasks = load_tasks(names, corpus=options.corpus)
    starts = work.checkpoint.bundled
    progress("tasks of the float model", 0, 1)
    of_float = run_tasks(float_subject(work.checkpoint, starts, FLOAT, work.device), tasks, options.limit)
    compared = {}
    for i, subject in enumerate(_subjects(options, work, starts)):
        progress("tasks of the quantized models", i, len(work.cases))
        found = run_tasks(subject, tasks, options.limit)
        evidence = task_evidence(found, of_float)
        compared[subject.name] = {r.task: (_named(r), r.higher_is_better, _compared(r.task, evidence)) for r in found}
    print(_json(compared) if options.json else _table(compared))
    return 0


def _named(result: TaskResult) -> str:
    """The metric; of a loss, which the harness calls a perplexity, also what it is here."""
    return result.metric if result.unit == SCORE else f"{result.metric} ({result.unit})"


def _subjects(options: argparse.Namespace, work: ModelRun, starts: bool) -> Iterator[Subject]:
    """One at a time: each is a model in memory."""
    if options.calibration:
        yield saved_subject(work.checkpoint, options.calibration, starts, work.device)
        return
    if options.quantized:
        yield stored_subject(work.checkpoint, options.quantized, starts, work.device)
        return
    for case in work.cases:
        yield case_subject(work, case, starts)


Compared = Mapping[str, Measurement]
Found = Mapping[str, Mapping[str, tuple[str, bool, Compared]]]  # subject -> task -> metric, higher is better, numbers


def _compared(task: str, evidence: Mapping[str, Tensor]) -> Compared:
    """float, quantized, and the quantized less the float, document by document; errors are clustered by text."""
    prefix = f"task.{task}."
    of = {name.removeprefix(prefix): value for name, value in evidence.items() if name.startswith(prefix)}

    def measured(values: Tensor, weights: Tensor) -> Measurement:
        terms = Terms(values, weights, of["document"])
        return Measurement(terms.mean(), terms.standard_error())

    weight = of["weight"]
    gain = of["log_likelihood"] - of["log_likelihood_float"]
    return {
        "documents": Measurement(float(len(of["value"])), math.nan),
        "float": measured(of["value_float"], weight),
        "quantized": measured(of["value"], weight),
        "difference": measured(of["value"] - of["value_float"], weight),
        "log_likelihood_difference": measured(gain, torch.ones_like(gain)),  # a document each, whatever its length
    }


def _table(found: Found) -> str:
    rows = [
        [
            *(task, subject.split("/", 1)[-1], metric, "higher" if higher_is_better else "lower"),
            *(f"{numbers['documents'].value:.0f}", _cell(numbers["float"]), _cell(numbers["quantized"])),
            *(_cell(numbers["difference"], "+"), _cell(numbers["log_likelihood_difference"], "+")),
        ]
        for subject, tasks in found.items()
        for task, (metric, higher_is_better, numbers) in tasks.items()
    ]
    rows.sort(key=lambda row: row[0])  # stable: cases of one task stay in the order asked
    headings = ["task", "case", "metric", "better", "documents", "float", "quantized", "difference", "answer's nats"]
    table: str = tabulate(rows, headers=headings, disable_numparse=True)
    return table


def _json(found: Found) -> str:
    document = {
        subject: {
            task: {
                "metric": metric,
                "better": "higher" if higher_is_better else "lower",
                "documents": int(numbers["documents"].value),
                **{n: _pair(m) for n, m in numbers.items() if n != "documents"},
            }
            for task, (metric, higher_is_better, numbers) in tasks.items()
        }
        for subject, tasks in found.items()
    }
    return json.dumps(document, indent=1)


def _pair(measured: Measurement) -> dict[str, float | None]:
    value, error = (x if math.isfinite(x) else None for x in (measured.value, measured.standard_error))
    return {"value": value, "se": error}


def _cell(measured: Measurement, sign: str = "") -> str:
    if math.isnan(measured.value):
        return "-"
    error = measured.standard_error
    return f"{measured.value:{sign}.4g}" + (f" ± {error:.2g}" if error > 0 else "")
