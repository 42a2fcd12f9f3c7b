"""Training data of the bundled models: a batch per step, and a held-out figure."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from quambench.data import recall
from quambench.data.corpus import Corpus
from quambench.data.tokenizer import Tokenizer
from quambench.data.windows import Windows, full_windows
from quambench.models import LanguageModel
from quambench.models.zoo.recipe import VOCAB_SIZE, Prose, Recall, Recipe

_EPOCH_STRIDE = 1_000_003  # keeps the streams of two seeds apart


class Source(ABC):
    """A source of batches. A batch depends on nothing but its step."""

    total_steps: int

    @abstractmethod
    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        """Return inputs and targets, (B, L) int64; a target of -1 is not learned."""

    @abstractmethod
    def seen(self, steps: int) -> dict[str, int]:
        """Return how much data `steps` steps have shown, for the log."""

    @abstractmethod
    def validate(self, model: LanguageModel) -> dict[str, float]:
        """Return held-out figures, for the log."""


def source_of(recipe: Recipe, corpus: Corpus, folder: Path) -> Source:
    """Return the recipe's source, and leave its tokenizer.json in `folder`."""
    if isinstance(recipe.data, Recall):
        return _RecallSource(recipe.data, recipe.seed, folder)
    return _ProseSource(recipe.data, recipe.seed, corpus, folder)


class _ProseSource(Source):
    """A stream of all training documents, each followed by the start token, cut anew in every epoch."""

    def __init__(self, data: Prose, seed: int, corpus: Corpus, folder: Path) -> None:
        self.data, self.seed = data, seed
        path = folder / "tokenizer.json"
        if not path.exists():
            Tokenizer.train((d.text for d in corpus.part("train")), VOCAB_SIZE).save(path)
        tokenizer = Tokenizer.load(path)
        self.start_id = tokenizer.start_id
        self.held_out = full_windows(corpus.part("validation"), tokenizer, data.window)
        ids: list[int] = []
        for document in corpus.part("train"):
            ids += [*tokenizer.encode(document.text), tokenizer.start_id]
        self.stream = torch.tensor(ids)
        self.per_epoch = len(ids) // (data.window * data.batch)
        self.total_steps = self.per_epoch * data.epochs

    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        """Return windows of the stream; the offset of the cut and the order of windows are drawn per epoch."""
        epoch, index = divmod(step, self.per_epoch)
        window, size = self.data.window, self.data.batch
        generator = torch.Generator().manual_seed(self.seed * _EPOCH_STRIDE + epoch)
        offset = int(torch.randint(window, (1,), generator=generator))
        n_windows = (len(self.stream) - offset) // window
        order = torch.randperm(n_windows, generator=generator)
        chosen = order[(torch.arange(size) + index * size) % n_windows]
        targets = self.stream[offset + chosen[:, None] * window + torch.arange(window)]
        return torch.cat([torch.full_like(targets[:, :1], self.start_id), targets[:, :-1]], dim=1), targets

    def seen(self, steps: int) -> dict[str, int]:
        return {"tokens": steps * self.data.batch * self.data.window}

    def validate(self, model: LanguageModel) -> dict[str, float]:
        return {"validation_bits_per_byte": round(bits_per_byte(model, self.held_out), 4)}


class _RecallSource(Source):
    def __init__(self, data: Recall, seed: int, folder: Path) -> None:
        self.data, self.seed, self.total_steps = data, seed, data.steps
        recall.tokenizer().save(folder / "tokenizer.json")

    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        task = self.data.tasks[step % len(self.data.tasks)]
        top = recall.LADDERS[task][-1]
        reach = max(2, min(top, round(top * step / (self.data.ramp * self.total_steps))))
        stream = self.seed * _EPOCH_STRIDE + step
        rung = int(torch.randint(1, reach + 1, (1,), generator=torch.Generator().manual_seed(stream)))
        made = recall.sequences(task, rung, self.data.batch, "train", stream)
        return made.inputs, made.targets

    def seen(self, steps: int) -> dict[str, int]:
        return {"sequences": steps * self.data.batch}

    def validate(self, model: LanguageModel) -> dict[str, float]:
        """Return the share of sequences with every answer right, on each ladder's middle rung."""
        middle = {task: ladder[len(ladder) // 2] for task, ladder in recall.LADDERS.items()}
        return {
            f"{task}_{rung}": round(recall_accuracy(model, recall.sequences(task, rung, 200, "validation")), 4)
            for task, rung in middle.items()
        }


def bits_per_byte(model: LanguageModel, windows: Windows, batch: int = 16) -> float:
    """Return the summed negative log2-likelihood of all targets over the bytes they spell."""
    device = model.lm_head.weight.device
    nats = 0.0
    with torch.inference_mode():
        for start in range(0, len(windows.inputs), batch):
            part = slice(start, start + batch)
            logits, _ = model(windows.inputs[part].to(device))
            targets = windows.targets[part].to(device)
            losses = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=-1, reduction="none")
            nats += losses.double().sum().item()
    return nats / math.log(2) / windows.n_bytes


@torch.inference_mode()
def recall_accuracy(model: LanguageModel, made: recall.RecallSequences, batch: int = 100) -> float:
    """Return the share of sequences in which every answer is the argmax, in prefill."""
    device = model.lm_head.weight.device
    right = 0
    for inputs, targets in zip(made.inputs.split(batch), made.targets.split(batch), strict=True):
        guess = model(inputs.to(device))[0].argmax(-1).cpu()
        right += int(((guess == targets) | (targets < 0)).all(1).sum())
    return right / len(made.inputs)


def scored_rungs(model: LanguageModel, bar: float = 0.99, count: int = 400) -> dict[str, int]:
    """Return, for each task, the hardest rung at which float answers `bar` of the sequences without a fault.

    raises ValueError when a task has none
    """
    found = {}
    for task, ladder in recall.LADDERS.items():
        reached = [r for r in ladder if recall_accuracy(model, recall.sequences(task, r, count, "validation")) >= bar]
        if not reached:
            raise ValueError(f"the model does not reach {bar:.0%} on any rung of {task}")
        found[task] = reached[-1]
    return found
