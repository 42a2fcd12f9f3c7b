"""How weights are quantized: per tensor, split or output channel, clipped or not; and at 4 bits.

`w4a8` rows are stress rows: groups of 128, rounded to nearest or by GPTQ, whose best α the user guide
says is another.
"""

import pytest


@pytest.mark.cases(
    "percentile",
    "percentile/weights=tensor",
    "percentile/weights=split",
    "percentile/weights=channel",
    "percentile/weights=percentile[alpha=0.9999]@channel",
    "percentile/weights=mse@channel",
    quick=True,
)
def test_granularity(case, judge):
    judge(case)


@pytest.mark.cases(
    "percentile/w4a8/weights=group",
    "percentile/w4a8/weights=mse@group",
    "percentile/w4a8/gptq",
    "percentile[alpha=1.0]/w4a8/gptq",
    quick=True,
)
def test_four_bits(case, judge):
    judge(case)
