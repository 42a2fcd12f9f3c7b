"""Small random models with large weights, float and INT8, and texts as token ids."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from quambench.data.tokenizer import Tokenizer
from quambench.harness.subject import Subject
from quambench.models import LanguageModel, ModelConfig, build

SHAPES = {
    "mamba": ModelConfig(architecture="mamba", d_model=12, n_layers=2, vocab_size=264, d_state=5, dt_rank=3),
    "mamba2": ModelConfig(
        architecture="mamba2", d_model=12, n_layers=2, vocab_size=264, d_state=5, head_dim=4, n_groups=2, chunk_size=8
    ),
}


@pytest.fixture(scope="session")
def float_models(randomize: Callable[..., None]) -> dict[str, LanguageModel]:
    """By architecture, float64."""
    made = {}
    for name, config in SHAPES.items():
        with torch.random.fork_rng():
            made[name] = build(config).eval().requires_grad_(False)
        randomize(made[name], seed=4)
        made[name].double()
    return made


@pytest.fixture(params=sorted(SHAPES))
def float_model(request: pytest.FixtureRequest, float_models: dict[str, LanguageModel]) -> LanguageModel:
    return copy.deepcopy(float_models[request.param])


@pytest.fixture
def subject(float_model: LanguageModel, tokenizer_file: Path) -> Subject:
    """The float model behind a tokenizer of bytes, texts not started."""
    return Subject(float_model, Tokenizer.load(tokenizer_file), "random", "0" * 64, starts=False)
