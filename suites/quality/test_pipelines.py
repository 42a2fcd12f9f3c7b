"""Whole pipelines at the precisions that Quamba2 has: all of 8 bits, weights of 4, activations float, and by layer.

Weights of 4 bits are GPTQ's, in groups of 128. In a mix the ends have float activations; it is of one depth, and
only models of that depth run it. w8a16 has no row of quamba2: without scales of activations there is nothing to group.
"""

import pytest


@pytest.mark.cases(
    "percentile",
    "percentile/w8a16",
    "percentile/w4a8/gptq",
    "percentile/w4a16/gptq",
    quick=True,
)
def test_quamba(case, judge):
    judge(case)


@pytest.mark.cases("percentile/mix[w4a16,w4a8*3,w4a16]/gptq", "percentile/mix[w4a16,w4a8*2,w4a16]/gptq", quick=True)
def test_quamba_by_layer(case, judge):
    judge(case)


@pytest.mark.cases(
    "running_max/4x4/quamba2",
    "running_max/4x4/quamba2/w4a8/gptq",
    "running_max/4x4/quamba2/w4a16/gptq",
    "running_max/4x4/quamba2/mix[w4a16,w4a8*2,w4a16]/gptq",
    quick=True,
    architecture="mamba2",
)
def test_quamba2(case, judge):
    judge(case)
