"""Fusing and rotating leave the function alone; each step left out is noticed."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from quambench.core.errors import BadParameter
from quambench.grids.hadamard import hadamard_matrix
from quambench.int8 import fuse
from quambench.models import ModelConfig, build
from quambench.run.runner import ModelRun

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
    "mamba2-40-untied": ModelConfig(
        architecture="mamba2", d_model=40, n_layers=1, vocab_size=40, d_state=4, head_dim=16, n_groups=5, chunk_size=4,
        tie_embeddings=False, conv_bias=False,
    ),
}  # fmt: skip


def made(config):
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = build(config).double().eval().requires_grad_(False)
        for name, parameter in model.named_parameters():
            if "norm" in name:  # gains of one would hide a gain that was not fused
                parameter.uniform_(0.5, 2.0)
    return model


@pytest.fixture(params=CONFIGS)
def model(request):
    return made(CONFIGS[request.param])


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


@pytest.mark.parametrize("name", [n for n, c in CONFIGS.items() if not c.tie_embeddings])
def test_an_untied_head_keeps_its_own_weight(name):
    prepared = fuse.prepare(made(CONFIGS[name]))
    embedding, head = prepared.backbone.embedding.weight, prepared.lm_head.weight
    assert (embedding - head).abs().max() > SAME_FUNCTION * head.abs().max()


@pytest.mark.parametrize("size", [10, 14])
def test_a_width_without_a_hadamard_matrix_is_refused(size):
    config = replace(CONFIGS["mamba-2^k"], d_model=size)
    with torch.random.fork_rng():
        model = build(config)
    with pytest.raises(BadParameter, match=f"d_model is {size}, and of that width there is no Hadamard matrix"):
        fuse.prepare(model)


def test_an_inner_width_without_one_is_named_with_its_checkpoint():
    with torch.random.fork_rng():
        model = build(replace(CONFIGS["mamba-2^k"], expand=9))
    run = SimpleNamespace(checkpoint=SimpleNamespace(name="mine", model=model))
    with pytest.raises(BadParameter, match=r"^mine: the inner width, expand \* d_model, is 144, and of that width"):
        ModelRun.plain.func(run)


def prepared_with(model, monkeypatch, **patches):
    """The prepared model where functions of the module are replaced, or not called at all (None)."""
    for name, patch in patches.items():
        monkeypatch.setattr(fuse, name, patch or (lambda model: None))
    return fuse.prepare(model)


def only_reset_block_norms(model):
    for block in model.blocks:
        block.norm.weight.fill_(1.0)


def only_reset_final_norm(model):
    for block in model.blocks:
        block.mixer.in_proj.weight.mul_(block.norm.weight)
        block.norm.weight.fill_(1.0)
    model.backbone.norm_f.weight.fill_(1.0)


def online_rotation_alone(model):
    for block in model.blocks:
        block.mixer.out_rotation = fuse.Rotation()


def fused_rotation_alone(model):
    for block in model.blocks:
        block.mixer.out_proj.weight.copy_(fuse.rotate(block.mixer.out_proj.weight))


@pytest.mark.parametrize(
    "patches",
    [
        {"fuse_gains": None},  # a rotation does not commute with the gains that stay
        {"fuse_gains": only_reset_block_norms},
        {"fuse_gains": only_reset_final_norm},
        {"rotate_out_proj_input": online_rotation_alone},
        {"rotate_out_proj_input": fused_rotation_alone},
        {"_rotate_outputs": lambda weight: weight},
    ],
    ids=["gains left", "block gains lost", "final gain lost", "online alone", "fused alone", "outputs left"],
)
def test_a_step_left_out_is_noticed(model, patches, monkeypatch):
    prepared = prepared_with(model, monkeypatch, **patches)
    with pytest.raises(AssertionError):
        assert_same_function(model, prepared)


@pytest.mark.parametrize("step", ["rotate_residual", "rotate_out_proj_input"])
def test_each_step_leaves_the_function_alone_by_itself(model, step, monkeypatch):
    assert_same_function(model, prepared_with(model, monkeypatch, **{step: None}))


PLACES = {  # every tensor that the rotations touch
    "embedding": lambda m: m.backbone.embedding.weight,
    "lm_head": lambda m: m.lm_head.weight,
    "in_proj": lambda m: m.blocks[0].mixer.in_proj.weight,
    "out_proj": lambda m: m.blocks[0].mixer.out_proj.weight,
}


@pytest.mark.parametrize("place", PLACES)
def test_a_tensor_that_was_not_rotated_is_noticed(model, place):
    prepared = fuse.prepare(model)
    weight = PLACES[place](prepared)
    weight.copy_(weight @ hadamard_matrix(weight.shape[1]))  # back from W H^T
    with pytest.raises(AssertionError):
        assert_same_function(model, prepared)


@pytest.mark.parametrize("name", [n for n, c in CONFIGS.items() if c.proj_bias])
def test_a_bias_that_was_not_rotated_is_noticed(name):
    model = made(CONFIGS[name])
    prepared = fuse.prepare(model)
    prepared.blocks[0].mixer.out_proj.bias.copy_(model.blocks[0].mixer.out_proj.bias)
    with pytest.raises(AssertionError):
        assert_same_function(model, prepared)


def test_a_rotation_without_its_normalisation_is_noticed(model, monkeypatch):
    prepared = prepared_with(
        model, monkeypatch, rotate=lambda x: x @ hadamard_matrix(x.shape[-1]).T * x.shape[-1] ** 0.5
    )
    with pytest.raises(AssertionError):
        assert_same_function(model, prepared)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("name", ["mamba-12", "mamba-40-bias-untied", "mamba2-24"])
def test_the_transposed_matrix_is_noticed_where_it_differs(name, place):
    """W H for W H^T, in the families whose matrix is not symmetric."""
    model = made(CONFIGS[name])
    prepared = fuse.prepare(model)
    weight = PLACES[place](prepared)
    h = hadamard_matrix(weight.shape[1])
    assert not torch.equal(h, h.T)
    weight.copy_(weight @ h @ h)
    with pytest.raises(AssertionError):
        assert_same_function(model, prepared)
