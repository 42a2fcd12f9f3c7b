"""Comparisons that decide: what is no number decides nothing."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quambench.core.errors import NonFinite
from quambench.gate.deciding import beyond, larger

FINITE = st.floats(allow_nan=False, allow_infinity=False)
NO_NUMBER = (math.nan, math.inf, -math.inf)


@given(FINITE, FINITE)
def test_numbers_compare_as_numbers(value, limit):
    assert beyond(value, limit, "x") == (value > limit)
    assert larger(value, limit, what="x") == max(value, limit)


@pytest.mark.parametrize("spoilt", NO_NUMBER)
def test_what_is_no_number_is_refused_on_either_side_and_named(spoilt):
    for value, limit in ((spoilt, 1.0), (1.0, spoilt)):
        with pytest.raises(NonFinite, match="decode_kl"):
            beyond(value, limit, "decode_kl")
    for values in ((spoilt, 1.0), (1.0, spoilt), (0.0, spoilt, 1.0)):
        with pytest.raises(NonFinite, match="decode_kl"):
            larger(*values, what="decode_kl")


def test_what_python_makes_of_it_depends_on_the_order():
    """The reason for `larger`: a NaN as noise floor hides everything, or nothing."""
    assert math.isnan(max(math.nan, 1.0))
    assert max(1.0, math.nan) == 1.0
