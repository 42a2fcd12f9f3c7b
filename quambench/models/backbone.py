"""The parts that Mamba and Mamba2 share: norm, convolution's parameters, decoding state, residual stream.

A model is pre-norm blocks around a mixer: h <- h + mixer(norm(h)), then norm_f and lm_head.
Every activation that a recipe may quantize passes through `tap(site, tensor)`, so that observers,
fake quantization and dropout see exactly the tensors named in `models/sites.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import torch
from quambench_kernels.causal_conv1d import causal_conv1d
from quambench_kernels.rms_norm_quantize import rms_norm_quantize
from torch import Tensor, nn

from quambench.models.config import ModelConfig

Tap = Callable[[str, Tensor], Tensor]
"""(site name, tensor) -> the tensor the model goes on with."""


def no_tap(site: str, x: Tensor) -> Tensor:
    """Return x: the tap that watches nothing."""
    return x


def in_layer(tap: Tap, layer: int) -> Tap:
    """Return `tap` for one block's sites: names get the prefix "layers.<layer>."."""
    return tap if tap is no_tap else lambda site, x: tap(f"layers.{layer}.{site}", x)


@dataclass(frozen=True, slots=True)
class LayerState:
    """The values that a layer carries from token to token.

    conv  (B, K-1, conv_channels)  the last inputs of the convolution, oldest first
    ssm   (B, E, N) in Mamba, (B, H, P, N) in Mamba2; float32 in a narrow model
    """

    conv: Tensor
    ssm: Tensor


def parameter(shape: tuple[int, ...], values: Callable[[], Tensor]) -> nn.Parameter:
    """Return a parameter of this shape with the values of values(). On the meta device, which has none, it is not
    called.

    Most of what computes an initial value (normal_, arange, clamp) imports torch's decompositions on the meta device,
    which takes two seconds: a checkpoint is loaded without that.
    """
    empty = torch.empty(shape)
    return nn.Parameter(empty if empty.is_meta else values())


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps) * gain, the mean over each of n_groups equal parts of the last axis."""

    def __init__(self, width: int, eps: float, n_groups: int = 1) -> None:
        super().__init__()
        self.eps, self.n_groups = eps, n_groups
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        """Normalize x (..., width). The result has the gain's dtype; in a narrow model x, the residual stream, is
        wider.
        """
        gain = self.weight
        return rms_norm_quantize(x, gain.to(x.dtype), self.eps, None, n_groups=self.n_groups).to(gain.dtype)


class DepthwiseConv(nn.Module):
    """Parameters of the causal convolution, in the checkpoints' shape (C, 1, K)."""

    def __init__(self, channels: int, width: int, bias: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(channels, 1, width))
        self.bias = nn.Parameter(torch.empty(channels)) if bias else None
        bound = width**-0.5  # nn.Conv1d's own initialisation
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -bound, bound)

    def forward(self, x: Tensor, history: Tensor) -> tuple[Tensor, Tensor]:
        """Return convolution and SiLU of x (B, L, C), and the history that the next call needs, (B, K-1, C)."""
        return causal_conv1d(x, self.weight[:, 0], self.bias, history, silu=True)


class Mixer(nn.Module):
    """The inner part of a block; `mamba.py` and `mamba2.py` define it.

    `out_rotation` turns out_proj's input; it is the identity until `int8/fuse.py` sets a Hadamard there.
    """

    in_proj: nn.Linear
    out_proj: nn.Linear

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.out_rotation: nn.Module = nn.Identity()

    def empty_state(self, batch: int) -> LayerState:
        """Return the state before the first token: zeros, on the weights' device."""
        raise NotImplementedError

    def forward(self, hidden: Tensor, state: LayerState | None, tap: Tap) -> tuple[Tensor, LayerState]:
        """Map hidden (B, L, D) to (B, L, D) and the state after the last token.

        With a state and L = 1 this is the decoding step; else the parallel form.
        """
        raise NotImplementedError


class Block(nn.Module):
    """Pre-norm residual block."""

    def __init__(self, config: ModelConfig, mixer: Mixer) -> None:
        super().__init__()
        self.norm = RMSNorm(config.d_model, config.norm_eps)
        self.mixer: Mixer = mixer


class Backbone(nn.Module):
    """Embedding, blocks, final norm; attribute names are those of the published checkpoints."""

    def __init__(self, config: ModelConfig, make_mixer: Callable[[ModelConfig], Mixer]) -> None:
        super().__init__()
        rows, width = config.vocab_size, config.d_model
        drawn = parameter((rows, width), lambda: torch.randn(rows, width))  # nn.Embedding's own initialisation
        self.embedding = nn.Embedding.from_pretrained(drawn, freeze=False)
        self.layers = nn.ModuleList(Block(config, make_mixer(config)) for _ in range(config.n_layers))
        self.norm_f = RMSNorm(config.d_model, config.norm_eps)


class LanguageModel(nn.Module):
    """Float Mamba or Mamba2 language model: the definition that everything else is measured against.

    In float16 or bfloat16 it is what state-spaces' own is with residual_in_fp32: matrix products and what passes
    between them are narrow; the residual stream, norms, the scan with its parameters and its state are float32.
    """

    def __init__(self, config: ModelConfig, make_mixer: Callable[[ModelConfig], Mixer]) -> None:
        super().__init__()
        self.config = config
        self.backbone = Backbone(config, make_mixer)
        self.lm_head = nn.Linear(config.d_model, config.vocab_size, bias=False)
        if config.tie_embeddings:
            self.lm_head.weight = self.backbone.embedding.weight

    @property
    def blocks(self) -> list[Block]:
        """The blocks, first to last."""
        return cast(list[Block], list(self.backbone.layers))

    def forward(
        self, tokens: Tensor, state: list[LayerState] | None = None, tap: Tap = no_tap
    ) -> tuple[Tensor, list[LayerState]]:
        """Read tokens from the start (state None) or go on from a state; L = 1 is a decoding step.

        tokens (B, L) int64 -> logits (B, L, vocab_size), float32 or wider, and one LayerState per layer.
        Sites are tapped as "layers.<i>.<site>" and "lm_head:input".
        """
        hidden, after = self.hidden(tokens, state, tap)
        return self.head(hidden, tap), after

    def hidden(
        self, tokens: Tensor, state: list[LayerState] | None = None, tap: Tap = no_tap
    ) -> tuple[Tensor, list[LayerState]]:
        """Return the residual stream after the last block, (B, L, D), float32 or wider, and the states; tokens (B,
        L).
        """
        hidden = _at_least_float32(self.backbone.embedding(tokens))
        states: list[LayerState] = []
        for i, block in enumerate(self.blocks):
            inner, after = block.mixer(block.norm(hidden), None if state is None else state[i], in_layer(tap, i))
            hidden = hidden + inner
            states.append(after)
        return hidden, states

    def head(self, hidden: Tensor, tap: Tap = no_tap) -> Tensor:
        """Return logits (..., vocab_size) of the residual stream (..., D), at any positions."""
        return _at_least_float32(self.lm_head(tap("lm_head:input", self.backbone.norm_f(hidden))))


def _at_least_float32(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def forward_in_pieces(model: LanguageModel, tokens: Tensor, length: int, tap: Tap = no_tap) -> Tensor:
    """Return logits (B, L, vocab_size) of tokens (B, L), `length` tokens a call with the state carried on.

    In float this equals a single call. A tap that quantizes the state changes what comes after it, which a single
    call would never show.
    """
    logits, state = [], None
    for piece in tokens.split(length, dim=1):
        out, state = model(piece, state, tap)
        logits.append(out)
    return torch.cat(logits, dim=1)
