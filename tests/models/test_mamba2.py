"""Mamba2: against transformers, against its own definition, and by hand."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import Mamba2Config, Mamba2ForCausalLM
from transformers.models.mamba2 import modeling_mamba2

from quambench.models import LanguageModel, ModelConfig, build, mamba2
from quambench.models.backbone import LayerState
from quambench.models.mamba2 import Mamba2Mixer

CONFIG = ModelConfig(
    architecture="mamba2", d_model=12, n_layers=2, vocab_size=40, d_state=5, head_dim=4, n_groups=2, chunk_size=8
)

fixed = settings(derandomize=True, deadline=None, max_examples=20)  # the same examples in every run


@pytest.fixture(scope="module")
def model(randomize: Callable[..., None]) -> LanguageModel:
    return random_model(randomize)


def random_model(randomize: Callable[..., None], **changes: Any) -> LanguageModel:
    model = build(replace(CONFIG, **changes)).eval().requires_grad_(False)
    randomize(model, seed=1)
    return model


def tokens_of(length: int, batch: int = 3, vocab_size: int = CONFIG.vocab_size) -> Tensor:
    return torch.randint(vocab_size, (batch, length), generator=torch.Generator().manual_seed(length))


@pytest.mark.parametrize(
    ("shape", "length"),
    [
        ({"num_hidden_layers": 2, "n_groups": 1}, 37),
        ({"num_hidden_layers": 4, "n_groups": 2, "tie_word_embeddings": True}, 65),
        ({"num_hidden_layers": 3, "n_groups": 3, "use_bias": True, "use_conv_bias": False, "conv_kernel": 3}, 1),
        ({"num_hidden_layers": 3, "n_groups": 2, "use_bias": True, "layer_norm_epsilon": 0.1}, 7),
        ({"num_hidden_layers": 2, "n_groups": 2, "time_step_limit": (0.2, 0.6), "chunk_size": 32}, 33),
    ],
)
def test_logits_are_those_of_transformers(
    assert_parity: Callable[..., Any], randomize: Callable[..., None], shape: dict[str, Any], length: int
) -> None:
    common = {"vocab_size": 264, "hidden_size": 24, "head_dim": 4, "num_heads": 12, "state_size": 6, "chunk_size": 8}
    theirs = Mamba2ForCausalLM(Mamba2Config(**common | shape))
    randomize(theirs, seed=length)
    assert_parity(theirs, modeling_mamba2, tokens_of(length, batch=max(3, 111 // length), vocab_size=264))


def test_parity_catches_exchanged_groups(
    assert_parity: Callable[..., Any], randomize: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = {"vocab_size": 264, "hidden_size": 24, "head_dim": 4, "num_heads": 12, "n_groups": 2, "state_size": 6}
    theirs = Mamba2ForCausalLM(Mamba2Config(**config, num_hidden_layers=2))
    randomize(theirs, seed=0)
    right = mamba2.ssd
    monkeypatch.setattr(mamba2, "ssd", lambda x, dt, A, B, *rest, **kw: right(x, dt, A, B.flip(2), *rest, **kw))
    with pytest.raises(AssertionError, match="more than rounding"):
        assert_parity(theirs, modeling_mamba2, tokens_of(9, vocab_size=264))


def test_decoding_equals_prefill(assert_decoding_is_prefill: Callable[..., None], model: LanguageModel) -> None:
    assert_decoding_is_prefill(model, tokens_of(43))


@pytest.mark.parametrize("field", ["conv", "ssm"])
def test_decoding_check_catches_a_state_that_is_reset(
    assert_decoding_is_prefill: Callable[..., None], model: LanguageModel, field: str
) -> None:
    def forget(state: LayerState) -> LayerState:
        return replace(state, **{field: torch.zeros_like(getattr(state, field))})

    with pytest.raises(AssertionError, match="more than rounding"):
        assert_decoding_is_prefill(model, tokens_of(43), disturb=forget)


@fixed
@given(at=st.integers(0, 36), step=st.integers(1, CONFIG.vocab_size - 1))
def test_a_token_changes_nothing_before_it(
    assert_causal: Callable[..., None], model: LanguageModel, at: int, step: int
) -> None:
    # Exactly, not nearly: inside a chunk, what comes later has the weight exp(-inf) = 0.
    tokens = tokens_of(37)
    assert_causal(lambda tokens: model(tokens)[0], tokens, at, (tokens[:, at] + step) % CONFIG.vocab_size)


def test_causality_check_catches_a_look_ahead(assert_causal: Callable[..., None], model: LanguageModel) -> None:
    with pytest.raises(AssertionError):
        assert_causal(lambda tokens: model(tokens.flip(1))[0].flip(1), tokens_of(37), 20, 0)


def test_one_d_per_channel_repeats_one_d_per_head(randomize: Callable[..., None]) -> None:
    heads = random_model(randomize)
    weights = heads.state_dict()
    for name in [name for name in weights if name.endswith("mixer.D")]:
        weights[name] = weights[name].repeat_interleave(CONFIG.head_dim)
    channels = random_model(randomize, d_per_channel=True)
    channels.load_state_dict(weights)
    assert torch.equal(channels(tokens_of(9))[0], heads(tokens_of(9))[0])  # the same products, so the same bits


def gated_norm_by_groups(mixer: Mamba2Mixer, y: Tensor, z: Tensor, gate_first: bool) -> Tensor:
    """The formula, one SSD group at a time: y / sqrt(mean y² + ε) · gain, and the gate z · sigmoid(z)."""
    gate = z * torch.sigmoid(z)
    parts = (y * gate if gate_first else y).chunk(mixer.config.n_groups, dim=-1)
    normed = [part / (part.square().mean(-1, keepdim=True) + mixer.config.norm_eps).sqrt() for part in parts]
    out = torch.cat(normed, dim=-1) * mixer.norm.weight
    return out if gate_first else out * gate


@pytest.mark.parametrize("norm_before_gate", [False, True])
@pytest.mark.parametrize("n_groups", [1, 2])
def test_gated_norm_is_its_formula(
    assert_only_rounding: Callable[..., None], randomize: Callable[..., None], norm_before_gate: bool, n_groups: int
) -> None:
    built = random_model(randomize, norm_before_gate=norm_before_gate, n_groups=n_groups, norm_eps=0.1)
    y, z = torch.randn(2, 3, 9, CONFIG.d_inner, generator=torch.Generator().manual_seed(0))

    def pair(dtype: torch.dtype, gate_first: bool = not norm_before_gate) -> tuple[Tensor, Tensor]:
        mixer = copy.deepcopy(built.backbone.layers[0].mixer).to(dtype)
        return mixer.gated_norm(y.to(dtype), z.to(dtype)), gated_norm_by_groups(
            mixer, y.to(dtype), z.to(dtype), gate_first
        )

    assert_only_rounding(pair)
    with pytest.raises(AssertionError, match="more than rounding"):
        assert_only_rounding(lambda dtype: pair(dtype, gate_first=norm_before_gate))


def test_dt_is_clamped_to_its_limits(assert_only_rounding: Callable[..., None], randomize: Callable[..., None]) -> None:
    def mixer_of(**limits: float) -> Mamba2Mixer:
        return random_model(randomize, **limits).backbone.layers[0].mixer

    free, clamped = mixer_of(), mixer_of(dt_min=0.3, dt_max=0.5)
    hidden = torch.randn(2, 9, CONFIG.d_model, generator=torch.Generator().manual_seed(0))
    dt = F.softplus(free.in_proj(hidden)[..., -CONFIG.n_heads :] + free.dt_bias)
    assert ((dt < 0.3).any(), (dt > 0.5).any(), ((dt > 0.3) & (dt < 0.5)).any()) == (True, True, True)

    # What the mixer does with limits is what it does without them to a Δ that lies within them: the
    # tap puts there the inverse of softplus of the clamped Δ.
    def with_clamped_dt(dtype: torch.dtype) -> Tensor:
        free_here = copy.deepcopy(free).to(dtype)

        def tap(site: str, x: Tensor) -> Tensor:
            if site != "dt":
                return x
            wanted = F.softplus(x + free_here.dt_bias).clamp(0.3, 0.5)
            return wanted.expm1().log() - free_here.dt_bias

        return free_here(hidden.to(dtype), None, tap)[0]

    def pair(mixer: Mamba2Mixer) -> Callable[[torch.dtype], tuple[Tensor, Tensor]]:
        return lambda dtype: (
            copy.deepcopy(mixer).to(dtype)(hidden.to(dtype), None, lambda site, x: x)[0],
            with_clamped_dt(dtype),
        )

    assert_only_rounding(pair(clamped))
    with pytest.raises(AssertionError, match="more than rounding"):
        assert_only_rounding(pair(free))


def test_empty_state_is_the_state_before_the_first_token(model: LanguageModel) -> None:
    tokens = tokens_of(9)
    empty = [block.mixer.empty_state(len(tokens)) for block in model.backbone.layers]
    assert torch.equal(model(tokens, empty)[0], model(tokens)[0])
