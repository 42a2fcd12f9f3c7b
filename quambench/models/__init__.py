"""Float model definitions, their activation sites, checkpoints, and the bundled models."""

from __future__ import annotations

from quambench.models.backbone import LanguageModel
from quambench.models.config import ModelConfig
from quambench.models.sites import architecture_of

__all__ = ["LanguageModel", "ModelConfig", "architecture_of", "build"]


def build(config: ModelConfig) -> LanguageModel:
    """Return a freshly initialised model of this shape (torch's random state decides the weights)."""
    return LanguageModel(config, architecture_of(config).mixer)
