"""Questions to the operators of quambench_kernels, which every implementation must answer alike.

Each has two parts. `exact`: inputs on which float32 is exact, so that ties are ties on every machine: SiLU(v) = v from
v = 18 on, where 1 + e^-v rounds to 1, and rounds to 0 from -32 down; softplus(v) = v beyond 20; a step size of 1 with
A = 0 keeps a state, with A = -200 forgets it; rows of +-1 have norm 1, with eps = 3 norm 2; 2^2k values are rotated by
sums over 2^k. `rounded`: ordinary numbers, none of which comes nearer to a rounding tie than float32 can be off.

Sizes are chosen for what they leave over: every remainder of the vectors that C++ works in, more than a block, tile
or chunk of each implementation, one row, one position, one channel.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from importlib import import_module
from typing import Any, TypeVar
from unittest.mock import patch

import torch
from quambench_kernels import dispatch
from quambench_kernels.causal_conv1d import causal_conv1d
from quambench_kernels.hadamard_quantize import hadamard_quantize
from quambench_kernels.int8_causal_conv1d import int8_causal_conv1d, int8_causal_conv1d_walking
from quambench_kernels.int8_embedding import int8_embedding
from quambench_kernels.int8_linear import int8_linear
from quambench_kernels.int8_selective_scan import int8_selective_scan
from quambench_kernels.int8_ssd import int8_ssd
from quambench_kernels.rms_norm_quantize import add_rms_norm_quantize, gated_rms_norm_quantize, rms_norm_quantize
from quambench_kernels.selective_scan import selective_scan
from quambench_kernels.ssd import ssd
from torch import Tensor

from quambench.gate.probes.base import Answer, floats, inside, some, told
from quambench.grids.hadamard import base_signs

ONE = torch.tensor(1.0)
FINE = 64.0  # exact floats are whole numbers of 64ths
T = TypeVar("T")
OTHERS = (torch.float64, torch.bfloat16, torch.float16)


@dataclass(frozen=True, slots=True)
class Implementation:
    """One of an operator's, and where it is asked."""

    op: str
    name: str
    device: str = "cpu"
    every: int = 1  # asked of every so manieth size; an interpreter is slow, and masks its tiles alike at any size

    def sizes(self, sizes: Sequence[T]) -> Sequence[T]:
        """Those that it is asked."""
        return sizes[:: self.every]

    def __call__(self, run: Callable[..., T], *args: Any, **named: Any) -> T:
        """What `run`, one of the operator's functions, returns, on the host."""
        found: Any = run(*map(self._there, args), **{k: self._there(v) for k, v in named.items()}, impl=self.name)
        found = tuple(x.cpu() for x in found) if isinstance(found, tuple) else found.cpu()
        here: T = found
        return here

    def computes(self, dtype: torch.dtype) -> bool:
        """Whether it takes floats of this kind."""
        return dispatch.obstacle(self.op, self.name, torch.device(self.device), dtype) is None

    def _there(self, x: Any) -> Any:
        if not isinstance(x, Tensor) or self.device == "cpu":
            return x
        whole = torch.empty(0, dtype=x.dtype).set_(x.untyped_storage()).to(self.device)
        return whole.as_strided(x.shape, x.stride(), x.storage_offset())


class Differentiable(Implementation):
    """The form that runs where autograd records."""

    def __call__(self, run: Callable[..., T], *args: Any, **named: Any) -> T:
        first, *rest = args
        with torch.enable_grad():
            found: Any = run(first.clone().requires_grad_(), *rest, **named)
        found = tuple(x.detach() for x in found) if isinstance(found, tuple) else found.detach()
        bare: T = found
        return bare

    def computes(self, dtype: torch.dtype) -> bool:
        return True


def rounded(x: Tensor, step: float) -> Tensor:
    """Floats to whole numbers of steps: what is told of an operator that rounds nothing itself."""
    return (x.double() / step).round().int()


def in_other_dtypes(ask: Implementation, question: Callable[[torch.dtype], Tensor]) -> Answer:
    """How many values differ from float32's, of inputs and results that every dtype holds exactly: none."""

    def halves(dtype: torch.dtype) -> Tensor:  # e^-87, which stands for less, is 0
        return rounded(question(dtype), 0.5)

    want = halves(torch.float32)
    return {
        f"{str(dtype).removeprefix('torch.')}, values that differ":
        (halves(dtype) != want).sum() if ask.computes(dtype) else torch.tensor(0)
        for dtype in OTHERS
    }  # fmt: skip


def blocks_of(module: str, size: int) -> AbstractContextManager[Any]:
    """Blocks so small that there are several: the constant stands for what a cache holds, and decides no result."""
    return patch.object(import_module(f"quambench_kernels.{module}"), "BLOCK", size)


# --- int8_linear ----------------------------------------------------------------------------------------

