"""The kernels of the packages mamba_ssm and causal_conv1d, as implementations of the float operations: by name alone.

They lay sequences out as (B, channels, L) and know no initial state in the selective scan. Nothing of them is
imported before one is called.
"""

from __future__ import annotations

from functools import cache
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from quambench_kernels.dispatch import register

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
NAMES = {"causal_conv1d": "causal_conv1d", "mamba_ssm": "mamba-ssm"}  # module -> distribution


@cache
def _why_not(module: str) -> str | None:
    return None if find_spec(module) else f"the package {NAMES[module]} is not installed"


def register_upstream(op: str, module: str, run: Any) -> None:
    """Enter `run`, which calls `module`, under that name."""
    register(
        op, module, run, devices=("cuda",), dtypes=DTYPES, why_not=lambda: _why_not(module), auto=lambda: False
    )  # fmt: skip


def causal_conv1d(x: Tensor, weight: Tensor, bias: Tensor | None, history: Tensor, silu: bool) -> Tensor:
    """causal_conv1d_ref's signature, widths 2 to 4."""
    run = import_module("causal_conv1d").causal_conv1d_fn
    past = history.transpose(1, 2)
    y = run(x.transpose(1, 2), weight, bias, initial_states=past, activation="silu" if silu else None)
    return y.transpose(1, 2).contiguous()


def selective_scan(
    u: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    state: Tensor,
    dt_bias: Tensor | None,
    z: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """selective_scan_ref's signature. From a state that is not zero, or for one position, it goes step by step."""
    softplus = dt_bias is not None
    A, D, bias = A.float(), D.float(), None if dt_bias is None else dt_bias.float()
    if u.shape[1] == 1 or bool(state.any()):
        step = import_module("mamba_ssm.ops.triton.selective_state_update").selective_state_update
        now, ys = state.clone(), []
        for t in range(u.shape[1]):
            gate = None if z is None else z[:, t]
            ys.append(step(now, u[:, t], dt[:, t], A, B[:, t], C[:, t], D, z=gate, dt_bias=bias, dt_softplus=softplus))
        return (torch.stack(ys, dim=1) if ys else torch.empty_like(u)), now
    run = import_module("mamba_ssm.ops.selective_scan_interface").selective_scan_fn
    u, dt, B, C = (m.transpose(1, 2).contiguous() for m in (u, dt, B, C))
    gate = None if z is None else z.transpose(1, 2).contiguous()
    y, last = run(u, dt, A, B, C, D, z=gate, delta_bias=bias, delta_softplus=softplus, return_last_state=True)
    return y.transpose(1, 2), last.to(state.dtype)


def ssd(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    state: Tensor,
    dt_bias: Tensor | None,
    dt_min: float,
    dt_max: float,
    chunk: int,
) -> tuple[Tensor, Tensor]:
    """ssd_ref's signature."""
    run = import_module("mamba_ssm.ops.triton.ssd_combined").mamba_chunk_scan_combined
    limits = (0.0, float("inf")) if dt_bias is None else (dt_min, dt_max)
    y, last = run(
        x, dt, A.float(), B, C, chunk, D=D, dt_bias=dt_bias, initial_states=state, dt_softplus=dt_bias is not None,
        dt_limit=limits, return_final_states=True,
    )  # fmt: skip
    return y, last.to(state.dtype)
