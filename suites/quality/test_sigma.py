"""What σ costs: the weight of the newest batch in the percentile's moving average."""

import pytest


@pytest.mark.cases(
    "percentile[sigma=0.01]",
    "percentile[sigma=0.05]",
    "percentile[sigma=0.1]",
    "percentile[sigma=0.2]",
    "percentile[sigma=0.3]",
)
def test_sigma(case, judge):
    judge(case)
