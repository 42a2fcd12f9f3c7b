"""Where the grid should end: formulas that trade clipping against resolution, at the percentile sites and everywhere.

`w8a4` and `w8a6` rows are stress rows: fewer bits, where strategies part that INT8 hardly tells apart.
"""

import pytest


@pytest.mark.cases(
    "running_max",
    "running_max[clip_ratio=0.9]",
    "mse[low=0.8,steps=20]",
    "mse",
    "aciq",
    "gauss_2.5sigma",
    "entropy",
    "kl",
    quick=True,
)
def test_clipping(case, judge):
    judge(case)


@pytest.mark.cases(
    "running_max/w8a4",
    "mse/w8a4",
    "aciq/w8a4",
    "gauss_2.5sigma/w8a4",
    "entropy/w8a4",
    "kl/w8a4",
    quick=True,
)
def test_clipping_at_four_bits(case, judge):
    judge(case)


@pytest.mark.cases(
    "running_max/w8a6",
    "mse/uniform",
    "mse/uniform/w8a6",
    quick=True,
)
def test_clipping_everywhere(case, judge):
    judge(case)
