"""The kernels of the packages mamba_ssm and causal_conv1d, as implementations of the float operations on CUDA.

Where they are installed, and can be imported, "auto" takes them first: they are what the published models were made
with. They lay sequences out as (B, channels, L) and know no initial state in the selective scan. Nothing of them is
imported before a CUDA device asks.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from quambench_kernels.dispatch import register
from quambench_kernels.narrow import UP_TO_FLOAT32

NAMES = {"causal_conv1d": "causal-conv1d", "mamba_ssm": "mamba-ssm"}  # module -> distribution
WIDTHS = range(2, 5)  # of convolutions that causal_conv1d has kernels for
_SCAN = "mamba_ssm.ops.selective_scan_interface"
_STEP = "mamba_ssm.ops.triton.selective_state_update"
_SSD = "mamba_ssm.ops.triton.ssd_combined"
_PARTS = {"causal_conv1d": ["causal_conv1d"], "mamba_ssm": [_SCAN, _STEP, _SSD]}


@cache
def _why_not(module: str) -> str | None:
    if not find_spec(module):
        return f"the package {NAMES[module]} is not installed"
    try:
        for part in _PARTS[module]:
            import_module(part)
    except Exception as error:  # built for another torch, or another CUDA: the loader's errors are of any kind
        return f"the package {NAMES[module]} cannot be imported here ({type(error).__name__})"
    return None


def register_upstream(op: str, module: str, run: Any, sizes: range | None = None) -> None:
    """Enter `run`, which calls `module`, under that name."""
    register(op, module, run, devices=("cuda",), dtypes=UP_TO_FLOAT32, why_not=lambda: _why_not(module), sizes=sizes)


def causal_conv1d(x: Tensor, weight: Tensor, bias: Tensor | None, history: Tensor, silu: bool) -> Tensor:
    """Compute causal_conv1d_ref, with its signature, for widths 2 to 4.

    The kernel takes a history where the number of channels is a multiple of eight; elsewhere it is put in front of x.
    """
    run: Callable[..., Tensor] = import_module("causal_conv1d").causal_conv1d_fn
    activation = "silu" if silu else None
    if x.shape[2] % 8:
        y = run(torch.cat([history, x], dim=1).transpose(1, 2).contiguous(), weight, bias, activation=activation)
        return y.transpose(1, 2)[:, history.shape[1] :].clone(memory_format=torch.contiguous_format)
    if x.stride(2) != 1 or x.stride(0) % 8 or x.stride(1) % 8:
        x = x.contiguous()
    past = history.contiguous().transpose(1, 2)
    y = run(x.transpose(1, 2), weight.contiguous(), bias, initial_states=past, activation=activation)
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
    """Compute selective_scan_ref, with its signature. From a state that is not zero, or for one position, it goes
    by steps.
    """
    softplus = dt_bias is not None
    A, D, bias = A.float(), D.float(), None if dt_bias is None else dt_bias.float()
    if u.shape[1] == 1 or bool(state.any()):
        step = import_module(_STEP).selective_state_update
        now, ys = state.clone(), []
        for t in range(u.shape[1]):
            gate = None if z is None else z[:, t]
            ys.append(step(now, u[:, t], dt[:, t], A, B[:, t], C[:, t], D, z=gate, dt_bias=bias, dt_softplus=softplus))
        return (torch.stack(ys, dim=1) if ys else torch.empty_like(u)), now
    run = import_module(_SCAN).selective_scan_fn
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
    """Compute ssd_ref, with its signature.

    One position goes through the step's kernel, which knows no limits of Δ; chunks are rounded up to a power of two,
    which changes no sum that counts.
    """
    A, softplus = A.float(), dt_bias is not None
    limits = (0.0, float("inf")) if dt_bias is None else (dt_min, dt_max)
    if x.shape[1] == 1 and limits == (0.0, float("inf")):
        step = import_module(_STEP).selective_state_update
        heads, head_dim = x.shape[2:]
        by_channel = None if D is None else (D if D.ndim == 2 else D[:, None].expand(heads, head_dim))
        bias = None if dt_bias is None else dt_bias[:, None].expand(heads, head_dim)
        rates = A[:, None, None].expand(heads, head_dim, state.shape[-1])
        now, steps = state.clone(), dt[:, 0, :, None].expand(-1, -1, head_dim)
        y = step(now, x[:, 0], steps, rates, B[:, 0], C[:, 0], by_channel, dt_bias=bias, dt_softplus=softplus)
        return y[:, None], now
    run = import_module(_SSD).mamba_chunk_scan_combined
    y, last = run(
        x, dt, A, B, C, max(16, 1 << (chunk - 1).bit_length()), D=D, dt_bias=dt_bias, initial_states=state,
        dt_softplus=softplus, dt_limit=limits, return_final_states=True,
    )  # fmt: skip
    return y, last.to(state.dtype)
