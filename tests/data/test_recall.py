"""Recall tasks: answerable from the context alone, the same for the same arguments, apart by part."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from quambench.data.recall import (
    ASK,
    BLANK,
    FIRST_KEY,
    FIRST_VALUE,
    LADDERS,
    START,
    TASKS,
    TRIGGER,
    VOCAB_SIZE,
    mixed_sequences,
    sequences,
    tokenizer,
)
from quambench.errors import BadParameter

rungs = st.sampled_from(sorted(LADDERS)).flatmap(lambda t: st.tuples(st.just(t), st.integers(1, LADDERS[t][-1])))


def solve(task: str, seen: list[int]) -> int:
    """The answer that follows `seen` (start token included), by reading the rules and nothing else."""
    if task == "associative":
        told = seen[: seen.index(ASK)]
        return told[told.index(seen[-1]) + 1]
    if task == "induction":
        return seen[seen.index(TRIGGER) + 1]
    at = seen.index(ASK)
    values = [token for token in seen[1:at] if token != BLANK]
    return values[len(seen) - at - 1]


@given(rungs, st.integers(0, 1000))
def test_every_answer_follows_from_what_stands_before_it(task_rung, seed):
    task, rung = task_rung
    made = sequences(task, rung, 3, "test", seed)
    for inputs, targets in zip(made.inputs.tolist(), made.targets.tolist(), strict=True):
        asked = [i for i, target in enumerate(targets) if target >= 0]
        assert asked
        for i in asked:
            assert solve(task, inputs[: i + 1]) == targets[i]


@given(rungs)
def test_equal_arguments_give_equal_sequences_and_parts_differ(task_rung):
    task, rung = task_rung
    made = sequences(task, rung, 40, "test")
    assert torch.equal(made.inputs, sequences(task, rung, 40, "test").inputs)
    for other in (sequences(task, rung, 40, "train"), sequences(task, rung, 40, "test", seed=1)):
        assert other.digest != made.digest
    assert made.inputs.min() == START
    assert made.tokens.max() < VOCAB_SIZE
    assert torch.equal(made.inputs[:, 1:], made.tokens[:, :-1])


def test_by_eye():
    """Two pairs, then both keys again; where a value is asked for, the target is that value."""
    made = sequences("associative", 2, 1, "test")
    (tokens,) = made.tokens.tolist()
    k1, v1, k2, v2, ask, *rest = tokens
    assert ask == ASK
    assert all(FIRST_KEY <= k < FIRST_VALUE <= v for k, v in ((k1, v1), (k2, v2)))
    assert rest in ([k1, v1, k2, v2], [k2, v2, k1, v1])
    assert made.targets.tolist() == [[-1] * 6 + [rest[1], -1, rest[3]]]


@pytest.mark.parametrize("task", TASKS)
def test_a_rung_off_the_ladder_is_refused(task):
    for rung in (0, LADDERS[task][-1] + 1):
        with pytest.raises(BadParameter, match=f"{task}: a rung must be from 1 to"):
            sequences(task, rung, 1, "test")


@pytest.mark.parametrize(("count", "length"), [(0, 8), (-1, 8), (2, 0)])
def test_no_sequences_or_no_tokens_are_refused(count, length):
    rungs = {task: ladder[0] for task, ladder in LADDERS.items()}
    assert mixed_sequences(rungs, 1, 1, "calibration").tolist() == [[START]]
    with pytest.raises(BadParameter, match=f"must be at least 1 .got {count} of {length} tokens"):
        mixed_sequences(rungs, count, length, "calibration")


def test_the_language_spells_every_token():
    words = tokenizer()
    assert words.vocab_size == VOCAB_SIZE
    assert words.start_id == START
    assert words.encode("<blank> <ask> <trigger> k0 v0 v61") == [BLANK, ASK, TRIGGER, FIRST_KEY, FIRST_VALUE, 127]
