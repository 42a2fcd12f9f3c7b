"""The registry, and the message of an unknown name."""

from __future__ import annotations

import pytest

from quambench.core.errors import UnknownName
from quambench.core.registry import Registry


@pytest.fixture
def fruit():
    registry: Registry[int] = Registry("fruit", "orchard/")
    registry.add("apple", 1)
    registry.register("pear")(2)
    return registry


def test_entries_are_found_by_name(fruit):
    assert dict(fruit) == {"apple": 1, "pear": 2}
    assert "pear" in fruit


def test_an_unknown_name_says_what_is_known_and_what_is_near(fruit):
    with pytest.raises(UnknownName) as caught:
        fruit["aple"]
    message = str(caught.value)
    assert all(part in message for part in ("no fruit named 'aple'", "'apple'", "apple, pear", "orchard/"))


def test_a_name_is_given_once(fruit):
    with pytest.raises(ValueError, match="twice"):
        fruit.add("apple", 3)
