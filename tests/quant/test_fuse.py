"""Fusing and rotating leave the function alone; each step left out is noticed."""

from __future__ import annotations

import pytest
import torch

from quambench.models import ModelConfig, build
from quambench.quant import fuse
from quambench.quant.hadamard import hadamard_matrix

# float64 rounding differs from float32's by 2^29; a fault does not shrink. Half of those bits is
# the line between the two, relative to the logits' size.
SAME_FUNCTION = 2**-14.5 * torch.finfo(torch.float32).eps

CONFIGS = {
    "mamba-2^k": ModelConfig(architecture="mamba", d_model=16, n_layers=2, vocab_size=40, d_state=4, dt_rank=3),
    "mamba-12": ModelConfig(architecture="mamba", d_model=12, n_layers=2, vocab_size=40, d_state=4, dt_rank=3),
    "mamba-40-bias-untied": ModelConfig(
        architecture="mamba", d_model=40, n_layers=1, vocab_size=40, d_state=4, dt_rank=3, proj_bias=True,
        tie_embeddings=False,
    ),
    "mamba2-24": ModelConfig(
        architecture="mamba2", d_model=24, n_layers=2, vocab_size=40, d_state=4, head_dim=8, n_groups=2, chunk_size=4
    ),
    "mamba2-norm-before-gate": ModelConfig(
        architecture="mamba2", d_model=16, n_layers=2, vocab_size=40, d_state=4, head_dim=8, chunk_size=4,
        norm_before_gate=True, d_per_channel=True, proj_bias=True,
    ),
}  # fmt: skip


@pytest.fixture(params=CONFIGS)
def model(request):
    with torch.random.fork_rng():
        torch.manual_seed(1)
        made = build(CONFIGS[request.param]).double().eval().requires_grad_(False)
        for name, parameter in made.named_parameters():
            if "norm" in name:  # gains of one would hide a gain that was not fused
                parameter.uniform_(0.5, 2.0)
    return made


TOKENS = torch.randint(40, (2, 11), generator=torch.Generator().manual_seed(0))


def assert_same_function(model, prepared):
    expected, states = model(TOKENS)
    found, states_found = prepared(TOKENS)
    assert (found - expected).abs().max() <= SAME_FUNCTION * expected.abs().max()
    step, step_found = model(TOKENS[:, :1], states)[0], prepared(TOKENS[:, :1], states_found)[0]
    assert (step_found - step).abs().max() <= SAME_FUNCTION * step.abs().max()


def test_the_prepared_model_is_the_same_function(model):
    before = {name: p.clone() for name, p in model.named_parameters()}
    prepared = fuse.prepare(model)
    assert_same_function(model, prepared)
    assert all(torch.equal(before[name], p) for name, p in model.named_parameters())  # a copy was prepared


def test_gains_are_one_and_the_head_is_untied_afterwards(model):
    prepared = fuse.prepare(model)
    assert all((block.norm.weight == 1).all() for block in prepared.blocks)
    assert (prepared.backbone.norm_f.weight == 1).all()
    assert prepared.lm_head.weight is not prepared.backbone.embedding.weight


@pytest.mark.parametrize("left_out", ["fuse_gains", "rotate_out_proj_input", "_rotate_outputs"])
def test_a_step_left_out_is_noticed(model, left_out, monkeypatch):
    def nothing(x):
        return x

    if left_out == "fuse_gains":

        def only_reset(model):
            for block in model.blocks:
                block.norm.weight.fill_(1.0)

        monkeypatch.setattr(fuse, "fuse_gains", only_reset)
    elif left_out == "rotate_out_proj_input":

        def only_online(model):
            for block in model.blocks:
                block.mixer.out_rotation = fuse.Rotation()

        monkeypatch.setattr(fuse, "rotate_out_proj_input", only_online)
    else:
        monkeypatch.setattr(fuse, "_rotate_outputs", nothing)
    with pytest.raises(AssertionError):
        assert_same_function(model, fuse.prepare(model))


def test_a_rotation_without_its_normalisation_is_noticed(model, monkeypatch):
    monkeypatch.setattr(fuse, "rotate", lambda x: x @ hadamard_matrix(x.shape[-1]).T * x.shape[-1] ** 0.5)
    with pytest.raises(AssertionError):
        assert_same_function(model, fuse.prepare(model))


def test_the_transposed_matrix_is_noticed_where_it_differs():
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = build(CONFIGS["mamba-12"]).double().eval().requires_grad_(False)
    prepared = fuse.prepare(model)
    for block in prepared.blocks:  # W H instead of W H^T on in_proj's input side
        h = hadamard_matrix(12)
        block.mixer.in_proj.weight.copy_(block.mixer.in_proj.weight @ h @ h)
    with pytest.raises(AssertionError):
        assert_same_function(model, prepared)
