"""The shape of a model: a frozen value, read from either published layout of config.json.

Legend used throughout `models/` (the papers' letters): B batch, L sequence, D d_model,
E = expand * D inner width, H heads, P head_dim (E = H * P), G SSD groups, N d_state, K conv width.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from quambench.core.errors import BadCheckpoint

# Keys of state-spaces' ssm_cfg that only matter for initialising or for choosing a CUDA path.
_TRAINING_ONLY = {"A_init_range", "dt_min", "dt_max", "dt_init", "dt_scale", "dt_init_floor", "conv_init"}
_TRAINING_ONLY |= {"use_fast_path", "use_mem_eff_path", "process_group", "sequence_parallel"}
_TRAINING_ONLY |= {"device", "dtype", "layer", "layer_idx", "d_model"}


# Fields that have another key in a file; messages name that key, since its reader looks for it.
_STATE_SPACES_KEYS = {
    "n_layers": "n_layer", "norm_eps": "norm_epsilon", "conv_width": "d_conv", "head_dim": "headdim",
    "n_groups": "ngroups",
}  # fmt: skip
_TRANSFORMERS_KEYS = {
    "d_model": "hidden_size", "n_layers": "num_hidden_layers", "d_state": "state_size", "conv_width": "conv_kernel",
    "norm_eps": "layer_norm_epsilon", "dt_rank": "time_step_rank", "dt_limit": "time_step_limit",
}  # fmt: skip


class BadField(BadCheckpoint):
    """A field of ModelConfig outside its domain; `why` begins with "must"."""

    def __init__(self, field: str, why: str) -> None:
        super().__init__(f"{field} {why}")
        self.field, self.why = field, why


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """The values that decide a model's tensors and its function, and no others."""

    architecture: str  # "mamba" or "mamba2"
    d_model: int
    n_layers: int
    vocab_size: int  # rows of the embedding, padding included
    d_state: int
    expand: int = 2
    conv_width: int = 4
    conv_bias: bool = True
    proj_bias: bool = False  # bias of in_proj and out_proj
    norm_eps: float = 1e-5
    tie_embeddings: bool = True
    # Mamba only
    dt_rank: int = 0
    # Mamba2 only
    head_dim: int = 0
    n_groups: int = 1
    chunk_size: int = 256
    d_per_channel: bool = False  # D of shape (E,) instead of (H,)
    norm_before_gate: bool = False
    dt_min: float = 0.0  # dt after softplus is clamped to [dt_min, dt_max]
    dt_max: float = math.inf

    def __post_init__(self) -> None:
        if self.architecture not in ("mamba", "mamba2"):
            raise BadField("architecture", f"must be 'mamba' or 'mamba2' (got {self.architecture!r})")
        for name in ("d_model", "n_layers", "vocab_size", "d_state", "expand", "conv_width"):
            if getattr(self, name) < 1:
                raise BadField(name, f"must be at least 1 (got {getattr(self, name)})")
        if not 0 < self.norm_eps < math.inf:
            raise BadField("norm_eps", f"must be positive and finite (got {self.norm_eps})")
        if self.architecture == "mamba2":
            if self.head_dim < 1 or self.d_inner % self.head_dim:
                raise BadField("head_dim", f"must divide the inner width {self.d_inner} (got {self.head_dim})")
            if self.n_groups < 1 or self.n_heads % self.n_groups:
                raise BadField("n_groups", f"must divide the {self.n_heads} heads (got {self.n_groups})")
            if self.chunk_size < 1:
                raise BadField("chunk_size", f"must be at least 1 (got {self.chunk_size})")
            if not 0 <= self.dt_min <= self.dt_max:  # also refuses NaN
                raise BadField("dt_limit", f"must be 0 <= low <= high (got {self.dt_min}, {self.dt_max})")
        elif self.dt_rank < 1:
            raise BadField("dt_rank", f"must be at least 1 (got {self.dt_rank})")

    @property
    def d_inner(self) -> int:
        """E: channels of the block's inner stream."""
        return self.expand * self.d_model

    @property
    def n_heads(self) -> int:
        """H: the number of heads in Mamba2."""
        return self.d_inner // self.head_dim

    @property
    def conv_channels(self) -> int:
        """Channels through the causal convolution: x alone in Mamba, x, B and C in Mamba2."""
        if self.architecture == "mamba":
            return self.d_inner
        return self.d_inner + 2 * self.n_groups * self.d_state

    @classmethod
    def from_json(cls, raw: dict[str, Any]) -> ModelConfig:
        """Read a config.json of state-spaces (`d_model`, `ssm_cfg`) or transformers (`model_type`).

        raises BadCheckpoint for a missing key, an unknown one that could change the function,
        or a hybrid model (attention or MLP blocks), which quambench does not define.
        """
        ours = _is_state_spaces(raw)
        try:
            return (_from_state_spaces if ours else _from_transformers)(dict(raw))  # a copy: keys are taken from it
        except BadField as bad:
            keys = _STATE_SPACES_KEYS if ours else _TRANSFORMERS_KEYS
            raise BadCheckpoint(f"{keys.get(bad.field, bad.field)} {bad.why}") from None
        except KeyError as missing:
            raise BadCheckpoint(f"the key {missing} is missing") from None
        except (TypeError, ValueError, OverflowError) as wrong:
            raise BadCheckpoint(f"a value is not what its key needs: {wrong}") from None

    def to_json(self) -> dict[str, Any]:
        """Return this config in the state-spaces layout; `from_json` reads it back equal."""
        ssm: dict[str, Any] = {"d_state": self.d_state, "d_conv": self.conv_width, "expand": self.expand}
        ssm |= {"conv_bias": self.conv_bias, "bias": self.proj_bias}
        if self.architecture == "mamba":
            ssm |= {"layer": "Mamba1", "dt_rank": self.dt_rank}
        else:
            ssm |= {"layer": "Mamba2", "headdim": self.head_dim, "ngroups": self.n_groups}
            ssm |= {"chunk_size": self.chunk_size, "D_has_hdim": self.d_per_channel}
            ssm |= {"norm_before_gate": self.norm_before_gate}
            ssm |= {"dt_limit": [self.dt_min, "inf" if math.isinf(self.dt_max) else self.dt_max]}
        return {
            "d_model": self.d_model,
            "n_layer": self.n_layers,
            "vocab_size": self.vocab_size,
            "ssm_cfg": ssm,
            "rms_norm": True,
            "norm_epsilon": self.norm_eps,
            "residual_in_fp32": True,
            "pad_vocab_size_multiple": 1,
            "tie_embeddings": self.tie_embeddings,
        }


