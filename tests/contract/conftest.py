"""Fixtures that the suites of several registries share. A rule is a function `check_...`; its twin is a fault."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import pytest


@pytest.fixture(scope="session")
def rejected() -> Callable[[str], AbstractContextManager[None]]:
    """rejected(part of the message): a block in which a check must fail, and say in one line what to do."""

    @contextmanager
    def block(says: str) -> Iterator[None]:
        with pytest.raises(AssertionError) as caught:
            yield
        message = str(caught.value).partition("\nassert ")[0]  # behind it pytest explains the expression
        assert "\n" not in message
        assert says in message

    return block
