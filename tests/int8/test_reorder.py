"""Reordering leaves the function alone; each tensor left out is noticed."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch

from quambench.core.errors import BadParameter
from quambench.grouping.groups import Groups
from quambench.int8 import reorder as reordering
from quambench.int8.fuse import prepare
from quambench.int8.reorder import moved, reorder
from quambench.models import ModelConfig, build

BASE = ModelConfig(
    architecture="mamba2", d_model=32, n_layers=2, vocab_size=40, d_state=4, head_dim=4, chunk_size=4, proj_bias=True
)  # E = 64: H = 16 heads of P = 4
CONFIGS = {
    "1": BASE,
    "2": replace(BASE, n_groups=2),
    "8": replace(BASE, n_groups=8),
    "2-d-per-channel-norm-first": replace(BASE, n_groups=2, d_per_channel=True, norm_before_gate=True),
    "1-without-biases": replace(BASE, conv_bias=False, proj_bias=False),
}
TOKENS = torch.randint(40, (2, 11), generator=torch.Generator().manual_seed(0))
SAME_FUNCTION = 1e-10  # relative, in float64: the bar; rounding is some 1e-15


@pytest.fixture(params=CONFIGS)
def model(request):
    with torch.random.fork_rng():
        torch.manual_seed(1)
        made = build(CONFIGS[request.param]).double().eval().requires_grad_(False)
        for name, parameter in made.named_parameters():
            if "embedding" not in name and parameter.ndim == 1:  # equal entries would hide that they did not move
                parameter.add_(torch.rand_like(parameter))
    return made


def any_order(config, seed=0):
    """Heads and channels at random, in groups of any size."""
    g = torch.Generator().manual_seed(seed)
    per_ssd = config.n_heads // config.n_groups
    heads = torch.cat([i * per_ssd + torch.randperm(per_ssd, generator=g) for i in range(config.n_groups)])
    dims = torch.stack([torch.randperm(config.head_dim, generator=g) for _ in heads])
    channels = (heads[:, None] * config.head_dim + dims).flatten()
    head_sizes = torch.tensor([[1, per_ssd - 1]]) if per_ssd > 1 else torch.tensor([[1]])
    dim_sizes = torch.tensor([1, config.head_dim - 1]).expand(config.n_groups, head_sizes.shape[1], 2)
    return Groups(heads, channels, head_sizes.expand(config.n_groups, -1).contiguous(), dim_sizes.contiguous())


def orders(config):
    return {layer: any_order(config, layer) for layer in range(config.n_layers)}


def answers(model):
    """Logits of a prefill, and of three steps after a shorter one."""
    logits, _ = model(TOKENS)
    some, state = model(TOKENS[:, :8])
    steps = []
    for t in range(8, 11):
        one, state = model(TOKENS[:, t : t + 1], state)
        steps.append(one)
    return torch.cat([logits, some, *steps], dim=1)


def apart(model, other):
    expected = answers(model)
    return ((answers(other) - expected).abs().max() / expected.abs().max()).item()


def reordered(model):
    other = copy.deepcopy(model)
    reorder(other, orders(model.config))
    return other


def test_the_function_stays(model):
    other = reordered(model)
    assert not torch.equal(other.blocks[0].mixer.in_proj.weight, model.blocks[0].mixer.in_proj.weight)
    assert apart(model, other) < SAME_FUNCTION


def test_the_prepared_models_function_stays(model):
    assert apart(model, prepare(model, orders(model.config))) < SAME_FUNCTION


def test_what_stands_at_the_site_is_moved_and_nothing_else(model):
    seen = {}
    for name, one in (("plain", model), ("moved", reordered(model))):
        one(TOKENS, tap=lambda site, x, name=name: seen.setdefault((name, site), x))
    for layer, order in orders(model.config).items():
        plain, moved_x = (seen[name, f"layers.{layer}.x_conv_out"] for name in ("plain", "moved"))
        # SAME_FUNCTION's bar; next to zero, where values have cancelled, a hundredth of it.
        torch.testing.assert_close(moved_x, plain[..., order.channel_index], rtol=1e-10, atol=1e-12)
        for letter in "BC":
            torch.testing.assert_close(
                *(seen[name, f"layers.{layer}.{letter}_conv_out"] for name in ("plain", "moved")),
                rtol=1e-10,
                atol=1e-12,
            )


def left_out(tensor, index):
    return tensor, torch.arange(len(index))


def inverted(tensor, index):
    return tensor, index.argsort()


@pytest.mark.parametrize("fault", [left_out, inverted])
def test_each_tensor_left_out_or_turned_round_is_noticed(model, monkeypatch, fault):
    of_one = moved(model.blocks[0].mixer, any_order(model.config))
    assert len(of_one) == 9 + 3 * model.config.proj_bias + model.config.conv_bias
    for name, (_, index) in of_one.items():
        if torch.equal(index, fault(None, index)[1]):
            continue  # two heads that change places are their own inverse
        with monkeypatch.context() as patched:
            patched.setattr(
                reordering,
                "moved",
                lambda m, order, name=name: {k: fault(*t) if k == name else t for k, t in moved(m, order).items()},
            )
            assert apart(model, reordered(model)) > SAME_FUNCTION, name


def test_a_mamba_model_is_refused():
    mamba = build(ModelConfig(architecture="mamba", d_model=16, n_layers=1, vocab_size=8, d_state=4, dt_rank=2))
    with pytest.raises(BadParameter, match="no heads"):
        reorder(mamba, {0: any_order(BASE)})