# (rows, K, N): remainders of K by vectors and of N by fours and sixteens; one row and few, and more of both kinds;
# K of more than 1,024 products of the largest, where float32 would lose a bit.
PRODUCTS = (
    (1, 1, 1), (2, 2, 2), (1, 3, 3), (17, 4, 5), (2, 5, 4), (1, 6, 7), (5, 7, 6), (16, 8, 9), (3, 9, 8), (1, 10, 12),
    (2, 11, 13), (1, 12, 10), (2, 13, 11), (1, 14, 14), (33, 15, 17), (1, 17, 15), (2, 31, 33), (18, 33, 16),
    (1, 65, 31), (2, 130, 19), (260, 5, 3), (2, 1024, 2), (3, 1025, 5), (18, 2100, 3),
)  # fmt: skip


def linear_exact(ask: Implementation) -> Answer:
    """Sums times 2^-k plus bias, on grids of 2 and of one step a column: every second one is a tie."""
    x, w = some(3, 8), some(6, 8, step=91)
    scale, bias = torch.tensor([1, 2, 4, 8, 16, 32]) / 2**10, torch.arange(6) - 2.5
    tables = {"float": None, "one grid": torch.tensor(2.0), "a grid a column": 2.0 ** torch.arange(6)}
    answer: dict[str, Tensor | list[str]] = {
        name: ask(int8_linear, x, w, scale, bias, table).float() for name, table in tables.items()
    }
    for rows, k, n in ask.sizes(PRODUCTS):
        x, w = some(rows, k, step=89), some(n, k, step=151)
        if k >= 1024:  # the largest products, of either sign, but for one a row
            x, w = torch.full_like(x, 127), torch.full_like(w, 127)
            x[::2], x[:, -1], w[:, 0] = -128, torch.arange(rows) % 100 - 50, torch.arange(n) + 3
        step = 2.0 ** -(k - 1).bit_length() / 2 ** (6 + torch.arange(n) % 4)
        shift = None if n % 3 == 0 else torch.arange(n) / 2 - 3
        grid = ONE if n % 2 else 2.0 ** (torch.arange(n) % 3)
        sums = ask(int8_linear, inside(x) if rows > 1 else x, w)
        q = ask(int8_linear, x[None], w, step[0] if n % 5 == 0 else step, shift, grid, q_max=127 if n % 4 else 7)
        answer[f"{rows} x {k} x {n}"] = torch.cat([told(sums), told(q)])
    return answer


def _finish(sums: Tensor, *rest: Any, impl: str) -> Any:
    return dispatch.resolve("int8_linear.finish", impl, sums.device)(sums, *rest)


def finish_exact(ask: Implementation) -> Answer:
    """What follows the product: bias or none, floats or a grid or one a column; more than a slice of columns."""
    answer: dict[str, Tensor | list[str]] = {}
    for n in (1, 2, 3, 4, 5, 6, 7, 9, 15, 17, 31, 513, 1030):
        sums = (torch.arange(3 * n) * 1237 % 4001 - 2000).to(torch.int32).view(3, n)
        steps, bias = 2.0 ** -(torch.arange(n) % 4 + 3), torch.arange(n) % 7 / 2 - 1.5
        for name, scale, shift, grid, top in (
            ("float", steps, bias, None, 127), ("no bias", steps[0], None, None, 127),
            ("one grid", steps, bias, torch.tensor(2.0), 127), ("a grid a column", steps[0], None, 2 * steps, 7),
        ):  # fmt: skip
            y = ask(_finish, sums, scale, shift, grid, top)
            answer[f"{n} columns, {name}"] = told(y.double() * FINE)
    return answer


# --- convolution ----------------------------------------------------------------------------------------

# (sequences, positions, channels, width): fewer positions than history, more than a piece of 16; more channels than
# a tile of 512; remainders of channels.
CONVOLUTIONS = (
    (1, 1, 1, 4), (1, 2, 2, 4), (2, 3, 3, 4), (1, 4, 5, 4), (1, 5, 6, 3), (2, 17, 7, 4), (1, 16, 9, 2), (1, 2, 10, 4),
    (1, 3, 11, 4), (1, 35, 15, 4), (1, 3, 17, 1), (2, 2, 31, 5), (1, 4, 33, 4), (1, 18, 519, 4),
)  # fmt: skip


def _taps(channels: int, width: int) -> tuple[Tensor, Tensor]:
    """(C, K) weights from -2 to 2, none alike in its neighbour, and (C) biases: multiples of 32 times inputs of 32."""
    weight = (torch.arange(channels * width) * 7 % 11 % 5 - 2).float().view(channels, width)
    return weight, 32.0 * (torch.arange(channels) * 5 % 7 - 3)


