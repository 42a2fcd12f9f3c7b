"""Recall tasks: answerable from the context alone, the same for the same arguments, apart by part."""

from __future__ import annotations

from dataclasses import fields, replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from quambench.core.errors import BadParameter
from quambench.data.recall import (
    ASK,
    BLANK,
    FIRST_KEY,
    FIRST_VALUE,
    LADDERS,
    START,
    TASKS,
    TRAINED_LENGTH,
    TRIGGER,
    VOCAB_SIZE,
    RecallSequences,
    long_sequences,
    mixed_sequences,
    sequences,
    tokenizer,
)

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
    assert words.decode([BLANK, ASK, TRIGGER, FIRST_KEY, 127]) == "<blank> <ask> <trigger> k0 v61"
    assert words.encode("<blank> <ask> <trigger> k0 v0 v61") == [BLANK, ASK, TRIGGER, FIRST_KEY, FIRST_VALUE, 127]


PINNED = {
    "associative": {4: "59650840a6a1", 8: "56a9679e28cd", 16: "729b15dfda67", 24: "34e7ff1fef0c", 32: "ae33ea51a191",
                    48: "9ada8e82afcd"},
    "induction": {16: "3d591c80a638", 32: "70966e51baa1", 64: "eab344bea783", 128: "262840e74026",
                  192: "bf90e6994f59"},
    "selective_copy": {2: "97243d5ee1f9", 4: "e41ec71c4129", 6: "68044b444c1a", 8: "4efec004d55e", 12: "b110240e21ba",
                       16: "3f94f6317985"},
}  # fmt: skip


def test_what_is_asked_is_what_was_asked_when_results_were_stored():
    """Every rung of every ladder: a stored recall is compared with what today's sequences give."""
    assert {t: {r: sequences(t, r, 3, "test").digest[:12] for r in LADDERS[t]} for t in TASKS} == PINNED


def test_the_longest_sequences_ask_for_no_more_than_sixteen_keys_and_leave_three_blanks_a_value():
    assert sequences("associative", 48, 2, "test").answers.sum(1).tolist() == [16, 16]
    assert sequences("associative", 8, 2, "test").answers.sum(1).tolist() == [8, 8]
    (copied,) = sequences("selective_copy", 5, 1, "test").tokens.tolist()
    assert copied.index(ASK) == 20
    assert copied.count(BLANK) == 15


@pytest.mark.parametrize(("distance", "before"), [(4, 1), (16, 2), (192, 24)])
def test_the_trigger_returns_after_its_distance(distance, before):
    (tokens,) = sequences("induction", distance, 1, "test").tokens.tolist()
    first, second = (i for i, token in enumerate(tokens) if token == TRIGGER)
    assert first == before
    assert second - first == distance + 1
    assert second == len(tokens) - 2


def test_the_digest_sees_inputs_and_targets_and_how_they_are_laid_out():
    made = sequences("associative", 4, 2, "test")
    others = [
        replace(made, inputs=made.inputs + 1),
        replace(made, tokens=made.tokens + 1),
        replace(made, answers=~made.answers),
        RecallSequences(*(getattr(made, f.name).view(1, -1) for f in fields(made))),
    ]
    assert len({m.digest for m in (made, *others)}) == 5


def test_long_sequences_are_eight_times_what_training_saw():
    assert TRAINED_LENGTH == 219  # induction at 192: 24 tokens of noise, 192 between, both triggers, the answer
    made = long_sequences(2)
    assert made.shape == (2, 8 * 219)
    assert made.dtype == torch.int64
    assert (made[:, 0] == START).all()
    pieces = sequences("associative", 48, 2 * 8 * 2, "test", seed=1).tokens  # 129 tokens each: sixteen are enough
    for row, of_row in zip(made, pieces.split(16), strict=True):
        assert torch.equal(row[1:], of_row.flatten()[: 8 * 219 - 1])
    assert long_sequences(3, times=1).shape == (3, 219)


@pytest.mark.parametrize("length", [40, 12])
def test_mixed_sequences_take_the_tasks_in_turn(length):
    """Each row begins with the task after the one the row before began with; no sequence is there twice."""
    rungs = {"associative": 2, "induction": 8, "selective_copy": 2}
    rows = mixed_sequences(rungs, 3, length, "calibration")
    assert rows.shape == (3, length)
    for index, row in enumerate(rows):
        told = [
            sequences(task, rungs[task], 1, "calibration", seed=index * 3 + turn).tokens[0]
            for turn, task in enumerate([*TASKS, *TASKS, *TASKS])
            if index <= turn < index + 4
        ]
        assert row[0] == START
        assert torch.equal(row[1:], torch.cat(told)[: length - 1])
