"""What the INT8 state costs, where only the state can answer: recall, decoded token by token.

Prefill never reads the carried state and prose hardly does; a recall model gives wrong answers.
"""

import pytest


@pytest.mark.cases(
    "percentile[alpha=0.999]",
    "percentile[alpha=0.9995]",
    "percentile[alpha=0.99999]",
    "running_max",
    language="recall",
)
def test_int8_state(case, judge):
    judge(case)


@pytest.mark.cases("percentile[alpha=0.9995]/w8a8-float_ssm_state", language="recall")
def test_float_state(case, judge):
    judge(case)