def int8_conv_exact(ask: Implementation) -> Answer:
    """Two calls, the second with the first one's history; from one scale and a table, to one and a table."""
    weight = torch.tensor([[0, 0, 0, 1], [1, 0, 0, 0], [0, 1, 0, -1], [2, -1, 1, 1.0]])
    tables = {"one": torch.tensor(32.0), "table": torch.tensor([32.0, 64.0, 128.0, 16.0])}
    answer: dict[str, Tensor | list[str]] = {}
    for a, x_scale in tables.items():
        for b, out in tables.items():
            x, history = some(2, 6, 4, low=0), some(2, 3, 4, low=0)
            for call in ("first", "second"):
                q, history = ask(int8_causal_conv1d, x, x_scale, weight, torch.full((4,), 32.0), history, 2 * out)
                answer[f"{a} to {b}, {call} call"], answer[f"{a} to {b}, {call} history"] = q, history
    for batch, length, channels, width in ask.sizes(CONVOLUTIONS):
        weight, bias = _taps(channels, width)
        table = 32.0 * 2 ** (torch.arange(channels) % 3)
        x, history = some(batch, length, channels, step=53), some(batch, width - 1, channels, step=71)
        for name, shift, x_scale, out, top in (
            ("bias", bias, torch.tensor(32.0), 4 * table, 127), ("no bias", None, table, torch.tensor(256.0), 7)
        ):  # fmt: skip
            q, after = ask(int8_causal_conv1d, inside(x), x_scale, weight, shift, inside(history), out, q_max=top)
            answer[f"{batch} x {length} x {channels} by {width}, {name}"] = torch.cat([told(q), told(after)])
    return answer


def int8_conv_rounded(ask: Implementation) -> Answer:
    """SiLU where it bends."""
    weight, bias = floats(21, 4, turn=0.7548), floats(21, turn=0.5698)
    answer: dict[str, Tensor | list[str]] = {}
    for name, shift, out in (
        ("bias", bias, torch.tensor(0.037)),
        ("no bias", None, floats(21, about=0.05, reach=0.02)),
    ):
        x, history = some(1, 5, 21), some(1, 3, 21, step=91)
        answer[name] = ask(int8_causal_conv1d, x, torch.tensor(0.0173), weight, shift, history, out)[0]
    return answer


# (head sizes (G, runs), channels of each run (G, runs, runs of them)): uneven, and one of one
RUNS = {
    "2 x 2 x 3": (torch.tensor([[1, 2], [2, 1]]), torch.tensor([[[1, 3, 1], [2, 1, 2]], [[1, 1, 3], [3, 1, 1]]])),
    "1 x 3 x 2": (torch.tensor([[1, 1, 3]]), torch.tensor([[[1, 6], [4, 3], [5, 2]]])),
    "1 x 1 x 1": (torch.tensor([[1]]), torch.tensor([[[7]]])),
}


def walking_exact(ask: Implementation) -> Answer:
    """Grids of runs of heads and of channels in them, found by walking."""
    answer: dict[str, Tensor | list[str]] = {}
    for name, (heads, dims) in RUNS.items():
        channels = int(heads.sum()) * int(dims[0, 0].sum())
        weight, bias = _taps(channels, 4)
        scale = 64.0 * 2 ** (torch.arange(dims.numel()) % 5).view(dims.shape)
        x, history = some(2, 19, channels, step=53), some(2, 3, channels, step=71)
        for shift in (bias, None):
            q, after = ask(
                int8_causal_conv1d_walking, x, torch.tensor(32.0), weight, shift, history, heads, dims, scale
            )
            answer[f"{name}, {'no ' * (shift is None)}bias"] = torch.cat([told(q), told(after)])
    return answer


def conv_exact(ask: Implementation) -> Answer:
    """Floats, with and without SiLU and bias; what the next call needs."""
    answer: dict[str, Tensor | list[str]] = {}
    for batch, length, channels, width in ask.sizes(CONVOLUTIONS):
        weight, bias = _taps(channels, width)
        x, history = 32.0 * some(batch, length, channels, step=53), 32.0 * some(batch, width - 1, channels, step=71)
        for name, shift, silu in (("bias, SiLU", bias, True), ("neither", None, False)):
            y, after = ask(causal_conv1d, inside(x), weight, shift, history, silu=silu)
            answer[f"{batch} x {length} x {channels} by {width}, {name}"] = torch.cat([told(y.round()), told(after)])

    def of(dtype: torch.dtype) -> Tensor:
        weight, bias = _taps(9, 4)
        x, history = (32 * (some(2, n, 9, step=53) % 5 - 2).to(dtype) for n in (5, 3))
        return ask(causal_conv1d, x, weight.to(dtype), bias.to(dtype), history, silu=False)[0]

    return answer | dict(in_other_dtypes(ask, of))


def conv_rounded(ask: Implementation) -> Answer:
    weight, bias = floats(13, 4, turn=0.7548), floats(13, turn=0.5698)
    x, history = floats(1, 5, 13, reach=2), floats(1, 3, 13, turn=0.3247)
    y, _ = ask(causal_conv1d, x, weight, bias, history, silu=True)
    return {"SiLU": rounded(y, 0.0333)}


# --- scans ----------------------------------------------------------------------------------------------

