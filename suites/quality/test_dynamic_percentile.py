"""An α for each site, chosen by fake-quantization error, against one α for all.

`w8a4` rows are stress rows: 4-bit activations, where strategies part that INT8 hardly tells apart.
"""

import pytest


@pytest.mark.cases(
    "dynamic_percentile",
    "dynamic_percentile/channel",
    "dynamic_percentile/w8a4",
)
def test_dynamic_percentile(case, judge):
    judge(case)
