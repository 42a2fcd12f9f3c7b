"""Keeping freed memory: set once, and only where glibc is."""

from __future__ import annotations

import sys

import pytest

from quambench.core import memory


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's thresholds exist on Linux alone")
def test_glibc_takes_the_thresholds():
    memory.keep_freed_memory.cache_clear()
    assert memory.keep_freed_memory()


def test_another_platform_is_left_alone(monkeypatch):
    memory.keep_freed_memory.cache_clear()
    monkeypatch.setattr(memory.sys, "platform", "darwin")
    assert not memory.keep_freed_memory()
    memory.keep_freed_memory.cache_clear()
