"""What finer scales gain, wherever the consumer of a site can work with them.

A moving average of percentiles needs many values per scale and batch: per channel and n it sees one, and
averages what a maximum would keep.

`w8a4` rows are stress rows: 4-bit activations, where strategies part that INT8 hardly tells apart.
"""

import pytest


@pytest.mark.cases(
    "percentile",
    "percentile/head",
    "percentile/channel",
    "percentile/channel_state",
    "running_max",
    "running_max/channel",
    "running_max/channel_state",
    "percentile/w8a4",
    "percentile/channel/w8a4",
    quick=True,
)
def test_channels(case, judge):
    judge(case)
