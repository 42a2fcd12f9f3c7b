"""What the INT8 state costs, where only the state can answer: recall, decoded token by token.

Prefill never reads the carried state and prose hardly does; a recall model gives wrong answers.
"""

import pytest

from quambench.quant.quantized import Precision


@pytest.mark.observers(
    "percentile[alpha=0.999]",
    "percentile[alpha=0.9995]",
    "percentile[alpha=0.99999]",
    "running_max",
    language="recall",
)
def test_int8_state(case, judge):
    judge(case)


@pytest.mark.observers("percentile[alpha=0.9995]", language="recall", precision=Precision(ssm_state=False))
def test_float_state(case, judge):
    judge(case)
