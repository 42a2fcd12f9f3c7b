"""An α for each site, chosen by fake-quantization error, against one α for all.

`w8a4` rows are stress rows: 4-bit activations, where strategies part that INT8 hardly tells apart.
"""

import pytest


@pytest.mark.cases(
    "percentile",
    "dynamic_percentile",
    "percentile/w8a4",
    "dynamic_percentile/w8a4",
    quick=True,
)
def test_dynamic_percentile(case, judge):
    judge(case)
