"""What the float model says: the untouched checkpoint's answers, and what lies inside its prepared twin."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from quambench.data.tasks import LastWordItems
from quambench.data.windows import (
    Windows,
)
from quambench.evaluation.data import EvalData
from quambench.evaluation.decoding import answers_right, states_along
from quambench.int8.model import QuantizedModel
from quambench.models.backbone import LanguageModel, LayerState

WINDOW_BATCH = 16
ITEM_BATCH = 16  # items are sorted by length: the fewer at once, the less padding


@dataclass(frozen=True, slots=True)
class FloatAnswers:
    """What the untouched checkpoint says on an EvalData; it depends on nothing that calibration does."""

    quality_log_probs: Tensor  # (W, L, V) float32
    decode_log_probs: Tensor  # (W, steps, V) float32
    correct: Tensor  # (I,) bool
    recall_right: Mapping[str, Tensor]  # task -> (S,) answers right


@dataclass(frozen=True, slots=True)
class FloatInside:
    """What lies inside the prepared model (int8/fuse.py), whose sites are the ones that are quantized."""

    sites: Mapping[str, Tensor]  # site -> float32, on the error windows
    decode_sites: Mapping[str, Tensor]  # site -> float32, at the last decoding step
    long_states: Tensor | None  # (n_layers, CHECKPOINTS, W, ...)


@torch.inference_mode()
def float_answers(model: LanguageModel, data: EvalData) -> FloatAnswers:
    """model: the untouched checkpoint, in float64, so that the reference is the same on every machine."""

    def log_probs(windows: Windows, skip: int = 0) -> Tensor:
        pieces = windows.inputs.split(WINDOW_BATCH)
        return torch.cat([_log_probs(model(rows)[0][:, skip:]).float() for rows in pieces])

    return FloatAnswers(
        quality_log_probs=log_probs(data.quality),
        decode_log_probs=log_probs(data.decode, skip=data.decode_prefix),
        correct=_items_correct(model, data),
        recall_right={t: answers_right(model, s, by_steps=False) for t, s in data.recall.items()},
    )


@torch.inference_mode()
def float_inside(prepared: LanguageModel, data: EvalData) -> FloatInside:
    """prepared: the checkpoint's float64 twin, fused and rotated."""
    sites: dict[str, Tensor] = {}
    prepared(data.error.inputs, tap=_recorder(sites))
    at_last_step: dict[str, Tensor] = {}
    prepared(data.decode.inputs, tap=_recorder(at_last_step, last_only=True))
    along = None if data.long is None else _stack(states_along(prepared, data.long, step=data.long.shape[1]))
    return FloatInside(sites, at_last_step, along)


def _items_correct(model: LanguageModel | QuantizedModel, data: EvalData) -> Tensor:
    return torch.zeros(0, dtype=torch.bool) if data.items is None else last_word_correct(model, data.items)


def _stack(along: Iterable[Sequence[LayerState]]) -> Tensor:
    """(n_layers, CHECKPOINTS, W, ...) of SSM states."""
    return torch.stack([torch.stack([layer.ssm.cpu() for layer in states]) for states in along], dim=1)


def _recorder(into: dict[str, Tensor], last_only: bool = False) -> Callable[[str, Tensor], Tensor]:
    """A tap that keeps every site; of a sequence's activations the last position alone, where asked."""

    def tap(site: str, x: Tensor) -> Tensor:
        into[site] = (x[:, -1:] if last_only and not site.endswith("ssm_state") else x).float()
        return x

    return tap


def _log_probs(logits: Tensor) -> Tensor:
    """float64: in float32 two machines' KL differ by more than those of a well-behaved model's cases."""
    return F.log_softmax(logits.double(), -1)


@torch.inference_mode()
def last_word_correct(model: LanguageModel | QuantizedModel, items: LastWordItems) -> Tensor:
    """(I,) bool: greedy decoding spells the whole last word.

    Greedy over the word's tokens is right exactly when each token is the argmax after the true
    ones before it, so one prefill per item tells.
    """
    correct = torch.ones(len(items.inputs), dtype=torch.bool)
    if not len(correct):
        return correct
    lengths = (items.targets >= 0).int().argmax(1) + (items.targets >= 0).sum(1)
    for rows in torch.arange(len(items.inputs)).split(ITEM_BATCH):
        longest = int(lengths[rows].max())
        targets = items.targets[rows, :longest]
        hidden, _ = model.hidden(items.inputs[rows, :longest])
        asked = targets >= 0
        hit = model.head(hidden[asked]).argmax(-1) == targets[asked]
        owner = asked.nonzero()[:, 0]
        correct[rows[owner[~hit]]] = False
    return correct
