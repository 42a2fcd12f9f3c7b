"""What α costs: the share of |x| that the percentile sites keep, against the plain maximum."""

import pytest


@pytest.mark.cases(
    "percentile[alpha=0.999]",
    "percentile[alpha=0.9995]",
    "percentile[alpha=0.9999]",
    "percentile[alpha=0.99999]",
    "percentile[alpha=1.0]",
    "running_max",
)
def test_alpha(case, judge):
    judge(case)
