"""Registration of operations in torch.library, as quambench::<op>, so that torch.compile and torch.export know them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import torch

from quambench_kernels.dispatch import ran

P = ParamSpec("P")
R = TypeVar("R")

_LIBRARY = torch.library.Library("quambench", "DEF")


def operator(schema: str, fake: Callable[..., Any]) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Register the decorated function; the result calls it through PyTorch's dispatcher.

    schema  "<op>(Tensor x, ...) -> Tensor"; no result may be, or be a view of, an argument
    fake    the same arguments -> empty results of the right shape, dtype and device
    """
    name = schema.partition("(")[0]

    def enter(run: Callable[P, R]) -> Callable[P, R]:
        _LIBRARY.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
        _LIBRARY.impl(name, run, "CompositeExplicitAutograd")
        torch.library.register_fake(f"quambench::{name}", fake, lib=_LIBRARY)
        entered: Callable[P, R] = getattr(torch.ops.quambench, name).default
        return entered

    return enter


def records_gradients(op: str, impl: str, *tensors: torch.Tensor | None) -> bool:
    """Whether autograd is to record this call: a kernel has no backward, so the form in PyTorch runs instead.

    raises ValueError where an implementation was asked for by name
    """
    recorded = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)
    if not recorded:
        return False
    if impl != "auto":
        raise ValueError(f"{op}: implementation {impl!r} has no backward; call it under torch.no_grad()")
    ran(op, "differentiable")
    return True
