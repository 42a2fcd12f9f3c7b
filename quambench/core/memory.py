"""Keep freed memory in the process: large temporaries then cost no page faults.

glibc returns every block above a threshold to the system and faults it in again at the next
allocation; with the scans' temporaries that was half of an evaluation's time (docs/performance.md).
"""

from __future__ import annotations

import ctypes
import sys
from functools import cache

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h
_KEEP = 1 << 30  # bytes


@cache
def keep_freed_memory() -> bool:
    """Raise glibc's thresholds, once per process; False where there is no glibc."""
    if sys.platform != "linux":
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and all(mallopt(p, _KEEP) for p in (_M_MMAP_THRESHOLD, _M_TRIM_THRESHOLD))


def give_back() -> None:
    """Return freed memory to the system after all, where there is glibc. Called before memory is measured."""
    if sys.platform == "linux" and (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)):
        trim(0)
