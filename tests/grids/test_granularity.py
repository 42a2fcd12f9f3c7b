"""Layouts: which values share a scale, and which scale meets which value."""

from __future__ import annotations

import pytest
import torch

from quambench.grids.granularity import GRANULARITIES, Layout, layout
from quambench.models import ModelConfig
from quambench.models.sites import ARCHITECTURES

MAMBA = ModelConfig(architecture="mamba", d_model=4, n_layers=1, vocab_size=8, d_state=3, dt_rank=2)
MAMBA2 = ModelConfig(
    architecture="mamba2", d_model=4, n_layers=1, vocab_size=8, d_state=3, head_dim=2, n_groups=2
)  # E = 8: H = 4 heads of P = 2
ALLOWED = [
    pytest.param(config, site.name, name, id=f"{config.architecture}-{site.name}-{name}")
    for config in (MAMBA, MAMBA2)
    for site in ARCHITECTURES[config.architecture].sites
    for name in site.allowed
]


def tensor_of(config, site):
    """Values that tell where they stand, of a site's shape; as many sequences as positions."""
    c = config
    bc = c.n_groups * c.d_state
    widths = {
        "in_proj:input": c.d_model, "in_proj:output": 2 * c.d_inner, "x_proj:output": c.dt_rank + 2 * c.d_state,
        "B_conv_in": bc, "C_conv_in": bc, "B_conv_out": bc, "C_conv_out": bc,
    }  # fmt: skip
    if site == "ssm_state":
        shape = (2, 8, 3) if c.architecture == "mamba" else (2, 4, 2, 3)
    else:
        shape = (2, 3, 4 if site == "dt" else widths.get(site, c.d_inner))
    return torch.arange(float(torch.Size(shape).numel())).view(shape)


def test_tensor_gives_one_group_per_observation():
    x = torch.arange(24.0).view(2, 3, 4)  # B, L, C
    (laid_out,) = layout("tensor", "layers.0.z", MAMBA2).lay_out(x)
    assert laid_out.shape == (6, 4)
    assert laid_out[4].tolist() == [16, 17, 18, 19]  # sequence 1, position 1


def test_tensor_takes_a_state_whole():
    state = torch.arange(48.0).view(2, 2, 3, 4)  # B, H, P, N
    assert layout("tensor", "layers.1.ssm_state", MAMBA2).lay_out(state)[0].shape == (2, 24)


def test_channel_gives_each_channel_its_own():
    (laid_out,) = layout("channel", "z", MAMBA2).lay_out(torch.arange(48.0).view(2, 3, 8))
    assert laid_out.shape == (6, 8, 1)
    assert laid_out[:, 1, 0].tolist() == [1, 9, 17, 25, 33, 41]


def test_a_channel_of_a_state_is_all_its_n():
    (laid_out,) = layout("channel", "ssm_state", MAMBA2).lay_out(tensor_of(MAMBA2, "ssm_state"))
    assert laid_out.shape == (2, 4, 2, 3)  # n_obs, (H, P), N
    assert laid_out[1, 3, 0].tolist() == [42, 43, 44]
    (laid_out,) = layout("channel", "ssm_state", MAMBA).lay_out(tensor_of(MAMBA, "ssm_state"))
    assert laid_out[0, 7].tolist() == [21, 22, 23]


def test_a_head_is_its_channels_and_of_a_state_all_it_has():
    (laid_out,) = layout("head", "x_conv_out", MAMBA2).lay_out(tensor_of(MAMBA2, "x_conv_out"))
    assert laid_out.shape == (6, 4, 2)
    assert laid_out[1, 2].tolist() == [12, 13]
    (laid_out,) = layout("head", "ssm_state", MAMBA2).lay_out(tensor_of(MAMBA2, "ssm_state"))
    assert laid_out[0, 1].tolist() == [6, 7, 8, 9, 10, 11]
    (laid_out,) = layout("head", "dt", MAMBA2).lay_out(tensor_of(MAMBA2, "dt"))
    assert laid_out.shape == (6, 4, 1)


def test_an_ssd_group_is_its_n_values():
    (laid_out,) = layout("ssd_group", "B_conv_out", MAMBA2).lay_out(tensor_of(MAMBA2, "B_conv_out"))
    assert laid_out[1].tolist() == [[6, 7, 8], [9, 10, 11]]


def test_the_parts_of_a_split_are_observed_apart():
    low, B, C = layout("split", "x_proj:output", MAMBA).lay_out(tensor_of(MAMBA, "x_proj:output"))
    assert [part.shape for part in (low, B, C)] == [(6, 2), (6, 3), (6, 3)]
    assert B[1].tolist() == [10, 11, 12]
    x, z = layout("split", "in_proj:output", MAMBA).lay_out(tensor_of(MAMBA, "in_proj:output"))
    assert z[0].tolist() == list(range(8, 16))


def met(made: Layout, x):
    """Each value's own scale, were scales the largest magnitudes of what shares one."""
    parts = made.lay_out(x)
    tops = [part.amax(dim=(0, -1)) for part in parts]
    return made.expand(tops[0] if len(tops) == 1 else torch.stack(tops)).expand(x.shape)


@pytest.mark.parametrize(("config", "site", "name"), ALLOWED)
def test_every_value_meets_the_scale_that_it_was_observed_for(config, site, name):
    """Values are seen by the scale that they meet, and by no other: raising one raises its own scale alone."""
    made, x = layout(name, site, config), tensor_of(config, site)
    scales = met(made, x)
    assert (scales >= x).all()
    for at in range(0, x.numel(), 5):
        raised = x.clone()
        raised.view(-1)[at] = 1000.0
        after = met(made, raised)
        shared = after == 1000.0
        assert shared.view(-1)[at]
        assert torch.equal(after[~shared], scales[~shared])


@pytest.mark.parametrize(("config", "site", "name"), ALLOWED)
def test_nothing_is_lost_and_nothing_seen_twice(config, site, name):
    x = tensor_of(config, site)
    seen = torch.cat([part.reshape(-1) for part in layout(name, site, config).lay_out(x)])
    assert torch.equal(seen.sort().values, x.reshape(-1))


def test_the_check_sees_scales_one_channel_on():
    made = layout("channel", "z", MAMBA2)
    wrong = Layout(made.lay_out, lambda scale: scale.roll(1, 0))
    x = tensor_of(MAMBA2, "z")
    assert not (met(wrong, x) >= x).all()


def test_coarse_comes_before_fine():
    x = tensor_of(MAMBA2, "ssm_state")
    names = [
        name
        for name in GRANULARITIES
        if name in {g for s in ARCHITECTURES["mamba2"].sites if s.name == "ssm_state" for g in s.allowed}
    ]
    counts = [layout(name, "ssm_state", MAMBA2).lay_out(x)[0].shape[1:-1].numel() for name in names]
    assert counts == sorted(counts) == [1, 4, 8, 24]
