"""Checks of operations' arguments; each refusal is one line that names the operation."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import torch
from torch import Tensor

from quambench_kernels.narrow import NARROW

FLOATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


class Checks:
    """The checks of one call. Every method raises ValueError; a size given as None may be anything."""

    def __init__(self, op: str) -> None:
        self.op = op

    def refuse(self, text: str) -> None:
        raise ValueError(f"{self.op}: {text}")

    def shape(self, name: str, x: Tensor, *sizes: int | None) -> None:
        if x.shape == sizes:
            return
        if x.ndim != len(sizes) or any(n is not None and n != m for n, m in zip(sizes, x.shape, strict=True)):
            wanted = ", ".join("any" if n is None else str(n) for n in sizes)
            self.refuse(f"{name} must be ({wanted}) (got {tuple(x.shape)})")

    def scale(self, name: str, x: Tensor, *sizes: int | None) -> None:
        """Check that x is float32 of one of the sizes; None stands for a single scale, of shape ()."""
        if x.dtype != torch.float32 or not ((x.ndim == 0 and None in sizes) or (x.ndim == 1 and x.shape[0] in sizes)):
            wanted = " or ".join("()" if n is None else f"({n},)" for n in sizes)
            self.refuse(f"{name} must be {wanted} float32 (got {tuple(x.shape)} {x.dtype})")

    def broadcasts(self, name: str, x: Tensor, *sizes: int) -> None:
        """Check that x is a float32 scale whose shape broadcasts to these sizes."""
        fits = x.ndim <= len(sizes) and all(m in (1, n) for m, n in zip(x.shape[::-1], sizes[::-1], strict=False))
        if x.dtype != torch.float32 or not fits:
            self.refuse(f"{name} must be float32 and broadcast to {sizes} (got {tuple(x.shape)} {x.dtype})")

    def dtype(self, name: str, x: Tensor, *dtypes: torch.dtype) -> None:
        if x.dtype not in dtypes:
            self.refuse(f"{name} must be {' or '.join(str(d) for d in dtypes)} (got {x.dtype})")

    def together(self, **tensors: Tensor | None) -> None:
        """Check that tensors are on one device."""
        if len({x.device for x in tensors.values() if x is not None}) > 1:
            found = {name: x.device for name, x in tensors.items() if x is not None}
            self.refuse(f"all must be on one device (got {', '.join(f'{n}: {d}' for n, d in found.items())})")

    def alike(self, beside: Mapping[str, Tensor | None] = MappingProxyType({}), /, **tensors: Tensor | None) -> None:
        """Check that tensors are on one device and of one floating dtype; those `beside` may be float32 where it is
        narrower.
        """
        self.together(**tensors, **beside)
        dtypes = {x.dtype for x in tensors.values() if x is not None}
        others = {x.dtype for x in beside.values() if x is not None}
        if dtypes.issubset(NARROW):
            others.discard(torch.float32)
        dtypes |= others
        if len(dtypes) > 1 or not dtypes.issubset(FLOATS):
            found = {name: x.dtype for name, x in (tensors | dict(beside)).items() if x is not None}
            self.refuse(f"all must be of one floating dtype (got {', '.join(f'{n}: {d}' for n, d in found.items())})")

    def positive(self, name: str, n: int) -> None:
        if n < 1:
            self.refuse(f"{name} must be at least 1 (got {n})")

    def q_max(self, q_max: int) -> None:
        if not 1 <= q_max <= 127:
            self.refuse(f"q_max must be from 1 to 127 (got {q_max})")


def dense_rows(x: Tensor) -> Tensor:
    """Return x (B, L, ...) with everything after the second axis dense, copied if need be, for kernels that walk
    rows.
    """
    dense = 1
    for size, stride in zip(reversed(x.shape[2:]), reversed(x.stride()[2:]), strict=True):
        if size != 1 and stride != dense:
            return x.contiguous()
        dense *= size
    return x
