"""Mamba: against transformers, against its own definition, and by hand."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import MambaConfig, MambaForCausalLM
from transformers.models.mamba import modeling_mamba

from quambench.models import LanguageModel, ModelConfig, build, mamba
from quambench.models.backbone import LayerState

CONFIG = ModelConfig(architecture="mamba", d_model=12, n_layers=2, vocab_size=40, d_state=5, dt_rank=3)

fixed = settings(derandomize=True, deadline=None, max_examples=20)  # the same examples in every run


@pytest.fixture(scope="module")
def model(randomize: Callable[..., None]) -> LanguageModel:
    model = build(CONFIG).eval().requires_grad_(False)
    randomize(model, seed=1)
    return model


def tokens_of(length: int, batch: int = 3, vocab_size: int = CONFIG.vocab_size) -> Tensor:
    return torch.randint(vocab_size, (batch, length), generator=torch.Generator().manual_seed(length))


@pytest.mark.parametrize(
    ("shape", "length"),
    [
        ({"num_hidden_layers": 2}, 37),
        ({"num_hidden_layers": 4, "state_size": 7, "time_step_rank": 5, "tie_word_embeddings": False}, 65),
        ({"num_hidden_layers": 3, "use_bias": True, "use_conv_bias": False, "conv_kernel": 3, "expand": 3}, 1),
        ({"num_hidden_layers": 3, "use_bias": True, "layer_norm_epsilon": 0.1}, 33),
    ],
)
def test_logits_are_those_of_transformers(
    assert_parity: Callable[..., Any], randomize: Callable[..., None], shape: dict[str, Any], length: int
) -> None:
    theirs = MambaForCausalLM(MambaConfig(**{"vocab_size": 264, "hidden_size": 24} | shape))
    randomize(theirs, seed=length)
    assert_parity(theirs, modeling_mamba, tokens_of(length, batch=max(3, 111 // length), vocab_size=264))


def test_parity_catches_a_dropped_skip_connection(
    assert_parity: Callable[..., Any], randomize: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs = MambaForCausalLM(MambaConfig(vocab_size=264, hidden_size=24, num_hidden_layers=2))
    randomize(theirs, seed=0)
    with_d = mamba.selective_scan
    monkeypatch.setattr(
        mamba, "selective_scan", lambda u, dt, A, B, C, D, h, **kw: with_d(u, dt, A, B, C, 0 * D, h, **kw)
    )
    with pytest.raises(AssertionError, match="more than rounding"):
        assert_parity(theirs, modeling_mamba, tokens_of(9, vocab_size=264))


def test_parity_catches_lost_precision(
    assert_parity: Callable[..., Any], randomize: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    exact = mamba.selective_scan

    def rounded(*inputs: Tensor, **kw: Tensor) -> tuple[Tensor, Tensor]:
        y, state = exact(*inputs, **kw)
        return (y, state) if y.dtype == torch.float64 else (y.bfloat16().float(), state)

    theirs = MambaForCausalLM(MambaConfig(vocab_size=264, hidden_size=24, num_hidden_layers=2))
    randomize(theirs, seed=0)
    monkeypatch.setattr(mamba, "selective_scan", rounded)
    with pytest.raises(AssertionError, match="float32 error"):
        assert_parity(theirs, modeling_mamba, tokens_of(37, vocab_size=264))


def test_decoding_equals_prefill(assert_decoding_is_prefill: Callable[..., None], model: LanguageModel) -> None:
    assert_decoding_is_prefill(model, tokens_of(40))


@pytest.mark.parametrize("field", ["conv", "ssm"])
def test_decoding_check_catches_a_state_that_is_reset(
    assert_decoding_is_prefill: Callable[..., None], model: LanguageModel, field: str
) -> None:
    def forget(state: LayerState) -> LayerState:
        return replace(state, **{field: torch.zeros_like(getattr(state, field))})

    with pytest.raises(AssertionError, match="more than rounding"):
        assert_decoding_is_prefill(model, tokens_of(40), disturb=forget)


@fixed
@given(at=st.integers(0, 39), step=st.integers(1, CONFIG.vocab_size - 1))
def test_a_token_changes_nothing_before_it(
    assert_causal: Callable[..., None], model: LanguageModel, at: int, step: int
) -> None:
    # Exactly, not nearly: nothing later enters any sum that gives an earlier logit.
    tokens = tokens_of(40)
    assert_causal(lambda tokens: model(tokens)[0], tokens, at, (tokens[:, at] + step) % CONFIG.vocab_size)


def test_causality_check_catches_a_look_ahead(assert_causal: Callable[..., None], model: LanguageModel) -> None:
    with pytest.raises(AssertionError):
        assert_causal(lambda tokens: model(tokens.flip(1))[0].flip(1), tokens_of(40), 20, 0)


def test_empty_state_is_the_state_before_the_first_token(model: LanguageModel) -> None:
    tokens = tokens_of(9)
    empty = [block.mixer.empty_state(len(tokens)) for block in model.backbone.layers]
    assert torch.equal(model(tokens, empty)[0], model(tokens)[0])
