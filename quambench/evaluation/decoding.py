"""Token by token, with the state carried: the only place where the INT8 state is read.

The float model decodes as it prefills, up to rounding; the INT8 model does not, by design. So what
is measured here is what prefill cannot see.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from quambench.data.recall import RecallSequences
from quambench.int8.model import QuantizedModel
from quambench.models.backbone import LanguageModel, LayerState, Tap, no_tap

Model = LanguageModel | QuantizedModel
CHECKPOINTS = 8  # moments at which a long sequence's state is looked at


def decode(model: Model, tokens: Tensor, prefix: int, last_tap: Tap = no_tap) -> Tensor:
    """Prefill `prefix` tokens, then go on one by one.

    tokens    (W, L) int64
    last_tap  sees the last step's sites
    returns   logits (W, L - prefix, V) of the steps
    """
    _, state = model(tokens[:, :prefix])
    logits = []
    for t in range(prefix, tokens.shape[1]):
        final = t == tokens.shape[1] - 1
        out, state = model(tokens[:, t : t + 1], state, last_tap if final else no_tap)
        logits.append(out)
    return torch.cat(logits, dim=1)


def answers_right(model: Model, asked: RecallSequences, by_steps: bool) -> Tensor:
    """(S,) int32: answers of each sequence that are the argmax; decoded from the first token, or in prefill."""
    logits = decode(model, asked.inputs, 1) if by_steps else model(asked.inputs)[0][:, 1:]
    hit = (logits.argmax(-1) == asked.tokens[:, 1:]) & asked.answers[:, 1:]
    return hit.sum(1).int()


def states_along(model: Model, tokens: Tensor, step: int) -> Iterator[Sequence[LayerState]]:
    """The layers' states at CHECKPOINTS equal distances along (W, L) tokens.

    step  tokens per call: 1 decodes, more prefills in pieces (float only: the same states)
    """
    length = tokens.shape[1] // CHECKPOINTS
    state = None
    for start in range(0, length * CHECKPOINTS, length):
        for piece in tokens[:, start : start + length].split(step, dim=1):
            _, state = model(piece, state)
        assert state is not None, "a checkpoint covers at least one token"
        yield state
