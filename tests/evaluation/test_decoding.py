"""Decoding: token by token equals prefill where the state is float; answers counted as they are."""

from __future__ import annotations

import pytest
import torch

from quambench.data import recall
from quambench.evaluation.decoding import CHECKPOINTS, answers_right, decode, states_along
from quambench.models import ModelConfig, build

SHAPES = {
    "mamba": {"dt_rank": 2},
    "mamba2": {"head_dim": 8, "chunk_size": 5},
}


@pytest.fixture(scope="module", params=SHAPES)
def model(request):
    config = ModelConfig(
        architecture=request.param, d_model=16, n_layers=2, vocab_size=128, d_state=4, **SHAPES[request.param]
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return build(config).double().eval().requires_grad_(False)


@pytest.mark.parametrize("prefix", [1, 3, 11])
def test_decoding_is_prefill_one_token_at_a_time(model, prefix):
    tokens = torch.randint(128, (2, 12), generator=torch.Generator().manual_seed(0))
    # Float64: both sum the same few hundred terms in another order.
    torch.testing.assert_close(decode(model, tokens, prefix), model(tokens)[0][:, prefix:], rtol=1e-12, atol=1e-12)


def test_the_last_step_alone_is_tapped(model):
    seen = []
    tokens = torch.randint(128, (2, 6), generator=torch.Generator().manual_seed(0))
    decode(model, tokens, 2, lambda site, x: seen.append(site) or x)
    assert len(seen) == len(set(seen))
    assert seen[-1] == "lm_head:input"


def test_what_taps_the_last_step_changes_the_last_logits_alone(model):
    tokens = torch.randint(128, (2, 6), generator=torch.Generator().manual_seed(0))
    changed = decode(model, tokens, 2, lambda site, x: x + 1) != decode(model, tokens, 2)
    assert changed.flatten(2).any(-1).all(0).tolist() == [False, False, False, True]


def test_states_at_checkpoints_do_not_depend_on_the_pieces(model):
    tokens = torch.randint(128, (2, 4 * CHECKPOINTS + 3), generator=torch.Generator().manual_seed(0))
    by_one, whole = (list(states_along(model, tokens, step)) for step in (1, 1000))
    assert len(by_one) == CHECKPOINTS
    for a, b in zip(by_one, whole, strict=True):
        for x, y in zip(a, b, strict=True):
            torch.testing.assert_close(x.ssm, y.ssm, rtol=1e-12, atol=1e-12)
    assert CHECKPOINTS == 8  # state_error_growth compares the end with an eighth of the way
    _, state = model(tokens[:, :4])
    torch.testing.assert_close(by_one[0][0].ssm, state[0].ssm, rtol=1e-12, atol=1e-12)
    _, state = model(tokens[:, : 4 * CHECKPOINTS])
    torch.testing.assert_close(by_one[-1][0].ssm, state[0].ssm, rtol=1e-12, atol=1e-12)


class Reader:
    """Knows what follows; wrong in `wrong` places of the first sequence."""

    def __init__(self, made, wrong=0):
        self.guesses = made.tokens.clone()
        places = made.answers[0].nonzero()[:wrong, 0]
        self.guesses[0, places] = 0
        self.calls = 0

    def __call__(self, tokens, state=None, tap=None):
        self.calls += 1
        start = 0 if state is None else state
        end = start + tokens.shape[1]
        return torch.nn.functional.one_hot(self.guesses[:, start:end], recall.VOCAB_SIZE).float(), end


@pytest.mark.parametrize("by_steps", [False, True])
@pytest.mark.parametrize("task", recall.TASKS)
def test_answers_are_counted_per_sequence(task, by_steps):
    made = recall.sequences(task, 4, 3, "test")
    asked = made.answers.sum(1)
    reader = Reader(made)
    assert torch.equal(answers_right(reader, made, by_steps), asked.int())
    assert reader.calls == (made.inputs.shape[1] if by_steps else 1)
    assert answers_right(Reader(made, wrong=1), made, by_steps).tolist() == [asked[0] - 1, *asked[1:]]
