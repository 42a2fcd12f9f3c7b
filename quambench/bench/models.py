"""Benchmarks of whole models of published shapes with random weights: float and INT8 against each other and bounds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from quambench_kernels.int8_linear import int8_linear
from torch import Tensor

from quambench.bench.interleave import Call
from quambench.grids.grid import symmetric_scale
from quambench.grids.precision import Precision
from quambench.int8.fuse import prepare
from quambench.int8.model import QuantizedModel, quantize_model
from quambench.models import LanguageModel, ModelConfig, build
from quambench.models.sites import sites_of

VOCABULARY, LENGTH = 50_280, 512
_130M: dict[str, Any] = dict(d_model=768, n_layers=24, vocab_size=VOCABULARY)
CONFIGS = {
    "mamba-130m": ModelConfig(architecture="mamba", d_state=16, dt_rank=48, **_130M),
    "mamba2-130m": ModelConfig(architecture="mamba2", d_state=128, head_dim=64, chunk_size=256, **_130M),
}


@dataclass(frozen=True, slots=True)
class Pair:
    """A model of a shape in float32 and in INT8, and the tokens both are given."""

    config: ModelConfig
    floating: LanguageModel
    quantized: QuantizedModel
    tokens: Tensor  # (1, LENGTH)

    def prefill(self, model: Callable[..., Any]) -> Call:
        return torch.inference_mode()(lambda: model(self.tokens))

    def step(self, model: Callable[..., Any]) -> Call:
        """Return the call that decodes one token after a prefill of 16."""
        with torch.inference_mode():
            _, state = model(self.tokens[:, :16])
        return torch.inference_mode()(lambda: model(self.tokens[:, :1], state))

    def products(self, integer: bool = False, rows: int = LENGTH) -> Call:
        """Return the call of the model's bare matrix products, one after the other: no forward can be faster."""
        shapes = self._products(rows)
        if integer:
            pairs = [(_bytes(m, k), _bytes(n, k)) for m, n, k in shapes]
            return torch.inference_mode()(lambda: [int8_linear(x, w) for x, w in pairs])
        floats = [(torch.randn(m, k), torch.randn(n, k)) for m, n, k in shapes]
        return torch.inference_mode()(lambda: [F.linear(x, w) for x, w in floats])

    def _products(self, rows: int) -> list[tuple[int, int, int]]:
        """Return (rows, out, in) of each product."""
        linear = [m for m in self.floating.modules() if isinstance(m, torch.nn.Linear)]
        return [(rows, *m.weight.shape) for m in linear]


def _bytes(rows: int, columns: int) -> Tensor:
    return torch.randint(-128, 128, (rows, columns), dtype=torch.int8)


@dataclass(frozen=True, slots=True)
class _Largest:
    """The scales of every site from a single pass: good enough for timing."""

    scales: dict[str, Tensor]
    granularities: dict[str, str]
    groups: dict[int, Any]


def pair(name: str) -> Pair:
    """Make the pair of a name in CONFIGS. Weights are random, from a fixed seed; it takes some seconds."""
    config = CONFIGS[name]
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        floating = build(config).eval().requires_grad_(False)
        tokens = torch.randint(VOCABULARY, (1, LENGTH))
    prepared, scales = prepare(floating), {}

    def watch(site: str, x: Tensor) -> Tensor:
        scales[site] = symmetric_scale(x.abs().max())
        return x

    with torch.inference_mode():
        prepared.float()(tokens[:, :32], tap=watch)
    scales = {site: scale.clone() for site, scale in scales.items()}
    fixed = _Largest(scales, dict.fromkeys(sites_of(config), "tensor"), {})
    return Pair(config, floating, quantize_model(prepared, fixed, Precision()), tokens)


def transformers_model(config: ModelConfig) -> Callable[[Tensor], Any] | None:
    """Return transformers' model of this shape on its own CPU path, with random weights; None where it is not
    installed.
    """
    try:
        import transformers
    except ImportError:
        return None
    made: Any
    c = config
    if c.architecture == "mamba":
        made = transformers.MambaForCausalLM(
            transformers.MambaConfig(
                vocab_size=c.vocab_size, hidden_size=c.d_model, num_hidden_layers=c.n_layers, state_size=c.d_state
            )
        )
    else:
        made = transformers.Mamba2ForCausalLM(
            transformers.Mamba2Config(
                vocab_size=c.vocab_size, hidden_size=c.d_model, num_hidden_layers=c.n_layers, state_size=c.d_state,
                head_dim=c.head_dim, num_heads=c.n_heads, n_groups=c.n_groups, chunk_size=c.chunk_size,
                tie_word_embeddings=True,
            )
        )  # fmt: skip
    made.eval()
    return lambda tokens: made(tokens, use_cache=False).logits


def n_bytes(model: LanguageModel | QuantizedModel) -> int:
    """Return the bytes of all parameters and buffers that a model keeps: every tensor reachable from it, once."""
    seen: dict[int, int] = {}

    def walk(value: Any) -> None:
        if isinstance(value, Tensor):
            storage = value.untyped_storage()
            seen[storage.data_ptr()] = storage.nbytes()
        elif isinstance(value, dict):
            for v in value.values():
                walk(v)
        elif isinstance(value, (list, tuple)):
            for v in value:
                walk(v)
        elif isinstance(value, torch.nn.Module):
            for t in (*value.parameters(), *value.buffers()):
                walk(t)
        elif type(value).__module__.startswith("quambench.") and id(value) not in visited:
            visited.add(id(value))
            slots = getattr(type(value), "__slots__", ())
            walk([getattr(value, name) for name in slots if hasattr(value, name)])
            walk(getattr(value, "__dict__", {}))

    visited: set[int] = set()
    walk(model)
    return sum(seen.values())
