"""Log-likelihoods of given tokens, and greedy generation: batches of sequences of any length.

Sequences of a batch are padded at the right. The models are causal, so no token sees padding; a
batch changes only the shapes of the products, which is float rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from quambench.core.errors import NonFinite
from quambench.evaluation.decoding import Model
from quambench.models.backbone import LayerState

Ids = Sequence[int]
AT_ONCE = 256  # positions whose logits are in memory: of 50,280 words each 50 MB in float32, and twice that in float64


@dataclass(frozen=True, slots=True)
class Asked:
    """A question: a context of at least one token, and the continuation to score."""

    context: Ids
    continuation: Ids


@dataclass(frozen=True, slots=True)
class Answer:
    """The score of a continuation."""

    log_likelihood: float  # nats, of the whole continuation
    greedy: bool  # whether each of its tokens is the likeliest after those before it


@torch.inference_mode()
def log_likelihoods(model: Model, asked: Sequence[Asked], batch_size: int) -> list[Answer]:
    """Score continuations by prefill, `batch_size` sequences at a time, longest first.

    raises NonFinite
    """
    order = sorted(range(len(asked)), key=lambda i: -len(asked[i].context) - len(asked[i].continuation))
    found: dict[int, Answer] = {}
    for rows in _batches(order, batch_size):
        found |= zip(rows, _score(model, [asked[i] for i in rows]), strict=True)
    return [found[i] for i in range(len(asked))]


def _score(model: Model, asked: Sequence[Asked]) -> list[Answer]:
    inputs = [[*a.context, *a.continuation][:-1] for a in asked]
    tokens = torch.zeros(len(asked), max(map(len, inputs)), dtype=torch.int64)  # 0 pads: any token would do
    targets = torch.full_like(tokens, -1)
    for row, (a, ids) in enumerate(zip(asked, inputs, strict=True)):
        tokens[row, : len(ids)] = torch.tensor(ids)
        targets[row, len(a.context) - 1 : len(ids)] = torch.tensor(a.continuation, dtype=torch.int64)
    hidden, _ = model.hidden(tokens)
    scored = (targets >= 0).nonzero()
    sums = torch.zeros(len(asked), dtype=torch.float64)
    greedy = torch.ones(len(asked), dtype=torch.bool)
    for owner, place in (piece.unbind(1) for piece in scored.split(AT_ONCE)):
        wanted = targets[owner, place]
        logits = _finite(model.head(hidden[owner, place]))
        sums.index_add_(0, owner, torch.log_softmax(logits.double(), -1).gather(-1, wanted[:, None])[:, 0])
        greedy[owner[logits.argmax(-1) != wanted]] = False
    return [Answer(s, g) for s, g in zip(sums.tolist(), greedy.tolist(), strict=True)]


@torch.inference_mode()
def generate(
    model: Model,
    contexts: Sequence[Ids],
    max_tokens: int,
    done: Callable[[list[int]], bool],
    batch_size: int,
    by_steps: bool = False,
) -> list[list[int]]:
    """Write the likeliest token, again and again, with the state carried from one to the next.

    contexts  at least one token each; those of one length share a batch: padding would enter the state
    done      whether a sequence may stop, told what it has written
    by_steps  the context, too, is decoded token by token, so that its INT8 state is read; else prefilled
    returns   the tokens written, without the context, with the token that ended each

    raises NonFinite
    """
    by_length: dict[int, list[int]] = {}
    for i, context in enumerate(contexts):
        by_length.setdefault(len(context), []).append(i)
    written: list[list[int]] = [[] for _ in contexts]
    for length in sorted(by_length):
        for rows in _batches(by_length[length], batch_size):
            tokens = torch.tensor([list(contexts[i]) for i in rows])
            _write(model, tokens, [written[i] for i in rows], max_tokens, done, by_steps)
    return written


def _write(
    model: Model,
    tokens: Tensor,
    written: Sequence[list[int]],
    max_tokens: int,
    done: Callable[[list[int]], bool],
    by_steps: bool,
) -> None:
    """Extend each of `written`; a row that is done leaves the batch."""
    logits, state = _read(model, tokens, by_steps)
    open_rows = list(range(len(written)))
    for step in range(max_tokens):
        chosen = _finite(logits[:, -1]).argmax(-1)
        for row, token in zip(open_rows, chosen.tolist(), strict=True):
            written[row].append(token)
        keep = [k for k, row in enumerate(open_rows) if not done(written[row])]
        if not keep or step == max_tokens - 1:
            return
        open_rows = [open_rows[k] for k in keep]
        state = [LayerState(layer.conv[keep], layer.ssm[keep]) for layer in state]
        logits, state = model(chosen[keep, None], state)


def _read(model: Model, tokens: Tensor, by_steps: bool) -> tuple[Tensor, list[LayerState]]:
    """Return (B, 1, vocab_size) logits behind the last token, and the state. raises NonFinite"""
    if not by_steps:
        hidden, state = model.hidden(tokens)
        return model.head(hidden[:, -1:]), state
    logits, state = model(tokens[:, :1])
    for t in range(1, tokens.shape[1]):
        logits, state = model(tokens[:, t : t + 1], state)
    return logits, state


def _batches(items: Sequence[int], size: int) -> Iterator[Sequence[int]]:
    return (items[start : start + size] for start in range(0, len(items), size))


def _finite(logits: Tensor) -> Tensor:
    if not torch.isfinite(logits).all():
        raise NonFinite("the model's logits are not finite")
    return logits
