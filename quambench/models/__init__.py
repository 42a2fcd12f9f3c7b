"""Float model definitions, their activation sites, checkpoints, and the bundled models."""

from __future__ import annotations

from quambench.models.backbone import LanguageModel
from quambench.models.config import ModelConfig
from quambench.models.mamba import MambaMixer
from quambench.models.mamba2 import Mamba2Mixer

__all__ = ["MIXERS", "LanguageModel", "Mamba2Mixer", "MambaMixer", "ModelConfig", "build"]

MIXERS = {"mamba": MambaMixer, "mamba2": Mamba2Mixer}


def build(config: ModelConfig) -> LanguageModel:
    """A freshly initialised model of this shape (torch's random state decides the weights)."""
    return LanguageModel(config, MIXERS[config.architecture])
