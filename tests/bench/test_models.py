"""Whole models that are timed: float and INT8 of one model, their products, their bytes."""

import pytest
import torch

from quambench.bench import models
from quambench.bench.models import n_bytes, pair, transformers_model
from quambench.models import ModelConfig

SMALL = {
    "mamba": ModelConfig(architecture="mamba", d_model=24, n_layers=2, vocab_size=64, d_state=4, dt_rank=2),
    "mamba2": ModelConfig(architecture="mamba2", d_model=24, n_layers=2, vocab_size=64, d_state=8, head_dim=8),
}


@pytest.fixture(params=SMALL)
def made(request, monkeypatch):
    monkeypatch.setattr(models, "CONFIGS", SMALL)
    monkeypatch.setattr(models, "VOCABULARY", 64)
    return pair(request.param)


def test_int8_answers_as_float_does(made):
    floating, quantized = (made.prefill(m)()[0] for m in (made.floating, made.quantized))
    assert floating.shape == quantized.shape == (1, 512, 64)
    a, b = (x.flatten() - x.mean() for x in (floating, quantized))
    assert torch.dot(a, b) / (a.norm() * b.norm()) > 0.9


def test_a_step_goes_on_from_a_prefill(made):
    logits, state = made.step(made.quantized)()
    assert logits.shape == (1, 1, 64)
    assert len(state) == 2


def test_products_are_the_models(made):
    shapes = [y.shape for y in made.products()()]
    assert [y.shape for y in made.products(integer=True)()] == shapes
    assert shapes[-1] == (512, 64)  # lm_head
    assert len(shapes) == (9 if made.config.architecture == "mamba" else 5)
    assert made.products(rows=1)()[0].shape[0] == 1


def test_bytes_of_float_parameters_counted_by_hand(made):
    parameters = {p.data_ptr(): p.numel() * 4 for p in made.floating.parameters()}
    assert n_bytes(made.floating) == sum(parameters.values())


def test_bytes_of_int8_cover_its_weights_and_little_more(made):
    """Integers at a byte each; the rest (scales, tables, what the runtime keeps as float) is small in a real model."""
    integers = sum(w.q.numel() for w in made.quantized.weights().values())
    assert integers < n_bytes(made.quantized) < n_bytes(made.floating)


def test_transformers_model_has_this_shape(made):
    theirs = transformers_model(made.config)
    if theirs is None:
        pytest.skip("transformers is not installed")
    with torch.inference_mode():
        assert theirs(made.tokens[:, :8]).shape[:2] == (1, 8)