# (sequences, positions, channels, states): remainders of both, more than a tile of 64 channels, and of 32 positions.
SCANS = (
    (1, 1, 1, 1), (1, 2, 2, 2), (2, 1, 3, 3), (1, 5, 5, 4), (2, 3, 6, 5), (1, 2, 7, 6), (1, 1, 9, 7), (1, 4, 11, 9),
    (2, 1, 13, 15), (1, 3, 15, 17), (1, 2, 66, 3), (1, 35, 2, 2),
)  # fmt: skip


def int8_scan_exact(ask: Implementation) -> Answer:
    """The state of five channels, kept or forgotten, in a prefill of three and in three steps; y of the steps."""
    u, ones = some(1, 3, 5), torch.ones(1, 3, 5, dtype=torch.int8)
    A = torch.tensor([[0.0, -200], [0, 0], [-200, 0], [0, -200], [0, 0]])
    state_scale = torch.tensor([[0.5], [1.0], [2.0], [4.0], [1.0]])

    def call(part: slice, state: Tensor) -> tuple[Tensor, Tensor]:
        B, C = some(1, 3, 2, low=-3, step=2).clamp(-4, 4), torch.tensor([[[1, 2]]], dtype=torch.int8).expand(1, 3, 2)
        return ask(
            int8_selective_scan, u[:, part], torch.tensor(1 / 64), ones[:, part], ONE, A, B[:, part],
            torch.tensor(0.5), C[:, part], ONE, torch.arange(5.0), torch.full((5,), 31.0), 64 * ones[:, part], ONE,
            state, state_scale,
        )  # fmt: skip

    answer = _carried(call, some(1, 5, 2, step=51), 64.0)
    for at, (batch, length, width, n) in ask.sizes(list(enumerate(SCANS))):
        u, dt, A, B, C, D, state, bias, z = _scanned(batch, length, width, n)
        by_channel = 2.0 ** -(torch.arange(width) % 3)
        state_scale = (torch.tensor(4.0), 4 * by_channel[:, None], (2 * by_channel[:, None]).repeat(1, n))[at % 3]
        dt_scale, z_scale = (ONE, ONE) if at % 2 else (torch.ones(width), 2 * by_channel)
        with blocks_of("selective_scan.in_place", 2 * state.numel()):
            y, after = ask(
                int8_selective_scan, inside(u), torch.tensor(1 / 64), inside(dt), dt_scale, A, inside(B),
                torch.tensor(0.5), inside(C), ONE, D, bias, inside(z), z_scale, state, state_scale,
                q_max=7 if at % 4 == 3 else 127,
            )  # fmt: skip
        answer[f"{batch} x {length} x {width} x {n}"] = torch.cat([told(y.double() * FINE), told(after)])
    return answer


def _scanned(batch: int, length: int, width: int, n: int) -> tuple[Tensor, ...]:
    """u, dt, A, B, C, D, state, dt_bias, z: integers; steps of 32, states that are kept or forgotten, gates of 64."""
    u, dt = some(batch, length, width), torch.ones(batch, length, width, dtype=torch.int8)
    A = -200.0 * (torch.arange(width * n) * 3 % 7 % 2).view(width, n)
    B, C = (some(batch, length, n, step=s) % 5 - 2 for s in (29, 43))
    D, bias = torch.arange(width) % 4 - 1.0, torch.full((width,), 31.0)
    return u, dt, A, B, C, D, some(batch, width, n, step=51), bias, 64 * dt


def scan_exact(ask: Implementation) -> Answer:
    """Floats: dt with its bias or as the step itself, gated or not."""
    answer: dict[str, Tensor | list[str]] = {}
    for batch, length, width, n in ask.sizes(SCANS):
        u, dt, A, B, C, D, state, bias, z = (m.float() for m in _scanned(batch, length, width, n))
        with blocks_of("selective_scan.in_place", 2 * state.numel()):
            for name, steps, named in (("biased, gated", dt, {"dt_bias": bias, "z": z}), ("bare", 2 * dt, {})):
                y, after = ask(selective_scan, inside(u / 64), steps, A, inside(B / 2), C, D, state, **named)
                answer[f"{batch} x {length} x {width} x {n}, {name}"] = torch.cat(
                    [told(m.double() * FINE) for m in (y, after)]
                )

    def of(dtype: torch.dtype) -> Tensor:
        u, dt, A, B, C, D, state, *_ = (m.to(dtype) for m in _scanned(1, 3, 5, 2))
        return ask(selective_scan, u % 5 - 2, dt, 16 * A, B, C, D, state % 5 - 2)[0]

    return answer | dict(in_other_dtypes(ask, of))


def scan_inputs(dtype: torch.dtype = torch.float32) -> tuple[Tensor, ...]:
    """u, dt, A, B, C, D, state, dt_bias, z: ordinary numbers."""
    found = (
        floats(1, 5, 11), floats(1, 5, 11, turn=0.7548), floats(11, 3, turn=0.5698, about=-1.2),
        floats(1, 5, 3, turn=0.8192), floats(1, 5, 3, turn=0.6710), floats(11, turn=0.5497),
        floats(1, 11, 3, turn=0.4503), floats(11, turn=0.8567),
        floats(1, 5, 11, turn=0.7340, reach=3),
    )  # fmt: skip
    return tuple(m.to(dtype) for m in found)


