"""Implementations in Triton, entered without importing it: it is imported when the first of them is called."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch

from quambench_kernels.dispatch import register

# What the kernels load and store, where an operation takes floats; between, they compute in float32.
FLOATS = (torch.float32, torch.float16, torch.bfloat16)


@dataclass(frozen=True, slots=True)
class Later:
    """A function of quambench_kernels.<op>.triton that is imported when it is called.

    fused  another, which in one kernel also does the step after this one; see int8_linear
    """

    op: str
    name: str
    fused: Later | None = None

    def __call__(self, *args: Any) -> Any:
        return getattr(import_module(f"quambench_kernels.{self.op}.triton"), self.name)(*args)


@cache
def why_not() -> str | None:
    """Return the reason why no kernel of Triton can run here, or None; for dispatch.register."""
    return None if find_spec("triton") else "triton is not installed"


def register_triton(op: str, run: Later) -> None:
    """Enter `run` as "triton". Where Triton interprets, it runs on a CPU too, by name alone: it is slow there."""
    interpreted = os.environ.get("TRITON_INTERPRET") == "1"
    devices = ("cpu", "cuda") if interpreted else ("cuda",)
    register(op, "triton", run, devices=devices, dtypes=FLOATS, why_not=why_not, auto=lambda: not interpreted)
