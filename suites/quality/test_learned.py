"""Scales trained after calibration, from a good start and from a poor one.

`w8a4` rows are stress rows: 4-bit activations, where strategies part that INT8 hardly tells apart.
"""

import pytest


@pytest.mark.cases(
    "percentile",
    "percentile/learned",
    "percentile/adaround",
    "percentile/w8a4",
    "percentile/w8a4/learned",
    "percentile/w8a4/adaround",
    quick=True,
)
def test_learned(case, judge):
    judge(case)
