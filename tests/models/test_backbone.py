"""How a model begins: with its first values, and on the meta device without any."""

from __future__ import annotations

import subprocess
import sys

import torch
from torch import nn

from quambench.models import ModelConfig, build
from quambench.models.backbone import parameter

SHAPES = {
    "mamba": ModelConfig(architecture="mamba", d_model=16, n_layers=2, vocab_size=50, d_state=4, dt_rank=1),
    "mamba2": ModelConfig(architecture="mamba2", d_model=16, n_layers=2, vocab_size=50, d_state=4, head_dim=8),
}

LOADED = """
import sys
import torch
before = set(sys.modules)
from quambench.models.checkpoint import load_checkpoint
load_checkpoint("mamba-tiny"), load_checkpoint("mamba2-tiny")
print([name for name in ("torch._dynamo", "torch._refs", "sympy") if name in set(sys.modules) - before])
"""


def test_on_the_meta_device_a_model_has_the_same_names_and_shapes_and_may_be_trained():
    for config in SHAPES.values():
        real = build(config)
        with torch.device("meta"):
            shapes = build(config)
        assert all(p.is_meta and p.requires_grad for p in shapes.parameters())
        assert {n: p.shape for n, p in shapes.named_parameters()} == {n: p.shape for n, p in real.named_parameters()}


def test_a_meta_parameter_asks_for_no_values():
    def asked():
        raise AssertionError("values were computed where none can be held")

    with torch.device("meta"):
        assert parameter((2, 3), asked).shape == (2, 3)
    assert parameter((2,), lambda: torch.ones(2)).tolist() == [1.0, 1.0]


def test_the_embedding_begins_as_torchs_own():
    for config in SHAPES.values():
        torch.manual_seed(5)
        ours = build(config).backbone.embedding.weight
        torch.manual_seed(5)
        assert torch.equal(ours, nn.Embedding(config.vocab_size, config.d_model).weight)


def test_loading_a_checkpoint_imports_no_decompositions():
    """They are 900 modules, two seconds of every command."""
    ran = subprocess.run([sys.executable, "-c", LOADED], capture_output=True, text=True, check=True)
    assert ran.stdout == "[]\n"
