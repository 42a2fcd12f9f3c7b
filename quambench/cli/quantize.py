"""quambench quantize: model + text -> its INT8 model in a folder."""

from __future__ import annotations

import argparse
from pathlib import Path

from quambench.calibration.stored_model import StoredModel
from quambench.case import Case
from quambench.cli.options import (
    add_corpus,
    add_device,
    add_model,
    check_corpus,
    corpus_of,
    note,
    progress_bars,
)
from quambench.core.errors import BadParameter, check_writable
from quambench.core.plain_text import plain
from quambench.models.checkpoint import checked_device, load_checkpoint
from quambench.run.runner import ModelRun


def arguments(parser: argparse.ArgumentParser) -> None:
    add_model(parser)
    add_device(parser)
    add_corpus(parser)
    parser.add_argument(
        "--observer",
        default="percentile",
        metavar="SPEC",
        help='at the percentile sites, with more parts of a case behind it where wanted: "mse/channel/w4a8"'
        ' (default: "percentile")',
    )
    parser.add_argument(
        "--out", type=Path, metavar="DIR", required=True, help="where to write quantized.json and the weights"
    )


def run(options: argparse.Namespace) -> int:
    check_corpus(options.corpus, [options.model])
    case = Case.parse("", options.observer)  # before the model is loaded
    if case.tasks:
        raise BadParameter(f"--observer {options.observer}: tasks are asked by quambench eval --quantized DIR --task")
    checked_device(options.device)
    check_writable(options.out)
    checkpoint, corpus = load_checkpoint(options.model), corpus_of(options)
    case = Case.parse(checkpoint.name, options.observer)
    with progress_bars() as progress:
        work = ModelRun(checkpoint, corpus, [case], progress, device=options.device)
        made = StoredModel(work.quantized(case), work.calibration(case), case.id)
    note(work.calibration_shortfall)
    made.save(options.out)
    megabytes = made.model.n_bytes / 1e6
    print(f"written: {plain(str(options.out))}, {case.id}, {megabytes:,.1f} MB of weights with their scales")
    print(f"measure it: quambench eval {plain(options.model)} --quantized {plain(str(options.out))}")
    return 0
