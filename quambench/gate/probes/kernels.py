"""Probes of the INT8 operators: inputs on which float32 is exact, so that ties are ties on every machine.

SiLU(v) = v from v = 18 on, where 1 + e^-v rounds to 1; softplus(v) = v beyond 20; a step size of 1 with
A = 0 keeps a state, with A = -200 forgets it; rows of +-1 have norm 1; 2^2k values are rotated by sums over 2^k.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from quambench_kernels.hadamard_quantize import hadamard_quantize
from quambench_kernels.int8_causal_conv1d import int8_causal_conv1d
from quambench_kernels.int8_embedding import int8_embedding
from quambench_kernels.int8_linear import int8_linear
from quambench_kernels.int8_selective_scan import int8_selective_scan
from quambench_kernels.int8_ssd import int8_ssd
from quambench_kernels.rms_norm_quantize import add_rms_norm_quantize, gated_rms_norm_quantize, rms_norm_quantize
from torch import Tensor

from quambench.gate.probes.base import Answer, Probe
from quambench.quant.hadamard import base_signs

ONE = torch.tensor(1.0)
ARCHITECTURES = {"int8_selective_scan": "mamba", "int8_ssd": "mamba2"}  # of those that only one has


def probes() -> Iterator[Probe]:
    for name, answer in (
        ("int8_linear", _linear),
        ("int8_causal_conv1d", _conv),
        ("int8_selective_scan", _scan),
        ("int8_ssd", _ssd),
        ("hadamard_quantize", _rotated),
        ("rms_norm_quantize", _normed),
        ("int8_embedding", _embedded),
    ):
        yield Probe(f"kernel/{name}", lambda _, a=answer: a())  # type: ignore[misc]


def _some(*shape: int, step: int = 37, low: int = -128) -> Tensor:
    """int8 of every size and sign, the lowest among them."""
    count = torch.Size(shape).numel()
    return (torch.arange(count) * step % 256 + low).clamp(-128, 127).to(torch.int8).view(shape)


def _linear() -> Answer:
    """Sums times 2^-k plus bias, on grids of 2 and of one step a column: every second one is a tie."""
    x, w = _some(3, 8), _some(6, 8, step=91)
    scale, bias = torch.tensor([1, 2, 4, 8, 16, 32]) / 2**10, torch.arange(6) - 2.5
    tables = {"float": None, "one grid": torch.tensor(2.0), "a grid a column": 2.0 ** torch.arange(6)}
    return {name: int8_linear(x, w, scale, bias, table).float() for name, table in tables.items()}


def _conv() -> Answer:
    """Two calls, the second with the first one's history; from one scale and a table, to one and a table."""
    weight = torch.tensor([[0, 0, 0, 1], [1, 0, 0, 0], [0, 1, 0, -1], [2, -1, 1, 1.0]])
    tables = {"one": torch.tensor(32.0), "table": torch.tensor([32.0, 64.0, 128.0, 16.0])}
    answer: dict[str, Tensor | list[str]] = {}
    for a, x_scale in tables.items():
        for b, out in tables.items():
            x, history = _some(2, 6, 4, low=0), _some(2, 3, 4, low=0)
            for call in ("first", "second"):
                q, history = int8_causal_conv1d(x, x_scale, weight, torch.full((4,), 32.0), history, 2 * out)
                answer[f"{a} to {b}, {call} call"], answer[f"{a} to {b}, {call} history"] = q, history
    return answer


def _scan() -> Answer:
    """The state of five channels, kept or forgotten, in a prefill of three and in three steps; y of the steps."""
    u, ones = _some(1, 3, 5), torch.ones(1, 3, 5, dtype=torch.int8)
    A = torch.tensor([[0.0, -200], [0, 0], [-200, 0], [0, -200], [0, 0]])
    state_scale = torch.tensor([[0.5], [1.0], [2.0], [4.0], [1.0]])

    def call(part: slice, state: Tensor) -> tuple[Tensor, Tensor]:
        B, C = _some(1, 3, 2, low=-3, step=2).clamp(-4, 4), torch.tensor([[[1, 2]]], dtype=torch.int8).expand(1, 3, 2)
        return int8_selective_scan(
            u[:, part], torch.tensor(1 / 64), ones[:, part], ONE, A, B[:, part], torch.tensor(0.5), C[:, part], ONE,
            torch.arange(5.0), torch.full((5,), 31.0), 64 * ones[:, part], ONE, state, state_scale,
        )  # fmt: skip

    return _carried(call, _some(1, 5, 2, step=51), 64.0)


def _ssd() -> Answer:
    """The same of four heads in two SSD groups."""
    x, dt, C = _some(1, 3, 4, 2), torch.zeros(1, 3, 4, dtype=torch.int8), torch.ones(1, 3, 2, 3, dtype=torch.int8)
    state_scale = torch.tensor([0.5, 1, 2, 4]).view(4, 1, 1)

    def call(part: slice, state: Tensor) -> tuple[Tensor, Tensor]:
        B = _some(1, 3, 2, 3, low=-4, step=3).clamp(-4, 4)
        return int8_ssd(
            x[:, part], torch.arange(1, 9) / 4, dt[:, part], ONE, torch.tensor([0.0, -200, 0, 0]), B[:, part],
            torch.tensor(0.5), C[:, part], ONE, torch.arange(4.0), torch.zeros(4), state, state_scale, dt_min=1.0,
            dt_max=1.0,
        )  # fmt: skip

    return _carried(call, _some(1, 4, 2, 3, step=51), 1.0)


def _carried(call, state: Tensor, unit: float) -> Answer:  # type: ignore[no-untyped-def]
    """A prefill's last state, and y (in units) and the state of each of three steps."""
    y, after = call(slice(3), state)
    answer: dict[str, Tensor | list[str]] = {"prefill, y": y / unit, "prefill, state": after}
    for t in range(3):
        y, state = call(slice(t, t + 1), state)
        answer[f"step {t + 1}, y"], answer[f"step {t + 1}, state"] = y / unit, state
    return answer


def _rotated() -> Answer:
    """Ties at 4 and 16; at 48 = 12 * 4 the root is irrational, and no sum falls near a tie."""
    answer: dict[str, Tensor | list[str]] = {}
    for n, scale in ((1, 2.0), (4, 1.0), (16, 0.5), (48, 1.3)):
        x = _some(3, n).float() % 8 - 4
        answer[str(n)] = hadamard_quantize(x, torch.tensor(scale), base_signs(n))
    return answer


def _normed() -> Answer:
    """Rows of +-1 and gains of whole and half steps: plain, after adding, gated before and after the norm."""
    sign = torch.where(torch.arange(42) % 3 == 0, -1.0, 1.0).repeat(2, 1)
    gain, z = (torch.arange(42) - 20) / 2, torch.full((2, 42), 64, dtype=torch.int8)
    answer: dict[str, Tensor | list[str]] = {"plain": rms_norm_quantize(sign, gain, 0.0, ONE)}
    added, total = add_rms_norm_quantize(sign / 4, 3 * sign / 4, gain, 0.0, ONE)
    answer |= {"added": added, "residual stream": total}
    for first in (False, True):
        x, scale = (sign, torch.tensor(64.0)) if first else (sign / 64, ONE)
        answer[f"gated, norm first {first}"] = gated_rms_norm_quantize(
            x, z, ONE, gain, 0.0, scale, n_groups=2, norm_before_gate=first
        )
    return answer


def _embedded() -> Answer:
    table, tokens = _some(7, 5), torch.tensor([[6, 0, 3], [3, 5, 1]])
    return {"rows": int8_embedding(tokens, table, 2.0 ** -torch.arange(7))}