def scan_rounded(ask: Implementation) -> Answer:
    u, dt, A, B, C, D, state, bias, z = scan_inputs()
    y, after = ask(selective_scan, u, dt, A, B, C, D, state, dt_bias=bias, z=z)
    return {"y": rounded(y, 0.0333), "state": rounded(after, 0.0171)}


def int8_scan_rounded(ask: Implementation) -> Answer:
    _, _, A, _, _, D, _, bias, _ = scan_inputs()
    wide, narrow = (1, 5, 11), (1, 5, 3)
    y, after = ask(
        int8_selective_scan, some(*wide), torch.tensor(0.0079), some(*wide, step=91), torch.tensor(0.0123), A,
        some(*narrow, step=51), torch.tensor(0.0083), some(*narrow, step=29), torch.tensor(0.0071), D, bias,
        some(*wide, step=61), floats(11, about=0.02, reach=0.01), some(1, 11, 3, step=77), torch.tensor(0.0131),
    )  # fmt: skip
    return {"y": rounded(y, 0.0333), "state": after}


# (sequences, positions, heads, head_dim, groups, states, chunk): positions that fours and chunks do not divide, more
# chunks than one and one that is never full; remainders of head_dim by one vector and by two.
DUALITIES = (
    (1, 1, 1, 1, 1, 1, 3), (1, 2, 2, 3, 1, 2, 3), (2, 3, 2, 5, 2, 3, 2), (1, 4, 3, 7, 1, 5, 4), (1, 5, 4, 9, 2, 7, 2),
    (3, 7, 2, 15, 1, 9, 3), (2, 1, 4, 17, 2, 17, 4), (1, 6, 2, 33, 1, 3, 256), (1, 5, 2, 49, 1, 2, 2),
    (1, 9, 3, 2, 3, 4, 8),
)  # fmt: skip


def int8_ssd_exact(ask: Implementation) -> Answer:
    """The state of four heads in two SSD groups, kept or forgotten, in a prefill of three and in three steps."""
    x, dt, C = some(1, 3, 4, 2), torch.zeros(1, 3, 4, dtype=torch.int8), torch.ones(1, 3, 2, 3, dtype=torch.int8)
    state_scale = torch.tensor([0.5, 1, 2, 4]).view(4, 1, 1)

    def call(part: slice, state: Tensor) -> tuple[Tensor, Tensor]:
        B = some(1, 3, 2, 3, low=-4, step=3).clamp(-4, 4)
        return ask(
            int8_ssd, x[:, part], torch.arange(1, 9) / 4, dt[:, part], ONE, torch.tensor([0.0, -200, 0, 0]),
            B[:, part], torch.tensor(0.5), C[:, part], ONE, torch.arange(4.0), torch.zeros(4), state, state_scale,
            dt_min=1.0, dt_max=1.0,
        )  # fmt: skip

    answer = _carried(call, some(1, 4, 2, 3, step=51), 1.0)
    for at, (batch, length, heads, dim, groups, n, chunk) in ask.sizes(list(enumerate(DUALITIES))):
        x, dt, A, B, C, D, state, bias = _dual(batch, length, heads, dim, groups, n)
        by_channel = 2.0 ** -(torch.arange(heads * dim) % 3)
        state_scale = (
            torch.tensor(4.0), 4 * by_channel.view(heads, dim, 1)[:, :1], 4 * by_channel.view(heads, dim, 1),
            2 * by_channel.view(heads, dim, 1).repeat(1, 1, n),
        )[at % 4]  # fmt: skip
        of_x, of_dt, of_BC = (ONE, torch.ones(heads), torch.full((groups * n,), 0.5)) if at % 2 else (
            by_channel, ONE, ONE)  # fmt: skip
        with blocks_of("ssd.chunked", 2 * length * heads * min(chunk, length)):
            y, after = ask(
                int8_ssd, inside(x), of_x, inside(dt), of_dt, A, inside(B), of_BC, inside(C), of_BC,
                D if at % 3 else D.repeat(dim, 1).T + by_channel.view(heads, dim), bias, state, state_scale, dt_min=0.0,
                dt_max=(16.0, float("inf"))[at % 2], chunk=chunk, q_max=7 if at % 5 == 4 else 127,
            )  # fmt: skip
        answer[" x ".join(map(str, (batch, length, heads, dim, groups, n)))] = torch.cat(
            [told(y.double() * FINE), told(after)]
        )
    return answer


