"""Mamba: against transformers, against its own definition, and by hand."""

from __future__ import annotations

import math
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
from quambench.models.mamba import selective_scan, selective_scan_sequential

EPS64 = torch.finfo(torch.float64).eps
CONFIG = ModelConfig(architecture="mamba", d_model=12, n_layers=2, vocab_size=40, d_state=5, dt_rank=3)

Scan = Callable[..., tuple[Tensor, Tensor]]
fixed = settings(derandomize=True, deadline=None, max_examples=20)  # the same examples in every run


@pytest.fixture(scope="module")
def model(randomize: Callable[..., None]) -> LanguageModel:
    model = build(CONFIG).eval().requires_grad_(False)
    randomize(model, seed=1)
    return model


def tokens_of(length: int, batch: int = 3, vocab_size: int = CONFIG.vocab_size) -> Tensor:
    return torch.randint(vocab_size, (batch, length), generator=torch.Generator().manual_seed(length))


def scan_inputs(length: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> tuple[Tensor, ...]:
    """u, dt, A, B, C, D, state; drawn in float32, so that both precisions see the same numbers."""
    batch, width, n = 2, 3, 4
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    u, dt, A = draw(batch, length, width), draw(batch, length, width).exp() / 4, -draw(width, n).exp()
    B, C, D, state = draw(batch, length, n), draw(batch, length, n), draw(width), draw(batch, width, n)
    return tuple(x.to(dtype) for x in (u, dt, A, B, C, D, state))


def flat(result: tuple[Tensor, Tensor]) -> Tensor:
    return torch.cat([part.flatten() for part in result])


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
    monkeypatch.setattr(mamba, "selective_scan", lambda u, dt, A, B, C, D, h: selective_scan(u, dt, A, B, C, 0 * D, h))
    with pytest.raises(AssertionError, match="more than rounding"):
        assert_parity(theirs, modeling_mamba, tokens_of(9, vocab_size=264))


def test_parity_catches_lost_precision(
    assert_parity: Callable[..., Any], randomize: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    def rounded(*inputs: Tensor) -> tuple[Tensor, Tensor]:
        y, state = selective_scan(*inputs)
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


@pytest.mark.parametrize("recorded", [False, True])
@pytest.mark.parametrize("length", [1, 31, 32, 33, 100])
def test_scans_agree(assert_only_rounding: Callable[..., None], length: int, recorded: bool) -> None:
    def pair(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        inputs = [x.requires_grad_(recorded) for x in scan_inputs(length, dtype=dtype)]
        y, state = selective_scan(*inputs)
        assert y.requires_grad == recorded
        return flat((y, state)).detach(), flat(selective_scan_sequential(*inputs)).detach()

    assert_only_rounding(pair)


@pytest.mark.parametrize("block", [1, 300, 1 << 20])  # exponentials of one step, of a few, of all
def test_evaluation_scan_does_not_depend_on_its_block(monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    inputs = scan_inputs(33, dtype=torch.float32)
    whole = flat(selective_scan(*inputs))
    monkeypatch.setattr(mamba, "SCAN_BLOCK", block)
    assert torch.equal(flat(selective_scan(*inputs)), whole)


def test_evaluation_scan_leaves_its_inputs_alone() -> None:
    inputs = scan_inputs(5, dtype=torch.float64)
    before = [x.clone() for x in inputs]
    _, state = selective_scan(*inputs)
    selective_scan(*inputs[:-1], state)  # a state as it comes out is one as the scan lays it out itself
    assert all(torch.equal(x, y) for x, y in zip(inputs, before, strict=True))


def no_decay(u: Tensor, dt: Tensor, A: Tensor, *rest: Tensor) -> tuple[Tensor, Tensor]:
    return selective_scan(u, dt, 0 * A, *rest)


def no_initial_state(*inputs: Tensor) -> tuple[Tensor, Tensor]:
    return selective_scan(*inputs[:-1], 0 * inputs[-1])


def single_precision(*inputs: Tensor) -> tuple[Tensor, Tensor]:
    y, state = selective_scan(*(x.float() for x in inputs))
    return y.to(inputs[0].dtype), state.to(inputs[0].dtype)


@pytest.mark.parametrize("fault", [no_decay, no_initial_state, single_precision])
def test_scan_check_catches(assert_only_rounding: Callable[..., None], fault: Scan) -> None:
    def pair(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        inputs = scan_inputs(33, dtype=dtype)
        return flat(fault(*inputs)), flat(selective_scan_sequential(*inputs))

    with pytest.raises(AssertionError, match="more than rounding"):
        assert_only_rounding(pair)


@pytest.mark.parametrize("scan", [selective_scan, selective_scan_sequential])
def test_scan_by_hand(scan: Scan) -> None:
    # One channel, two states, two tokens. Δ = ln 2 and A = (-1, -2) make the decays 1/2 and 1/4;
    # B carries a factor 1 / ln 2, so that Δ B = (2, 1), then (4, 0).
    #   h_0 = (4, 8)
    #   h_1 = (4/2 + 2·1, 8/4 + 1·1) = (4, 3)       y_1 = 1·4 + 2·3 + 100·1 = 110
    #   h_2 = (4/2 + 4·3, 3/4 + 0·3) = (14, 0.75)   y_2 = 10·14 + 4·0.75 + 100·3 = 443
    ln2 = math.log(2)
    u, B, C = [[[1.0], [3.0]]], [[[2 / ln2, 1 / ln2], [4 / ln2, 0.0]]], [[[1.0, 2.0], [10.0, 4.0]]]
    inputs = u, [[[ln2], [ln2]]], [[-1.0, -2.0]], B, C, [100.0], [[[4.0, 8.0]]]
    y, state = scan(*(torch.tensor(x, dtype=torch.float64) for x in inputs))
    # All terms are positive, so relative errors add along the longest path, which has 20 roundings:
    # per token Δ A, exp, decay · h, Δ u, B, the product and the sum; then C, its sum and D's.
    for found, expected in ((y, [[[110.0], [443.0]]]), (state, [[[14.0, 0.75]]])):
        torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), rtol=20 * EPS64, atol=0)


def test_scan_gradients_by_finite_differences(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mamba, "SCAN_CHUNK", 3)  # several chunks, the last one short, at a length that is quick
    inputs = [x.requires_grad_() for x in scan_inputs(7)]
    assert torch.autograd.gradcheck(selective_scan, inputs)  # its own tolerances: those of a central difference


@pytest.mark.parametrize("length", [1, 33])
def test_scan_gradients_are_those_of_the_definition(assert_only_rounding: Callable[..., None], length: int) -> None:
    def gradients(scan: Scan, dtype: torch.dtype) -> Tensor:
        inputs = [x.requires_grad_() for x in scan_inputs(length, dtype=dtype)]
        result = flat(scan(*inputs))
        weights = torch.randn(result.shape, generator=torch.Generator().manual_seed(2)).to(dtype)
        return torch.cat([g.flatten() for g in torch.autograd.grad((result * weights).sum(), inputs)])

    assert_only_rounding(lambda dtype: (gradients(selective_scan, dtype), gradients(selective_scan_sequential, dtype)))


@fixed
@given(length=st.integers(1, 70), seed=st.integers(0, 2**31))
def test_scan_is_linear_in_its_input(assert_only_rounding: Callable[..., None], length: int, seed: int) -> None:
    def pair(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        u, *fixed, state = scan_inputs(length, seed, dtype)
        other, *_, other_state = scan_inputs(length, seed + 1, dtype)
        separate = flat(selective_scan(u, *fixed, state)) + 2 * flat(selective_scan(other, *fixed, other_state))
        return flat(selective_scan(u + 2 * other, *fixed, state + 2 * other_state)), separate

    assert_only_rounding(pair)


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
