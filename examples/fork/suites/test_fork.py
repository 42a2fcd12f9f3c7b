"""What this fork has of its own, each beside what it stands in for."""

import pytest


@pytest.mark.cases("percentile", "calib.observer:SlowPercentile", quick=True, architecture="mamba2")
def test_observer(case, judge):
    judge(case)


@pytest.mark.cases(
    "running_max/4x4/quamba2", "running_max/calib.reorder:by_loudness/quamba2", quick=True, architecture="mamba2"
)
def test_grouping(case, judge):
    judge(case)


@pytest.mark.cases("running_max/uniform", "calibration=calib.scales:calibrate", quick=True, architecture="mamba2")
def test_calibration(case, judge):
    judge(case)
