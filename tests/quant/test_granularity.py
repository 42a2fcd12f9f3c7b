"""Layouts: which values share a scale."""

from __future__ import annotations

import torch

from quambench.quant.granularity import GRANULARITIES


def test_tensor_gives_one_group_per_observation():
    x = torch.arange(24.0).view(2, 3, 4)  # B, L, C
    laid_out = GRANULARITIES["tensor"].lay_out(x)
    assert laid_out.shape == (6, 4)
    assert laid_out[4].tolist() == [16, 17, 18, 19]  # sequence 1, position 1


def test_tensor_takes_a_state_whole():
    state = torch.arange(48.0).view(2, 2, 3, 4)  # B, H, P, N
    assert GRANULARITIES["tensor"].lay_out(state).shape == (2, 24)


def test_channel_gives_each_channel_its_own():
    x = torch.arange(24.0).view(2, 3, 4)
    laid_out = GRANULARITIES["channel"].lay_out(x)
    assert laid_out.shape == (6, 4, 1)
    assert laid_out[:, 1, 0].tolist() == [1, 5, 9, 13, 17, 21]


def test_expanded_scales_broadcast_to_the_tensor():
    x = torch.ones(2, 3, 4)
    assert (x * GRANULARITIES["tensor"].expand(torch.tensor(2.0), x)).unique().tolist() == [2.0]
    scale = torch.arange(4.0)
    assert (x * GRANULARITIES["channel"].expand(scale, x))[1, 2].tolist() == [0, 1, 2, 3]
