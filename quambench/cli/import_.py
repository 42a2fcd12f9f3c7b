"""quambench import: scales from another program -> a saved Calibration."""

from __future__ import annotations

import argparse
from pathlib import Path

from quambench.cli.options import add_format
from quambench.core.errors import check_writable
from quambench.core.plain_text import plain
from quambench.interchange import quamba_file
from quambench.models.checkpoint import load_checkpoint


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", type=Path, metavar="FILE", help="from quambench export, or saved by torch.save")
    add_format(parser)
    parser.add_argument(
        "--model", required=True, help="whose scales they are: a bundled model, a folder, or a hub name"
    )
    parser.add_argument(
        "--out", type=Path, metavar="DIR", required=True, help="where to write scales.safetensors and calibration.json"
    )


def run(options: argparse.Namespace) -> int:
    check_writable(options.out)
    calibration = quamba_file.read(options.file, load_checkpoint(options.model))
    calibration.save(options.out)
    print(f"written: {plain(str(options.out))}, scales of {len(calibration.scales)} sites")
    return 0