def _dual(batch: int, length: int, heads: int, dim: int, groups: int, n: int) -> tuple[Tensor, ...]:
    """x, dt, A, B, C, D, state, dt_bias: integers; steps of 32 or limited to 16, heads that keep or forget."""
    x, dt = some(batch, length, heads, dim) // 4, torch.ones(batch, length, heads, dtype=torch.int8)
    A = -200.0 * (torch.arange(heads) * 3 % 7 % 2)
    B, C = (some(batch, length, groups, n, step=s) % 5 - 2 for s in (29, 43))
    D, bias = torch.arange(heads) % 4 - 1.0, torch.full((heads,), 31.0)
    return x, dt, A, B, C, D, some(batch, heads, dim, n, step=51), bias


def ssd_exact(ask: Implementation) -> Answer:
    """Floats: dt with its bias and limits or as the step itself; D per head, per channel, or none."""
    answer: dict[str, Tensor | list[str]] = {}
    for batch, length, heads, dim, groups, n, chunk in ask.sizes(DUALITIES):
        x, dt, A, B, C, D, state, bias = (m.float() for m in _dual(batch, length, heads, dim, groups, n))
        by_channel = D.repeat(dim, 1).T + torch.arange(dim)
        with blocks_of("ssd.chunked", 2 * length * heads * min(chunk, length)):
            for name, steps, skip, named in (
                ("limited", dt, by_channel, {"dt_bias": bias, "dt_max": 16.0}), ("biased", dt, D, {"dt_bias": bias}),
                ("bare", dt, None, {}),
            ):  # fmt: skip
                y, after = ask(ssd, inside(x), steps, A, inside(B), C, skip, state, chunk=chunk, **named)
                answer[f"{' x '.join(map(str, (batch, length, heads, dim, groups, n)))}, {name}"] = torch.cat(
                    [told(m.double() * FINE) for m in (y, after)]
                )

    def of(dtype: torch.dtype) -> Tensor:
        x, dt, A, B, C, D, state, *_ = (m.to(dtype) for m in _dual(1, 5, 4, 3, 2, 2))
        return ask(ssd, x % 5 - 2, dt, 16 * A, B, C, D, state % 5 - 2, chunk=2)[0]

    return answer | dict(in_other_dtypes(ask, of))


def ssd_inputs(dtype: torch.dtype = torch.float32) -> tuple[Tensor, ...]:
    """x, dt, A, B, C, D, state, dt_bias: ordinary numbers."""
    found = (
        floats(1, 5, 4, 5), floats(1, 5, 4, turn=0.7548), floats(4, turn=0.5698, about=-1.2),
        floats(1, 5, 2, 3, turn=0.8192), floats(1, 5, 2, 3, turn=0.6710), floats(4, turn=0.5497),
        floats(1, 4, 5, 3, turn=0.4503), floats(4, turn=0.8567),
    )  # fmt: skip
    return tuple(m.to(dtype) for m in found)


def ssd_rounded(ask: Implementation) -> Answer:
    *inputs, bias = ssd_inputs()
    y, after = ask(ssd, *inputs, dt_bias=bias, dt_min=0.4, dt_max=1.1, chunk=2)
    return {"y": rounded(y, 0.0333), "state": rounded(after, 0.0171)}


def int8_ssd_rounded(ask: Implementation) -> Answer:
    _, _, A, _, _, D, _, bias = ssd_inputs()
    y, after = ask(
        int8_ssd, some(1, 5, 4, 5), torch.tensor(0.0079), some(1, 5, 4, step=91), torch.tensor(0.0123), A,
        some(1, 5, 2, 3, step=51), torch.tensor(0.0083), some(1, 5, 2, 3, step=29), torch.tensor(0.0071), D, bias,
        some(1, 4, 5, 3, step=77), floats(4, 1, 1, about=0.02, reach=0.01), dt_min=0.4, dt_max=1.1, chunk=2,
    )  # fmt: skip
    return {"y": rounded(y, 0.0333), "state": after}


def _carried(call: Callable[[slice, Tensor], tuple[Tensor, Tensor]], state: Tensor, unit: float) -> dict[str, Any]:
    """A prefill's last state, and y (in units) and the state of each of three steps."""
    y, after = call(slice(3), state)
    answer: dict[str, Tensor | list[str]] = {"prefill, y": y / unit, "prefill, state": after}
    for t in range(3):
        y, state = call(slice(t, t + 1), state)
        answer[f"step {t + 1}, y"], answer[f"step {t + 1}, state"] = y / unit, state
    return answer


# --- rotation, norms, embedding -------------------------------------------------------------------------


def rotated_exact(ask: Implementation) -> Answer:
    """Ties at even powers of two; at 48 = 12 * 4 the root is irrational, and no sum falls near a tie."""
    answer: dict[str, Tensor | list[str]] = {}
    for n, scale in ((1, 2.0), (4, 1.0), (16, 0.5), (48, 1.3)):
        x = some(3, n).float() % 8 - 4
        answer[str(n)] = ask(hadamard_quantize, x, torch.tensor(scale), base_signs(n))
    for n, scale in ((64, 0.5), (256, 0.25)):
        x = some(3, n, step=53).float() % 8 - 4
        answer[str(n)] = told(ask(hadamard_quantize, inside(x), torch.tensor(scale), base_signs(n)))
    return answer


