"""What the symmetric grid wastes on one-sided values. The asymmetric one is for comparison: the runtime has none.

`w8a4` rows are stress rows: 4-bit activations, where strategies part that INT8 hardly tells apart.
"""

import pytest


@pytest.mark.cases(
    "percentile",
    "percentile/w8a8-asymmetric",
    "running_max",
    "running_max/w8a8-asymmetric",
    "percentile/w8a4",
    "percentile/w8a4-asymmetric",
    quick=True,
)
def test_symmetry(case, judge):
    judge(case)
