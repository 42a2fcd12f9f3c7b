"""Training of the bundled models: resumable, seeded, logged.

Nothing here depends on where a run was stopped: batches and dropout masks follow from (seed, step), so a resumed run
sees what an unbroken one would have seen.
"""

from __future__ import annotations

import io
import json
import math
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from quambench.core.files import write
from quambench.data.corpus import Corpus
from quambench.models import LanguageModel, build
from quambench.models.backbone import Tap
from quambench.models.checkpoint import RECALL_FILE, load_checkpoint, save_checkpoint
from quambench.models.zoo.recipe import Recall, Recipe
from quambench.models.zoo.source import scored_rungs, source_of

Progress = Callable[[int, int, str], None]
"""(steps done, steps in all, one line of text) -> None"""

SAVE_SECONDS = 60.0
LOG_STEPS = 50


def train(
    recipe: Recipe, corpus: Corpus, folder: Path, device: str = "cpu", progress: Progress = lambda *_: None
) -> LanguageModel:
    """Train by `recipe` in `folder`, going on from what an earlier run left there.

    corpus  what prose recipes learn from; recall recipes make their own
    Writes tokenizer.json, state.pt (resumable), log.jsonl (one line per LOG_STEPS steps).
    returns the trained float32 model on the CPU
    """
    folder.mkdir(parents=True, exist_ok=True)
    source = source_of(recipe, corpus, folder)
    with torch.random.fork_rng():
        torch.manual_seed(recipe.seed)
        model = build(recipe.config)
        model.backbone.embedding.weight.data.mul_(recipe.embedding_std)
    model.to(device)
    optimizer = _optimizer(model, recipe)
    total = source.total_steps
    step, seconds = _resume(folder / "state.pt", model, optimizer, recipe)
    started = saved = time.monotonic()
    running = torch.zeros((), device=device)
    while step < total:
        inputs, targets = (t.to(device) for t in source.batch(step))
        for group in optimizer.param_groups:
            group["lr"] = _learning_rate(recipe, step, total)
        model.train()
        logits, _ = model(inputs, tap=_dropout(recipe, step, device))
        loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=-1)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.clip_norm)
        optimizer.step()
        step += 1
        running += loss.detach() / LOG_STEPS
        if step % LOG_STEPS == 0 or step == total:
            nats = float(running) if step % LOG_STEPS == 0 else float(loss.detach())
            line = {"step": step, **source.seen(step), "train_nats": round(nats, 4)}
            line["seconds"] = round(seconds + time.monotonic() - started, 1)
            if step % (10 * LOG_STEPS) == 0 or step == total:
                line |= source.validate(model.eval())
            with (folder / "log.jsonl").open("a") as log:
                log.write(json.dumps(line) + "\n")
            progress(step, total, f"loss {nats:.3f} nats")
            running.zero_()
        if time.monotonic() - saved > SAVE_SECONDS or step == total:
            saved = time.monotonic()
            _save(folder / "state.pt", model, optimizer, recipe, step, seconds + saved - started)
    return model.eval().cpu()


def publish(model: LanguageModel, recipe: Recipe, folder: Path) -> None:
    """Write config.json and half-precision weights in the state-spaces layout, beside the tokenizer.

    A recall model gets recall.json: the rung of each task at which it is scored.
    raises ValueError when a recall model has not learned a task
    """
    save_checkpoint(folder, model, torch.float16)
    if isinstance(recipe.data, Recall):
        rungs = scored_rungs(load_checkpoint(str(folder)).model)
        write(folder / RECALL_FILE, json.dumps(rungs, indent=1) + "\n")


def _dropout(recipe: Recipe, step: int, device: str) -> Tap:
    generator = torch.Generator(device).manual_seed(recipe.seed * 1_000_003 + step)
    keep = 1 - recipe.dropout

    def tap(site: str, x: Tensor) -> Tensor:
        if recipe.dropout and site.endswith(("in_proj:input", "out_proj:input")):
            mask = torch.rand(x.shape, generator=generator, device=x.device) < keep
            return x * mask / keep
        return x

    return tap


def _optimizer(model: LanguageModel, recipe: Recipe) -> torch.optim.AdamW:
    """Return AdamW with weight decay on matrices alone: none on gains, biases, A_log and D."""
    named = list(model.named_parameters())
    matrices = [p for n, p in named if p.ndim >= 2 and not n.endswith("A_log")]
    chosen = {id(p) for p in matrices}
    rest = [p for _, p in named if id(p) not in chosen]
    groups = [{"params": matrices, "weight_decay": recipe.weight_decay}, {"params": rest, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=recipe.learning_rate, betas=(0.9, 0.95))


def _learning_rate(recipe: Recipe, step: int, total: int) -> float:
    warm = min(1.0, (step + 1) / recipe.warmup_steps)
    return recipe.learning_rate * warm * 0.5 * (1 + math.cos(math.pi * step / total))


def _save(
    path: Path, model: LanguageModel, optimizer: torch.optim.Optimizer, recipe: Recipe, step: int, seconds: float
) -> None:
    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step}
    state |= {"seconds": seconds, "recipe": json.dumps(asdict(recipe))}
    content = io.BytesIO()  # torch says of a full disk that a position is unexpected
    torch.save(state, content)
    write(path, content.getvalue())


def _resume(path: Path, model: LanguageModel, optimizer: torch.optim.Optimizer, recipe: Recipe) -> tuple[int, float]:
    if not path.exists():
        return 0, 0.0
    state = torch.load(path, map_location=model.lm_head.weight.device, weights_only=True)
    if state["recipe"] != json.dumps(asdict(recipe)):
        raise ValueError(f"{path} was trained by another recipe; train in an empty folder")
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    return state["step"], state["seconds"]
