"""What a warm-up costs or gains: σ large over the first batches, small later, against a fixed σ.

`w8a4` rows are stress rows: 4-bit activations, where strategies part that INT8 hardly tells apart.
"""

import pytest


@pytest.mark.cases(
    "percentile",
    "warmup_percentile",
    "percentile[sigma=0.1]/w8a4",
    "warmup_percentile/w8a4",
    quick=True,
)
def test_warmup(case, judge):
    judge(case)