def _is_state_spaces(raw: dict[str, Any]) -> bool:
    """Whether a config.json is state-spaces'.

    Some exporters add model_type to its keys; only transformers' own files have hidden_size.
    """
    if "model_type" not in raw:
        return True
    return raw["model_type"] in ("mamba", "mamba2") and "ssm_cfg" in raw and "hidden_size" not in raw


def _from_state_spaces(raw: dict[str, Any]) -> ModelConfig:
    given = raw.get("ssm_cfg") or {}
    if not isinstance(given, dict):
        raise BadCheckpoint(f"ssm_cfg must be an object (got {given!r})")
    ssm = dict(given)
    if raw.get("attn_layer_idx") or raw.get("d_intermediate"):
        raise BadCheckpoint("hybrid models (attention or MLP blocks) are not supported")
    if not _flag(raw, "rms_norm", True):
        raise BadCheckpoint("models with LayerNorm are not supported (rms_norm must be true)")
    d_model, multiple = _whole(raw, "d_model"), _whole(raw, "pad_vocab_size_multiple", 8)
    if multiple < 1:
        raise BadCheckpoint(f"pad_vocab_size_multiple must be at least 1 (got {multiple})")
    layer = ssm.get("layer", "Mamba1")
    if layer not in ("Mamba1", "Mamba2"):
        raise BadCheckpoint(f"ssm_cfg.layer must be 'Mamba1' or 'Mamba2' (got {layer!r})")
    common: dict[str, Any] = {
        "d_model": d_model,
        "n_layers": _whole(raw, "n_layer"),
        "vocab_size": -(-_whole(raw, "vocab_size") // multiple) * multiple,
        "norm_eps": _number("norm_epsilon", raw.get("norm_epsilon", 1e-5)),
        "tie_embeddings": _flag(raw, "tie_embeddings", True),
        "expand": _whole(ssm, "expand", 2),
        "conv_width": _whole(ssm, "d_conv", 4),
        "conv_bias": _flag(ssm, "conv_bias", True),
        "proj_bias": _flag(ssm, "bias", False),
    }
    if layer == "Mamba1":
        config = ModelConfig(
            architecture="mamba",
            d_state=_whole(ssm, "d_state", 16),
            dt_rank=_rank(ssm, "dt_rank", d_model),
            **common,
        )
    else:
        low, high = _limits("dt_limit", ssm.pop("dt_limit", (0.0, math.inf)))
        if not _flag(ssm, "rmsnorm", True):
            raise BadCheckpoint("Mamba2 without its gated norm (rmsnorm false) is not supported")
        if ssm.pop("activation", "swish") not in ("swish", "silu"):
            raise BadCheckpoint("Mamba2 with an activation other than swish is not supported")
        if ssm.pop("d_ssm", None) not in (None, common["expand"] * d_model):
            raise BadCheckpoint("Mamba2 with an MLP beside the state space (d_ssm) is not supported")
        config = ModelConfig(
            architecture="mamba2",
            d_state=_whole(ssm, "d_state", 128),
            head_dim=_whole(ssm, "headdim", 64),
            n_groups=_whole(ssm, "ngroups", 1),
            chunk_size=_whole(ssm, "chunk_size", 256),
            d_per_channel=_flag(ssm, "D_has_hdim", False),
            norm_before_gate=_flag(ssm, "norm_before_gate", False),
            dt_min=low,
            dt_max=high,
            **common,
        )
    unknown = sorted(set(ssm) - _TRAINING_ONLY)
    if unknown:
        raise BadCheckpoint(f"ssm_cfg has keys that quambench does not know: {', '.join(unknown)}")
    return config


def _from_transformers(raw: dict[str, Any]) -> ModelConfig:
    kind = raw["model_type"]
    if kind not in ("mamba", "mamba2"):
        raise BadCheckpoint(f"model_type must be 'mamba' or 'mamba2' (got {kind!r})")
    if raw.get("hidden_act", "silu") != "silu":
        raise BadCheckpoint(f"hidden_act must be 'silu' (got {raw['hidden_act']!r})")
    if not _flag(raw, "rms_norm", True):
        raise BadCheckpoint("models with LayerNorm are not supported (rms_norm must be true)")
    d_model, expand = _whole(raw, "hidden_size"), _whole(raw, "expand", 2)
    common: dict[str, Any] = {
        "d_model": d_model,
        "n_layers": _whole(raw, "num_hidden_layers"),
        "vocab_size": _whole(raw, "vocab_size"),
        "expand": expand,
        "conv_width": _whole(raw, "conv_kernel", 4),
        "conv_bias": _flag(raw, "use_conv_bias", True),
        "proj_bias": _flag(raw, "use_bias", False),
        "norm_eps": _number("layer_norm_epsilon", raw.get("layer_norm_epsilon", 1e-5)),
    }
    if kind == "mamba":
        return ModelConfig(
            architecture="mamba",
            d_state=_whole(raw, "state_size", 16),
            dt_rank=_rank(raw, "time_step_rank", d_model),
            tie_embeddings=_flag(raw, "tie_word_embeddings", True),
            **common,
        )
    low, high = _limits("time_step_limit", raw.get("time_step_limit") or (0.0, math.inf))
    config = ModelConfig(
        architecture="mamba2",
        d_state=_whole(raw, "state_size", 128),
        head_dim=_whole(raw, "head_dim", 64),
        n_groups=_whole(raw, "n_groups", 8),
        chunk_size=_whole(raw, "chunk_size", 256),
        dt_min=low,
        dt_max=high,
        tie_embeddings=_flag(raw, "tie_word_embeddings", False),
        **common,
    )
    heads = _whole(raw, "num_heads", config.n_heads)
    if heads != config.n_heads:
        raise BadCheckpoint(f"num_heads must be expand * hidden_size / head_dim = {config.n_heads} (got {heads})")
    return config


def _limits(key: str, value: Any) -> tuple[float, float]:
    """Return the limits of dt, low and high. raises BadCheckpoint"""
    if not isinstance(value, list | tuple) or len(value) != 2:
        raise BadCheckpoint(f"{key} must be two numbers, low and high (got {value!r})")
    low, high = (_number(key, v["__float__"] if isinstance(v, dict) and "__float__" in v else v) for v in value)
    return low, high


def _number(key: str, value: Any) -> float:
    """Return a number of a config. JSON has no infinity: transformers writes {"__float__": "Infinity"}, others a
    string.

    raises BadCheckpoint
    """
    try:
        if not isinstance(value, bool):
            return float(value)
    except (TypeError, ValueError, OverflowError):
        pass
    hint = "; no limit is written Infinity" if value is None else ""
    raise BadCheckpoint(f"{key} must be a number (got {'null' if value is None else repr(value)}{hint})")


def _flag(values: dict[str, Any], key: str, default: bool) -> bool:
    """Take true or false out of `values`, as _whole and _rank take theirs. raises BadCheckpoint"""
    value = values.pop(key, default)
    if not isinstance(value, bool):  # "false" would be true
        raise BadCheckpoint(f"{key} must be true or false (got {value!r})")
    return value


def _whole(values: dict[str, Any], key: str, default: int | None = None) -> int:
    """Take a whole number out of `values`.

    raises KeyError where it is missing and has no default; BadCheckpoint
    """
    value = values.pop(key) if default is None else values.pop(key, default)
    if isinstance(value, bool) or not (isinstance(value, int) or (isinstance(value, float) and value.is_integer())):
        raise BadCheckpoint(f"{key} must be an integer (got {value!r})")
    return int(value)


def _rank(values: dict[str, Any], key: str, d_model: int) -> int:
    if values.get(key, "auto") == "auto":
        values.pop(key, None)
        return math.ceil(d_model / 16)
    return _whole(values, key)
