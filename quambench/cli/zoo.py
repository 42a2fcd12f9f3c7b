"""quambench zoo: train the bundled models, and check what they reach."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from tabulate import tabulate

from quambench.cli.options import progress_bars
from quambench.core.errors import BadParameter, check_writable
from quambench.core.memory import keep_freed_memory
from quambench.core.plain_text import plain
from quambench.data.corpus import load_corpus
from quambench.data.recall import sequences
from quambench.data.tasks import last_word_items
from quambench.data.windows import full_windows
from quambench.evaluation.reference import last_word_correct
from quambench.models.checkpoint import Checkpoint, load_checkpoint
from quambench.models.zoo.recipe import RECIPES
from quambench.models.zoo.source import bits_per_byte, recall_accuracy
from quambench.models.zoo.train import publish, train


def arguments(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    trains = actions.add_parser("train", help="train by the recipe; goes on where an earlier run stopped")
    trains.add_argument("name", help=f"one of {', '.join(sorted(RECIPES))}")
    trains.add_argument("--out", type=Path, metavar="DIR", help="work folder (default: zoo-NAME)")
    trains.add_argument("--device", default="cpu", choices=("cpu", "cuda"), help="default: cpu")
    check = actions.add_parser("check", help="what the bundled models reach on held-out data")
    check.add_argument("name", nargs="*", help="bundled names or folders (default: all bundled)")
    check.add_argument("--json", action="store_true", help="for machines")


def run(options: argparse.Namespace) -> int:
    keep_freed_memory()
    return _train(options) if options.action == "train" else _check(options)


def _train(options: argparse.Namespace) -> int:
    recipe = RECIPES[options.name]
    folder = options.out or Path(f"zoo-{options.name}")
    check_writable(folder)
    with progress_bars() as progress:

        def report(done: int, total: int, line: str) -> None:
            progress(f"{options.name}", done, total)

        try:
            model = train(recipe, load_corpus(), folder, options.device, report)
        except ValueError as error:
            raise BadParameter(str(error)) from None
    publish(model, recipe, folder)
    name = plain(str(folder))
    print(f"written: {name}; check it with: quambench zoo check {name}")
    return 0


def _check(options: argparse.Namespace) -> int:
    checkpoints = [load_checkpoint(name) for name in options.name or sorted(RECIPES)]
    prose = [_prose_row(c) for c in checkpoints if not c.recall]
    recalling = [row for c in checkpoints if c.recall for row in _recall_rows(c)]
    if options.json:
        print(json.dumps(prose + recalling, indent=1))
    else:
        tables = [tabulate(rows, headers="keys", floatfmt=".4f") for rows in (prose, recalling) if rows]
        print("\n\n".join(tables))
    return 0


def _prose_row(checkpoint: Checkpoint) -> dict[str, object]:
    test = load_corpus().part("test")
    windows = full_windows(test, checkpoint.tokenizer, length=512)
    items = last_word_items(test, checkpoint.tokenizer)
    correct = last_word_correct(checkpoint.model, items).double()
    return {
        "model": checkpoint.name,
        "bits_per_byte": round(bits_per_byte(checkpoint.model, windows), 4),
        "accuracy": round(correct.mean().item(), 4),
        "items": len(correct),
        "guessing": round(items.chance.mean().item(), 4),
        "documents": len(windows.names),
        "bytes": windows.n_bytes,
        "tokens": int((windows.targets >= 0).sum()),
        "data": windows.digest[:16],
        "weights": checkpoint.digest[:16],
    }


def _recall_rows(checkpoint: Checkpoint) -> list[dict[str, object]]:
    """One row a task, at the rung where the model is scored, on the test part."""
    rows = []
    for task, rung in checkpoint.recall.items():
        made = sequences(task, rung, 400, "test")
        rows.append(
            {
                "model": checkpoint.name,
                "task": task,
                "rung": rung,
                "all_answers_right": recall_accuracy(checkpoint.model, made),
                "sequences": len(made.inputs),
                "data": made.digest[:16],
                "weights": checkpoint.digest[:16],
            }
        )
    return rows
