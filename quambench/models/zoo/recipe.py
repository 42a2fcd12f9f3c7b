"""How each bundled model is trained: data in, one frozen value per model."""

from __future__ import annotations

from dataclasses import dataclass

from quambench.models.config import ModelConfig
from quambench.registry import Registry

VOCAB_SIZE = 2048


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """AdamW with linear warm-up and cosine decay to zero over windows of the training part."""

    config: ModelConfig
    epochs: int
    window: int = 512  # tokens
    batch: int = 32  # windows
    learning_rate: float = 3e-3  # at the peak
    warmup_steps: int = 100
    weight_decay: float = 0.1  # matrices only
    dropout: float = 0.1  # of every in_proj and out_proj input
    clip_norm: float = 1.0
    seed: int = 0


RECIPES: Registry[Recipe] = Registry("bundled model", "quambench/models/zoo/recipe.py")

RECIPES.add(
    "mamba-tiny",
    Recipe(
        config=ModelConfig(
            architecture="mamba", d_model=192, n_layers=5, vocab_size=VOCAB_SIZE, d_state=16, dt_rank=12
        ),
        epochs=12,
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
        epochs=20,
        dropout=0.2,
    ),
)
