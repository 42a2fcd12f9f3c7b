"""Wrappers for float16 and bfloat16 around implementations that compute in the dtype they are given."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar

import torch
from torch import Tensor

R = TypeVar("R")

NARROW = (torch.float16, torch.bfloat16)
UP_TO_FLOAT32 = (torch.float32, *NARROW)


def in_float32(run: Callable[..., R], state: int | None = None) -> Callable[..., R]:
    """Return `run` with narrow arguments widened before and its results rounded once, after.

    A sum or a state that is rounded at every step keeps three digits of float16's, two of bfloat16's; the published
    kernels compute in float32 too.

    state    which argument the second result takes its dtype from; None: the first, as the first result does
    """

    @wraps(run)
    def call(*args: Any) -> Any:
        narrow = args[0].dtype
        if narrow not in NARROW:
            return run(*args)
        found: Any = run(*(a.float() if isinstance(a, Tensor) and a.dtype in NARROW else a for a in args))
        if isinstance(found, Tensor):
            return _rounded(found, narrow)
        first, second = found
        return _rounded(first, narrow), _rounded(second, narrow if state is None else args[state].dtype)

    return call


def _rounded(x: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    return x.to(dtype) if x is not None and x.is_floating_point() else x
