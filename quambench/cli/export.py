"""quambench export: a saved Calibration -> the file that another program's quantizer takes."""

from __future__ import annotations

import argparse
from pathlib import Path

from quambench.calibration.scales import Calibration
from quambench.cli.options import add_format, check_out
from quambench.core.errors import BadParameter
from quambench.core.plain_text import plain
from quambench.core.provenance import code_digest
from quambench.interchange import quamba_file


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("calibration", type=Path, metavar="DIR", help="saved scales (quambench calibrate --out)")
    add_format(parser)
    parser.add_argument("--out", type=Path, metavar="FILE", required=True, help="for torch.load(weights_only=True)")
    parser.add_argument("--force", action="store_true", help="replace FILE where it is there already")


def run(options: argparse.Namespace) -> int:
    check_out(options.out)
    if options.out.exists() and not options.force:
        raise BadParameter(f"{options.out} is there already: --force replaces it")
    calibration = Calibration.load(options.calibration)
    quamba_file.write(options.out, calibration, code_digest())
    reordered = f" and reorder_params of {n} layers" if (n := len(calibration.groups)) else ""
    print(f"written: {plain(str(options.out))}, act_scales of {len(calibration.scales)} sites{reordered}")
    return 0
