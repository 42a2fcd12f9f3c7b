"""The training recipes of the bundled models: a frozen value for each."""

from __future__ import annotations

from dataclasses import dataclass

from quambench.core.registry import Registry
from quambench.data import recall
from quambench.models.config import ModelConfig

VOCAB_SIZE = 2048  # of prose


@dataclass(frozen=True, slots=True)
class Prose:
    """The data of a prose model: windows of the corpus' training part, each seen once per epoch."""

    epochs: int
    window: int = 512  # tokens
    batch: int = 32  # windows


@dataclass(frozen=True, slots=True)
class Recall:
    """The data of a recall model: sequences made anew for every step, of which only answers are learned.

    The hardest rung drawn rises linearly to the ladder's top over the first `ramp` of the steps:
    a model that starts at the top never learns to recall.
    """

    steps: int
    batch: int = 256  # sequences
    ramp: float = 0.6  # share of the steps
    # Tasks in turn. Recalling by key is by far the slowest to be learned.
    tasks: tuple[str, ...] = ("associative", "selective_copy", "associative", "induction", "associative")


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """AdamW with linear warm-up and cosine decay to zero, and what it is applied to."""

    config: ModelConfig
    data: Prose | Recall
    learning_rate: float = 3e-3  # at the peak
    warmup_steps: int = 100
    weight_decay: float = 0.1  # matrices only
    dropout: float = 0.1  # of every in_proj and out_proj input
    clip_norm: float = 1.0
    embedding_std: float = 1.0  # at the start; PyTorch's own is 1
    seed: int = 0


RECIPES: Registry[Recipe] = Registry("bundled model", "quambench/models/zoo/recipe.py")

RECIPES.add(
    "mamba-tiny",
    Recipe(
        config=ModelConfig(
            architecture="mamba", d_model=192, n_layers=5, vocab_size=VOCAB_SIZE, d_state=16, dt_rank=12
        ),
        data=Prose(epochs=12),
    ),
)
RECIPES.add(
    "mamba2-tiny",
    Recipe(
        config=ModelConfig(
            architecture="mamba2",
            d_model=256,
            n_layers=4,
            vocab_size=VOCAB_SIZE,
            d_state=32,
            head_dim=32,
            chunk_size=32,
        ),
        data=Prose(epochs=20),
        dropout=0.2,
    ),
)
# With unit variance the tied head starts at a loss of hundreds of nats, and recall is not learned.
RECIPES.add(
    "mamba-recall",
    Recipe(
        config=ModelConfig(
            architecture="mamba", d_model=128, n_layers=2, vocab_size=recall.VOCAB_SIZE, d_state=16, dt_rank=8
        ),
        data=Recall(steps=9000),
        dropout=0.0,
        embedding_std=0.1,
    ),
)
RECIPES.add(
    "mamba2-recall",
    Recipe(
        config=ModelConfig(
            architecture="mamba2",
            d_model=128,
            n_layers=2,
            vocab_size=recall.VOCAB_SIZE,
            d_state=32,
            head_dim=32,
            chunk_size=32,
        ),
        data=Recall(steps=9000),
        dropout=0.0,
        embedding_std=0.1,
    ),
)
