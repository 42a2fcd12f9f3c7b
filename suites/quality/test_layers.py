"""Layers treated apart: by where they stand, or by what each site was measured to cost.

`w8a4` rows are stress rows: 4-bit activations, where strategies part that INT8 hardly tells apart.
"""

import pytest


@pytest.mark.cases(
    "percentile",
    "percentile/uniform",
    "percentile/first_middle_last",
    "percentile/scale_multiplier[layers=ends]",
    "percentile/sensitivity",
    "percentile/sensitivity[floats=6]",
    "percentile/w8a4",
    "percentile/sensitivity/w8a4",
    quick=True,
)
def test_layers(case, judge):
    judge(case)
