"""quambench calibrate: model + text -> a saved Calibration."""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path

from tabulate import tabulate
from torch import Tensor

from quambench.calibration.scales import Calibration
from quambench.case import Case, Protocol
from quambench.cli.options import (
    add_corpus,
    add_device,
    add_model,
    check_corpus,
    check_counts,
    corpus_of,
    note,
    progress_bars,
    show,
)
from quambench.core.errors import BadParameter, check_writable
from quambench.core.plain_text import plain
from quambench.int8.weights import LARGEST
from quambench.models.checkpoint import checked_device, load_checkpoint
from quambench.policy import PolicySpec
from quambench.policy.base import check_grouping
from quambench.run.runner import ModelRun


def arguments(parser: argparse.ArgumentParser) -> None:
    default = Protocol()
    add_model(parser)
    add_device(parser)
    add_corpus(parser)
    parser.add_argument(
        "--observer",
        default="percentile",
        metavar="SPEC",
        help='at the percentile sites (default: "percentile"), or calibration=module:function from outside',
    )
    parser.add_argument("--policy", default="quamba", help="which site gets which observer (default: quamba)")
    parser.add_argument("--grouping", default="1x1", help="how fine scales are where a site allows it (default: 1x1)")
    parser.add_argument(
        "--windows", type=int, help=f"calibration windows (default: {default.calib_windows}, or what the texts have)"
    )
    parser.add_argument(
        "--length", type=int, default=default.calib_length, help="tokens per window (default: %(default)s)"
    )
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="where to write scales.safetensors and calibration.json"
    )
    parser.add_argument("--json", action="store_true", help="print the scales as JSON")


def run(options: argparse.Namespace) -> int:
    check_counts(options, "--windows", "--length")
    check_corpus(options.corpus, [options.model])
    case = Case.parse("", options.observer)  # before the model is loaded
    if replace(case, observer=LARGEST, calibration="") != Case(model="", observer=LARGEST):
        raise BadParameter(
            f"calibrate makes scales of 8 bits: --observer is an observer alone (got {options.observer!r});"
            " --policy and --grouping say the rest, and quambench eval takes whole cases"
        )
    policy = PolicySpec.parse(options.policy)
    check_grouping(options.grouping)
    checked_device(options.device)
    if options.out:
        check_writable(options.out)
    checkpoint, corpus = load_checkpoint(options.model), corpus_of(options)
    windows = options.windows or Protocol().calib_windows
    protocol = replace(Protocol(), calib_windows=windows, calib_length=options.length)
    case = replace(case, model=checkpoint.name, policy=policy, grouping=options.grouping, protocol=protocol)
    with progress_bars() as progress:
        asked = options.windows is not None
        work = ModelRun(checkpoint, corpus, [case], progress, device=options.device, all_calibration=asked)
        calibration = work.calibration(case)
    note(work.calibration_shortfall)
    show(_told(calibration, options.json) + "\n", lambda: calibration.save(options.out) if options.out else None)
    if options.out and not options.json:
        print(f"\nwritten: {plain(str(options.out))}")
    return 0


def _told(calibration: Calibration, as_json: bool) -> str:
    if as_json:
        return json.dumps({site: scale.tolist() for site, scale in calibration.scales.items()}, indent=1)
    rows = [[site, calibration.observers[site], *_size(scale)] for site, scale in calibration.scales.items()]
    headers = ["site", "observer", "scales", "smallest", "largest"]
    table: str = tabulate(rows, headers=headers, disable_numparse=True)
    return table


def _size(scale: Tensor) -> list[str]:
    """How many scales, the smallest and the largest; none where a policy leaves the site float."""
    if not scale.numel():
        return ["0", "float", "float"]
    return [str(scale.numel()), f"{scale.min().item():.6g}", f"{scale.max().item():.6g}"]
