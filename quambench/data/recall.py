"""Recall tasks, generated from a seed. They ask for what the SSM state holds, and for nothing else.

Prose says little about the state: little of its loss depends on words more than a few positions
back. Here every answer stands once in the context and must be carried to where it is asked for.

associative     k1 v1 k2 v2 ... ask k3 v3 k1 v1 ...: each key again, its value the answer. Multi-query
                associative recall after Arora et al. 2023 (arXiv:2312.04927).
induction       noise ... trigger v ... noise trigger v: what followed the trigger before. Induction
                heads after Olsson et al. 2022 (arXiv:2209.11895) and the Mamba paper's section 4.1.2.
selective_copy  values among blanks, then ask: the values in order. After the Mamba paper's 4.1.1.

Each task is a ladder: a rung is the number of pairs, of steps to look back, of values to copy.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from quambench.core.errors import BadParameter
from quambench.data.tokenizer import Tokenizer

START, BLANK, ASK, TRIGGER = range(4)
N_SYMBOLS = 62  # keys, and as many values
FIRST_KEY = 4
FIRST_VALUE = FIRST_KEY + N_SYMBOLS
VOCAB_SIZE = FIRST_VALUE + N_SYMBOLS  # 128

MAX_ASKED = 16  # keys asked for in one associative sequence
BLANKS_PER_VALUE = 3  # in selective_copy


@dataclass(frozen=True, slots=True)
class RecallSequences:
    """Sequences of one task and rung, or several padded to one length.

    inputs   (S, L) int64  start token, then the sequence but its last token
    tokens   (S, L) int64  the sequence: what follows each input
    answers  (S, L) bool   where the next token is an answer
    """

    inputs: Tensor
    tokens: Tensor
    answers: Tensor

    @property
    def targets(self) -> Tensor:
        """The answers, (S, L) int64; -1 elsewhere."""
        return self.tokens.masked_fill(~self.answers, -1)

    @property
    def digest(self) -> str:
        """A hash of inputs and targets: it identifies the judged sequences."""
        h = hashlib.sha256()
        for tensor in (self.inputs, self.targets):
            h.update(str(tuple(tensor.shape)).encode() + tensor.numpy().tobytes())
        return h.hexdigest()


def sequences(task: str, rung: int, count: int, part: str, seed: int = 0) -> RecallSequences:
    """Make `count` sequences of a task at a rung; equal arguments give equal sequences.

    part  "train", "validation", "calibration" or "test": each draws from a stream of its own
    raises BadParameter for a rung out of the task's range
    """
    top = LADDERS[task][-1]
    if not 1 <= rung <= top:
        raise BadParameter(f"{task}: a rung must be from 1 to {top} (got {rung})")
    name = hashlib.sha256(f"{task} {rung} {part} {seed}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(name[:7], "big"))
    tokens, answers = TASKS[task](rung, count, generator)
    start = torch.full((count, 1), START)
    return RecallSequences(torch.cat([start, tokens[:, :-1]], dim=1), tokens, answers)


def _draw(count: int, n: int, generator: torch.Generator) -> Tensor:
    """Return (count, n) distinct symbols per row, each row in random order."""
    return torch.rand(count, N_SYMBOLS, generator=generator).argsort(dim=1)[:, :n]


def _associative(pairs: int, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    keys = FIRST_KEY + _draw(count, pairs, generator)
    values = FIRST_VALUE + torch.randint(N_SYMBOLS, (count, pairs), generator=generator)
    order = torch.rand(count, pairs, generator=generator).argsort(dim=1)[:, :MAX_ASKED]
    told = torch.stack([keys, values], dim=-1).flatten(1)
    asked = torch.stack([keys.gather(1, order), values.gather(1, order)], dim=-1).flatten(1)
    tokens = torch.cat([told, torch.full((count, 1), ASK), asked], dim=1)
    answers = torch.zeros_like(tokens, dtype=torch.bool)
    answers[:, told.shape[1] + 2 :: 2] = True
    return tokens, answers


def _induction(distance: int, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    before = max(1, distance // 8)  # noise ahead of the first trigger
    tokens = FIRST_VALUE + torch.randint(N_SYMBOLS, (count, before + distance + 3), generator=generator)
    tokens[:, before] = tokens[:, -2] = TRIGGER
    tokens[:, -1] = tokens[:, before + 1]
    answers = torch.zeros_like(tokens, dtype=torch.bool)
    answers[:, -1] = True
    return tokens, answers


def _selective_copy(n_values: int, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    length = (1 + BLANKS_PER_VALUE) * n_values
    values = FIRST_VALUE + torch.randint(N_SYMBOLS, (count, n_values), generator=generator)
    places = torch.rand(count, length, generator=generator).argsort(dim=1)[:, :n_values].sort(dim=1).values
    told = torch.full((count, length), BLANK).scatter_(1, places, values)
    tokens = torch.cat([told, torch.full((count, 1), ASK), values], dim=1)
    answers = torch.zeros_like(tokens, dtype=torch.bool)
    answers[:, length + 1 :] = True
    return tokens, answers


Make = Callable[[int, int, torch.Generator], tuple[Tensor, Tensor]]

TASKS: dict[str, Make] = {
    "associative": _associative,
    "induction": _induction,
    "selective_copy": _selective_copy,
}

LADDERS: dict[str, tuple[int, ...]] = {
    "associative": (4, 8, 16, 24, 32, 48),  # pairs
    "induction": (16, 32, 64, 128, 192),  # steps to look back
    "selective_copy": (2, 4, 6, 8, 12, 16),  # values
}
"""Task -> its rungs, easiest first."""


TRAINED_LENGTH = max(TASKS[t](LADDERS[t][-1], 1, torch.Generator().manual_seed(0))[0].shape[1] for t in TASKS)
"""Tokens of the longest sequence that training draws."""


def long_sequences(count: int, times: int = 8) -> Tensor:
    """Return (count, at most times * TRAINED_LENGTH) int64: associative sequences one after another, start token
    first.
    """
    one = sequences("associative", LADDERS["associative"][-1], count * times * 2, "test", seed=1).tokens
    row = one.view(count, -1)[:, : times * TRAINED_LENGTH - 1]
    return torch.cat([torch.full((count, 1), START), row], dim=1)


def mixed_sequences(rungs: Mapping[str, int], count: int, length: int, part: str) -> Tensor:
    """Return (count, length) int64: the tasks in turn at their rungs, several to a sequence where they are short.

    raises BadParameter for a count or length below 1
    """
    if count < 1 or length < 1:
        raise BadParameter(f"windows and their length must be at least 1 (got {count} of {length} tokens)")
    tasks = [(task, rungs[task]) for task in TASKS]
    rows = []
    for index in range(count):
        row, turn = torch.full((1,), START), index
        while len(row) < length:
            task, rung = tasks[turn % len(tasks)]
            row = torch.cat([row, sequences(task, rung, 1, part, seed=index * count + turn).tokens[0]])
            turn += 1
        rows.append(row[:length])
    return torch.stack(rows)


def tokenizer() -> Tokenizer:
    """Return a tokenizer of the tasks' own language, so that a recall model is a checkpoint like any other."""
    keys, values = ([f"{letter}{i}" for i in range(N_SYMBOLS)] for letter in "kv")
    return Tokenizer.of_words(["<blank>", "<ask>", "<trigger>", *keys, *values])
