"""How many scales heads and channels of Mamba2 share, from one per SSD group to one per channel.

Quamba's recipe, one scale per tensor, and then all under Quamba2's: there, what differs is x after the
convolution and the state, which has as many per n.
"""

import pytest

GROUPINGS = ("1x1", "2x2", "4x4", "8x8", "16x16", "head", "channel", "adaptive")


@pytest.mark.cases(
    "percentile",
    "running_max",
    "mse",
    *(f"{observer}/{grouping}/quamba2" for grouping in GROUPINGS for observer in ("percentile", "running_max", "mse")),
    quick=True,
    architecture="mamba2",
)
def test_groups(case, judge):
    judge(case)


@pytest.mark.cases(
    "running_max/4x4[method=dp]/quamba2",
    "running_max/4x4[method=quamba_exact]/quamba2",
    "running_max/16x16[method=dp]/quamba2",
    "running_max/adaptive[rule=variance]/quamba2",
    "running_max/adaptive[method=dp]/quamba2",
    quick=True,
    architecture="mamba2",
)
def test_clusterings(case, judge):
    judge(case)


@pytest.mark.cases(
    "running_max/w8a4",
    "running_max/1x1/quamba2/w8a4",
    "running_max/4x4/quamba2/w8a4",
    "running_max/16x16/quamba2/w8a4",
    "running_max/channel/quamba2/w8a4",
    quick=True,
    architecture="mamba2",
)
def test_groups_at_four_bits(case, judge):
    judge(case)