# Where a root is irrational; both sides of a vector, and more than a slice of 64 columns.
ROTATIONS = (2, 8, 32, 128, 12, 24, 96, 192, 1536, 40, 80, 320)


def rotated_rounded(ask: Implementation) -> Answer:
    answer: dict[str, Tensor | list[str]] = {}
    for n in ask.sizes(ROTATIONS):
        x = some(2, n, step=29).float() % 8 - 4
        q = ask(hadamard_quantize, x[None], torch.tensor(0.19), base_signs(n), q_max=127 if n % 3 else 31)
        answer[str(n)] = told(q)
    return answer


def normed_exact(ask: Implementation) -> Answer:
    """Rows of +-1 and gains of whole and half steps: plain, after adding, gated before and after the norm.

    Then rows of +-3 with eps = 7, norm 4, and a row of zeros: an eps that is left out, or stands elsewhere, shows.
    """
    sign = torch.where(torch.arange(42) % 3 == 0, -1.0, 1.0).repeat(2, 1)
    gain, z = (torch.arange(42) - 20) / 2, torch.full((2, 42), 64, dtype=torch.int8)
    answer: dict[str, Tensor | list[str]] = {"plain": ask(rms_norm_quantize, sign, gain, 0.0, ONE)}
    added, total = ask(add_rms_norm_quantize, sign / 4, 3 * sign / 4, gain, 0.0, ONE)
    answer |= {"added": added, "residual stream": total}
    for first in (False, True):
        x, scale = (sign, torch.tensor(64.0)) if first else (sign / 64, ONE)
        answer[f"gated, norm first {first}"] = ask(
            gated_rms_norm_quantize, x, z, ONE, gain, 0.0, scale, n_groups=2, norm_before_gate=first
        )
    for n in ask.sizes((3, 1, 2, 6, 4, 5, 7, 8, 9, 15, 17, 31, 33, 519)):
        signs = torch.where(some(3, n, step=29) < 0, -1.0, 1.0) * torch.tensor([3.0, 0.0, 3.0])[:, None]
        gain, z = (torch.arange(n) * 5 % 41 - 20) / 4, torch.full((3, n), 32, dtype=torch.int8)
        groups, grid = (3 if n % 3 == 0 else 1), torch.tensor(0.25)
        parts, gated = {"n_groups": groups}, gated_rms_norm_quantize
        found = {
            "plain": ask(rms_norm_quantize, inside(signs), gain, 7.0, grid, **parts),
            "no gain": ask(rms_norm_quantize, signs, None, 7.0, grid, q_max=7),
            "float": ask(rms_norm_quantize, signs, gain, 7.0, None, **parts) * FINE,
            "added": ask(add_rms_norm_quantize, inside(2 * signs), inside(-signs), gain, 7.0, grid)[0],
            "added, no gain": ask(add_rms_norm_quantize, 2 * signs, -signs, None, 7.0, None)[0] * FINE,
            "gate first": ask(gated, inside(signs / 64), inside(z), torch.tensor(2.0), gain, 7.0, grid, **parts),
            "norm first": ask(gated, signs, z, torch.ones(n), gain, 7.0, 32 * grid, norm_before_gate=True, **parts),
            "float gate": ask(gated, signs / 64, 2.0 * z, None, None, 7.0, None, **parts) * FINE,
        }
        answer |= {f"{n}, {name}": told(y) for name, y in found.items()}

    def of(dtype: torch.dtype) -> Tensor:
        signs = torch.where(some(2, 6, step=29) < 0, -1.0, 1.0).to(dtype)
        return ask(rms_norm_quantize, signs, (torch.arange(6) - 2).to(dtype), 3.0, None, n_groups=2)

    return answer | dict(in_other_dtypes(ask, of))


def norm_inputs(dtype: torch.dtype = torch.float32) -> tuple[Tensor, ...]:
    """x, residual, z, gain: ordinary numbers; rows of other norms."""
    x = floats(3, 14) * torch.tensor([0.3, 1.0, 4.0])[:, None]
    found = (x, floats(3, 14, turn=0.7548), floats(3, 14, turn=0.5698, reach=3), floats(14, turn=0.8192, about=1.0))
    return tuple(m.to(dtype) for m in found)


def normed_rounded(ask: Implementation) -> Answer:
    """An eps as large as the squares."""
    (x, residual, z, gain), scale = norm_inputs(), torch.tensor(0.0271)
    answer: dict[str, Tensor | list[str]] = {"plain": ask(rms_norm_quantize, x, gain, 0.3, scale)}
    answer["added"] = ask(add_rms_norm_quantize, x, residual, gain, 0.3, scale)[0]
    for first in (False, True):
        y = ask(gated_rms_norm_quantize, x, z, None, gain, 0.3, None, n_groups=2, norm_before_gate=first)
        answer[f"gated, norm first {first}"] = rounded(y, 0.0437)
    return answer


