"""Keeping freed memory: set once, and only where glibc is."""

from __future__ import annotations

import sys

import pytest

from quambench import allocator


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's thresholds exist on Linux alone")
def test_glibc_takes_the_thresholds():
    allocator.keep_freed_memory.cache_clear()
    assert allocator.keep_freed_memory()


def test_another_platform_is_left_alone(monkeypatch):
    allocator.keep_freed_memory.cache_clear()
    monkeypatch.setattr(allocator.sys, "platform", "darwin")
    assert not allocator.keep_freed_memory()
    allocator.keep_freed_memory.cache_clear()
