"""config.json in both published layouts, and what is refused."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quambench.core.errors import BadCheckpoint
from quambench.models.config import ModelConfig

# As published with state-spaces/mamba-130m and state-spaces/mamba2-130m.
MAMBA_130M = {
    "d_model": 768,
    "n_layer": 24,
    "vocab_size": 50277,
    "ssm_cfg": {},
    "rms_norm": True,
    "residual_in_fp32": True,
    "fused_add_norm": True,
    "pad_vocab_size_multiple": 8,
}
MAMBA2_130M = {
    "d_model": 768,
    "d_intermediate": 0,
    "n_layer": 24,
    "vocab_size": 50277,
    "ssm_cfg": {"layer": "Mamba2"},
    "attn_layer_idx": [],
    "attn_cfg": {},
    "rms_norm": True,
    "residual_in_fp32": True,
    "fused_add_norm": True,
    "pad_vocab_size_multiple": 16,
    "tie_embeddings": True,
}
TRANSFORMERS = {"model_type": "mamba", "hidden_size": 32, "num_hidden_layers": 2, "vocab_size": 264}
TRANSFORMERS2 = TRANSFORMERS | {"model_type": "mamba2", "head_dim": 8, "n_groups": 2, "state_size": 5}


@st.composite
def configs(draw: st.DrawFn) -> ModelConfig:
    small, flag = st.integers(1, 9), st.booleans()
    common = {name: draw(small) for name in ("d_model", "n_layers", "vocab_size", "d_state", "expand", "conv_width")}
    common |= {name: draw(flag) for name in ("conv_bias", "proj_bias", "tie_embeddings")}
    common["norm_eps"] = draw(st.floats(0, 1, exclude_min=True))
    if draw(flag):
        return ModelConfig(architecture="mamba", dt_rank=draw(small), **common)
    groups, heads_per_group, head_dim = draw(small), draw(small), draw(small)
    common |= {"d_model": groups * heads_per_group * head_dim, "head_dim": head_dim, "n_groups": groups}
    common |= {name: draw(flag) for name in ("d_per_channel", "norm_before_gate")}
    low = draw(st.floats(0, 10))
    limits = {"dt_min": low, "dt_max": draw(st.one_of(st.just(math.inf), st.floats(low, 100)))}
    return ModelConfig(architecture="mamba2", chunk_size=draw(small), **common, **limits)


@settings(derandomize=True, deadline=None)
@given(configs())
def test_json_round_trip(config: ModelConfig) -> None:
    text = json.dumps(config.to_json(), allow_nan=False)  # infinity must not need Python's own JSON dialect
    assert ModelConfig.from_json(json.loads(text)) == config


@pytest.mark.parametrize("architecture", ["mamba", "mamba2"])
def test_the_written_layout_carries_every_field(architecture: str) -> None:
    # A field that to_json forgets would come back as its default: change each, one at a time.
    base = ModelConfig(architecture=architecture, d_model=8, n_layers=1, vocab_size=3, d_state=2, dt_rank=1, head_dim=2)
    if architecture == "mamba2":
        base = replace(base, dt_rank=0)
        other = {"head_dim": 4, "n_groups": 2, "chunk_size": 7, "d_per_channel": True, "norm_before_gate": True}
        other |= {"dt_min": 0.25, "dt_max": 0.5}
    else:
        base = replace(base, head_dim=0)
        other = {"dt_rank": 3}
    other |= {"d_model": 16, "n_layers": 2, "vocab_size": 5, "d_state": 3, "expand": 3, "conv_width": 3}
    other |= {"conv_bias": False, "proj_bias": True, "norm_eps": 0.5, "tie_embeddings": False}
    assert ModelConfig.from_json(base.to_json()) == base
    for name, value in other.items():
        changed = replace(base, **{name: value})
        assert changed != base
        assert ModelConfig.from_json(changed.to_json()) == changed, name
    not_of_this_kind = {"dt_rank"} if architecture == "mamba2" else set(asdict(base)) - set(other)
    assert set(asdict(base)) == set(other) | not_of_this_kind | {"architecture"}


def test_reads_state_spaces_mamba() -> None:
    config = ModelConfig.from_json(MAMBA_130M)
    assert config == ModelConfig(
        architecture="mamba", d_model=768, n_layers=24, vocab_size=50280, d_state=16, dt_rank=48
    )
    assert (config.d_inner, config.conv_channels) == (1536, 1536)


def test_reads_state_spaces_mamba2() -> None:
    config = ModelConfig.from_json(MAMBA2_130M)
    assert config == ModelConfig(
        architecture="mamba2", d_model=768, n_layers=24, vocab_size=50288, d_state=128, head_dim=64
    )
    assert (config.n_heads, config.conv_channels) == (24, 1536 + 2 * 128)


@pytest.mark.parametrize("rank", ["auto", 2])
def test_reads_transformers_mamba(rank: object) -> None:
    extra = {"time_step_rank": rank, "use_cache": True, "conv_kernel": 3, "use_bias": True, "use_conv_bias": False}
    assert ModelConfig.from_json(TRANSFORMERS | extra) == ModelConfig(
        architecture="mamba",
        d_model=32,
        n_layers=2,
        vocab_size=264,
        d_state=16,
        dt_rank=2,
        conv_width=3,
        proj_bias=True,
        conv_bias=False,
    )


@pytest.mark.parametrize("infinity", [math.inf, "inf", {"__float__": "Infinity"}])
def test_reads_transformers_mamba2(infinity: object) -> None:
    extra = {"time_step_limit": [0.125, infinity], "layer_norm_epsilon": 1e-6, "chunk_size": 16}
    assert ModelConfig.from_json(TRANSFORMERS2 | extra) == ModelConfig(
        architecture="mamba2",
        d_model=32,
        n_layers=2,
        vocab_size=264,
        d_state=5,
        head_dim=8,
        n_groups=2,
        chunk_size=16,
        norm_eps=1e-6,
        dt_min=0.125,
        tie_embeddings=False,
    )


MAMBA2_2_7B = {
    "d_model": 2560, "d_intermediate": 0, "n_layer": 64, "vocab_size": 50277, "ssm_cfg": {"layer": "Mamba2"},
    "attn_layer_idx": [], "attn_cfg": {}, "rms_norm": True, "residual_in_fp32": True, "fused_add_norm": True,
    "pad_vocab_size_multiple": 16, "tie_embeddings": True,
}  # fmt: skip
MAMBA_130M_HF = {
    "architectures": ["MambaForCausalLM"], "bos_token_id": 0, "conv_kernel": 4, "d_inner": 1536, "d_model": 768,
    "eos_token_id": 0, "expand": 2, "fused_add_norm": True, "hidden_act": "silu", "hidden_size": 768,
    "initializer_range": 0.1, "intermediate_size": 1536, "layer_norm_epsilon": 1e-05, "model_type": "mamba",
    "n_layer": 24, "num_hidden_layers": 24, "pad_token_id": 0, "pad_vocab_size_multiple": 8,
    "rescale_prenorm_residual": False, "residual_in_fp32": True, "rms_norm": True, "ssm_cfg": {}, "state_size": 16,
    "time_step_floor": 0.0001, "time_step_init_scheme": "random", "time_step_max": 0.1, "time_step_min": 0.001,
    "time_step_rank": 48, "time_step_scale": 1.0, "torch_dtype": "float32", "use_bias": False, "use_cache": True,
    "use_conv_bias": True, "vocab_size": 50280,
}  # fmt: skip


def test_reads_the_published_mamba2_of_2_7_billion() -> None:
    config = ModelConfig.from_json(MAMBA2_2_7B)
    assert config == ModelConfig(
        architecture="mamba2", d_model=2560, n_layers=64, vocab_size=50288, d_state=128, head_dim=64
    )
    assert (config.n_heads, config.n_groups) == (80, 1)
    assert ModelConfig.from_json(MAMBA2_2_7B | {"vocab_size": 50288}) == config


def test_a_config_with_keys_of_both_layouts_is_transformers() -> None:
    """As state-spaces/mamba-130m-hf has them; the same model as state-spaces/mamba-130m."""
    assert ModelConfig.from_json(MAMBA_130M_HF) == ModelConfig.from_json(MAMBA_130M)


def test_a_model_type_beside_state_spaces_keys_changes_nothing() -> None:
    assert ModelConfig.from_json(MAMBA2_2_7B | {"model_type": "mamba2"}) == ModelConfig.from_json(MAMBA2_2_7B)


def mamba(**changes: Any) -> dict[str, Any]:
    return MAMBA_130M | changes


def mamba2(**ssm: Any) -> dict[str, Any]:
    return MAMBA2_130M | {"ssm_cfg": {"layer": "Mamba2"} | ssm}


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        ({}, "the key 'd_model' is missing"),
        ({"model_type": "mamba"}, "the key 'hidden_size' is missing"),
        (mamba(d_model="wide"), "d_model must be an integer (got 'wide')"),
        (mamba(d_model=None), "d_model must be an integer (got None)"),
        (mamba(n_layer=math.inf), "n_layer must be an integer (got inf)"),
        (mamba(ssm_cfg=[1]), "ssm_cfg must be an object (got [1])"),
        (mamba(n_layer=0), "n_layer must be at least 1 (got 0)"),
        (mamba(pad_vocab_size_multiple=0), "pad_vocab_size_multiple must be at least 1 (got 0)"),
        (mamba(norm_epsilon=0), "norm_epsilon must be positive and finite (got 0.0)"),
        (mamba(norm_epsilon=math.nan), "norm_epsilon must be positive and finite (got nan)"),
        (mamba(norm_epsilon=None), "norm_epsilon must be a number (got null"),
        (mamba(norm_epsilon=True), "norm_epsilon must be a number (got True)"),
        (mamba(rms_norm=False), "LayerNorm"),
        (mamba(attn_layer_idx=[3]), "hybrid"),
        (mamba(d_intermediate=64), "hybrid"),
        (mamba(ssm_cfg={"d_stat": 16, "turbo": 1}), "ssm_cfg has keys that quambench does not know: d_stat, turbo"),
        (mamba(ssm_cfg={"headdim": 64}), "does not know: headdim"),
        (mamba(ssm_cfg={"dt_rank": 0}), "dt_rank must be at least 1 (got 0)"),
        (mamba(ssm_cfg={"layer": "Mamba3"}), "must be 'Mamba1' or 'Mamba2' (got 'Mamba3')"),
        (mamba2(dt_rank=4), "does not know: dt_rank"),
        (mamba2(learnable_init_states=True), "does not know: learnable_init_states"),
        (mamba2(headdim=100), "headdim must divide the inner width 1536 (got 100)"),
        (mamba2(ngroups=5), "ngroups must divide the 24 heads (got 5)"),
        (mamba2(chunk_size=0), "chunk_size must be at least 1 (got 0)"),
        (mamba2(dt_limit=[0.5, 0.1]), "dt_limit must be 0 <= low <= high (got 0.5, 0.1)"),
        (mamba2(dt_limit=[0.0, math.nan]), "0 <= low <= high (got 0.0, nan)"),
        (mamba2(dt_limit=[0.0]), "dt_limit must be two numbers, low and high (got [0.0])"),
        (mamba2(dt_limit=7), "dt_limit must be two numbers"),
        (mamba2(rmsnorm=False), "without its gated norm"),
        (mamba2(activation="relu"), "activation"),
        (mamba2(d_ssm=768), "d_ssm"),
        (TRANSFORMERS | {"model_type": "llama"}, "must be 'mamba' or 'mamba2' (got 'llama')"),
        (TRANSFORMERS | {"hidden_act": "gelu"}, "hidden_act must be 'silu' (got 'gelu')"),
        (TRANSFORMERS | {"rms_norm": False}, "LayerNorm"),
        (TRANSFORMERS2 | {"num_heads": 9}, "num_heads must be expand * hidden_size / head_dim = 8 (got 9)"),
        (MAMBA2_2_7B | {"model_type": "bamba"}, "must be 'mamba' or 'mamba2' (got 'bamba')"),
        (MAMBA2_2_7B | {"attn_layer_idx": [9, 18, 27]}, "hybrid"),  # as state-spaces/mamba2attn-2.7b
        (TRANSFORMERS2 | {"time_step_limit": [0.0, {"__float__": "x"}]}, "time_step_limit must be a number (got 'x')"),
        (TRANSFORMERS2 | {"time_step_limit": [0.0, None]}, "time_step_limit must be a number (got null; no limit is"),
        (TRANSFORMERS2 | {"time_step_limit": [0.0, {}]}, "time_step_limit must be a number (got {})"),
        (TRANSFORMERS2 | {"time_step_limit": [1, 0]}, "time_step_limit must be 0 <= low <= high"),
        (TRANSFORMERS2 | {"layer_norm_epsilon": "tiny"}, "layer_norm_epsilon must be a number (got 'tiny')"),
        (TRANSFORMERS2 | {"layer_norm_epsilon": 10**400}, "layer_norm_epsilon must be a number"),
        (TRANSFORMERS2 | {"hidden_size": 0}, "hidden_size must be at least 1 (got 0)"),
        (TRANSFORMERS2 | {"state_size": 0}, "state_size must be at least 1 (got 0)"),
        (TRANSFORMERS2 | {"conv_kernel": 0}, "conv_kernel must be at least 1 (got 0)"),
    ],
)
def test_refuses(raw: dict[str, Any], message: str) -> None:
    with pytest.raises(BadCheckpoint) as refused:
        ModelConfig.from_json(raw)
    assert message in str(refused.value)


WHOLE = ("d_model", "n_layer", "vocab_size", "pad_vocab_size_multiple")
WHOLE_SSM = ("d_state", "d_conv", "expand")
FLAGS_SSM = ("conv_bias", "bias")
COMMON = ("hidden_size", "num_hidden_layers", "vocab_size", "state_size", "expand", "conv_kernel")
COMMON_FLAGS = ("rms_norm", "use_conv_bias", "use_bias", "tie_word_embeddings")
# by layout and architecture -> keys of whole numbers, and of what is true or false
KINDS: dict[str, tuple[Callable[..., dict[str, Any]], tuple[str, ...], tuple[str, ...]]] = {
    "mamba": (mamba, WHOLE, ("rms_norm", "tie_embeddings")),
    "mamba's ssm_cfg": (lambda **ssm: mamba(ssm_cfg=ssm), (*WHOLE_SSM, "dt_rank"), FLAGS_SSM),
    "mamba2's ssm_cfg": (mamba2, (*WHOLE_SSM, "headdim", "ngroups", "chunk_size"),
                         (*FLAGS_SSM, "rmsnorm", "D_has_hdim", "norm_before_gate")),
    "transformers' mamba": (lambda **c: TRANSFORMERS | c, (*COMMON, "time_step_rank"), COMMON_FLAGS),
    "transformers' mamba2": (lambda **c: TRANSFORMERS2 | c,
                             (*COMMON, "head_dim", "n_groups", "chunk_size", "num_heads"), COMMON_FLAGS),
}  # fmt: skip


def refused(raw: dict[str, Any]) -> str:
    with pytest.raises(BadCheckpoint) as error:
        ModelConfig.from_json(raw)
    return str(error.value)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("value", ["false", "true", 0, 1, None])
def test_what_is_true_or_false_is_nothing_else(kind: str, value: object) -> None:
    """Not even "false", a string, which Python takes for true."""
    made, _, flags = KINDS[kind]
    for key in flags:
        assert refused(made(**{key: value})) == f"{key} must be true or false (got {value!r})"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("value", [2.5, "2", True, None, math.nan, [2]])
def test_what_is_a_whole_number_is_nothing_else(kind: str, value: object) -> None:
    made, whole, _ = KINDS[kind]
    for key in whole:
        assert refused(made(**{key: value})) == f"{key} must be an integer (got {value!r})"


def test_a_whole_number_may_have_a_point_and_what_was_read_stays_as_it_is() -> None:
    raw = mamba(d_model=768.0, ssm_cfg={"expand": 2.0})
    before = json.dumps(raw)
    assert ModelConfig.from_json(raw) == ModelConfig.from_json(MAMBA_130M)
    assert json.dumps(raw) == before


def test_accepts_keys_that_leave_the_function_alone() -> None:
    extra = {"dt_min": 0.001, "A_init_range": [1, 16], "use_fast_path": True, "activation": "silu", "d_ssm": 1536}
    assert ModelConfig.from_json(mamba2(**extra)) == ModelConfig.from_json(MAMBA2_130M)


def test_refuses_an_unknown_architecture() -> None:
    with pytest.raises(BadCheckpoint, match="must be 'mamba' or 'mamba2'"):
        ModelConfig(architecture="rwkv", d_model=8, n_layers=1, vocab_size=3, d_state=2)