def embedded_exact(ask: Implementation) -> Answer:
    table, tokens = some(7, 5), torch.tensor([[6, 0, 3], [3, 5, 1]])
    answer: dict[str, Tensor | list[str]] = {"rows": ask(int8_embedding, tokens, table, 2.0 ** -torch.arange(7))}
    for n in ask.sizes((1, 2, 3, 4, 6, 7, 8, 9, 15, 17, 31, 33)):
        y = ask(int8_embedding, torch.arange(10)[::3], some(11, n, step=53), 2.0 ** -(torch.arange(11) % 5))
        answer[f"{n} wide"] = told(y * FINE)
    answer["one token"] = ask(int8_embedding, torch.tensor(4), table, 2.0 ** -torch.arange(7))
    return answer


@dataclass(frozen=True, slots=True)
class Question:
    """What all implementations of an operator are asked."""

    exact: Callable[[Implementation], Answer]
    rounded: Callable[[Implementation], Answer] | None = None
    architecture: str = ""  # the one that has the operator; "" where both do
    gradients: bool = False  # whether there is a form for autograd

    def __call__(self, ask: Implementation) -> Answer:
        more = {} if self.rounded is None else {f"rounded, {k}": v for k, v in self.rounded(ask).items()}
        return {**self.exact(ask), **more}


# In order of dependence, which is that of probes.
QUESTIONS = {
    "int8_linear.finish": Question(finish_exact),
    "int8_linear": Question(linear_exact),
    "int8_embedding": Question(embedded_exact),
    "hadamard_quantize": Question(rotated_exact, rotated_rounded),
    "rms_norm_quantize": Question(normed_exact, normed_rounded, gradients=True),
    "causal_conv1d": Question(conv_exact, conv_rounded, gradients=True),
    "int8_causal_conv1d": Question(int8_conv_exact, int8_conv_rounded),
    "int8_causal_conv1d_walking": Question(walking_exact, architecture="mamba2"),
    "selective_scan": Question(scan_exact, scan_rounded, "mamba", gradients=True),
    "int8_selective_scan": Question(int8_scan_exact, int8_scan_rounded, "mamba"),
    "ssd": Question(ssd_exact, ssd_rounded, "mamba2", gradients=True),
    "int8_ssd": Question(int8_ssd_exact, int8_ssd_rounded, "mamba2"),
}


# --- gradients ------------------------------------------------------------------------------------------


def gradients(op: str) -> Answer:
    """Of a sum of all results by weights that differ, by every float input, in float64 and millionths."""
    run, inputs, named = {
        "rms_norm_quantize": _norm_with_gradients,
        "causal_conv1d": _conv_with_gradients,
        "selective_scan": _scan_with_gradients,
        "ssd": _ssd_with_gradients,
    }[op]()
    with torch.enable_grad():
        leaves = [x.double().requires_grad_() for x in inputs]
        found = run(*leaves, **named)
        parts = found if isinstance(found, tuple) else (found,)
        sum((y * floats(*y.shape, turn=0.3819, dtype=torch.float64)).sum() for y in parts).backward()
    return {f"input {i}": (x.grad * 2**20).round().int() for i, x in enumerate(leaves) if x.grad is not None}


def _norm_with_gradients() -> tuple[Callable[..., Any], tuple[Tensor, ...], dict[str, Any]]:
    x, _, z, gain = norm_inputs()
    return lambda x, z, gain: gated_rms_norm_quantize(x, z, None, gain, 0.3, None, n_groups=2), (x, z, gain), {}


def _conv_with_gradients() -> tuple[Callable[..., Any], tuple[Tensor, ...], dict[str, Any]]:
    inputs = floats(2, 5, 3), floats(3, 4, turn=0.7548), floats(3, turn=0.5698), floats(2, 3, 3, turn=0.3247)
    return causal_conv1d, inputs, {"silu": True}


def _scan_with_gradients() -> tuple[Callable[..., Any], tuple[Tensor, ...], dict[str, Any]]:
    """More than a chunk of 32 positions."""
    wide, narrow = (1, 35, 3), (1, 35, 2)
    inputs = (
        floats(*wide), floats(*wide, turn=0.7548), floats(3, 2, turn=0.5698, about=-1.2), floats(*narrow, turn=0.8192),
        floats(*narrow, turn=0.6710), floats(3, turn=0.5497), floats(1, 3, 2, turn=0.4503), floats(3, turn=0.8567),
        floats(*wide, turn=0.7340),
    )  # fmt: skip
    return lambda *m: selective_scan(*m[:7], dt_bias=m[7], z=m[8]), inputs, {}


def _ssd_with_gradients() -> tuple[Callable[..., Any], tuple[Tensor, ...], dict[str, Any]]:
    return lambda *m: ssd(*m[:7], dt_bias=m[7], chunk=2), ssd_inputs(), {}
