"""Triton's kernels against float64: interpreted on the CPU, and on a GPU where there is one; and compiled for two.

Triton decides whether it interprets when it is imported, so each operation's checks are a process of their own: this
file, run as a program. Rules are conftest's: floats as accurate as the plain float32 expression, integers one step
off only where the float64 value lies within the float32 error of a tie; int8_linear and int8_embedding to the bit.
Interpreted, a position of a scan takes 20 ms, which is why sizes are as small as they may be to cross a tile.
"""

import importlib.util
import os
import subprocess
import sys
from functools import partial
from importlib import import_module
from itertools import product
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
from quambench_kernels import dispatch
from quambench_kernels.causal_conv1d import causal_conv1d
from quambench_kernels.causal_conv1d.reference import causal_conv1d_ref
from quambench_kernels.hadamard_quantize import hadamard_quantize
from quambench_kernels.hadamard_quantize.reference import hadamard_quantize_ref, rotated
from quambench_kernels.int8_causal_conv1d import int8_causal_conv1d, int8_causal_conv1d_walking
from quambench_kernels.int8_causal_conv1d.reference import convolved, table_of
from quambench_kernels.int8_embedding import int8_embedding
from quambench_kernels.int8_embedding.reference import int8_embedding_ref
from quambench_kernels.int8_linear import int8_linear
from quambench_kernels.int8_linear.reference import finish_ref, int8_linear_ref
from quambench_kernels.int8_selective_scan import int8_selective_scan
from quambench_kernels.int8_selective_scan.reference import floating as scan_floats
from quambench_kernels.int8_ssd import int8_ssd
from quambench_kernels.int8_ssd.reference import floating as ssd_floats
from quambench_kernels.lazy import why_not
from quambench_kernels.narrow import in_float32
from quambench_kernels.rms_norm_quantize import (
    add_rms_norm_quantize,
    gated_rms_norm_quantize,
    rms_norm_quantize,
)
from quambench_kernels.rms_norm_quantize.reference import rms_norm_quantize_ref
from quambench_kernels.rounding import quantize_ref
from quambench_kernels.selective_scan import selective_scan
from quambench_kernels.selective_scan.reference import selective_scan_ref
from quambench_kernels.ssd import ssd
from quambench_kernels.ssd.reference import ssd_ref

DEVICE = torch.device("cpu")  # of the process that runs a check; main() sets it
HALVES = (torch.bfloat16, torch.float16)


# What every check does.


def load_judge():
    """conftest's rules, in a process that pytest does not run."""
    spec = importlib.util.spec_from_file_location("rules", Path(__file__).with_name("conftest.py"))
    rules = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(rules)
    return rules.Judge


def there(x):
    """The same values on DEVICE, in the same layout."""
    if not isinstance(x, torch.Tensor) or x.device == DEVICE:
        return x
    whole = torch.empty(0, dtype=x.dtype).set_(x.untyped_storage()).to(DEVICE)
    return whole.as_strided(x.shape, x.stride(), x.storage_offset())


def on_triton(op, *args, **named):
    """op's result, or results, on the CPU."""
    out = op(*map(there, args), **{name: there(x) for name, x in named.items()}, impl="triton")
    return tuple(x.cpu() for x in out) if isinstance(out, tuple) else out.cpu()


def as_accurate(judge, got, plain, exact, magnitude=None):
    """judge's rule; and the like of it in 16 bits, where a result is rounded once more and errors are as large."""
    if got.dtype == torch.float32:
        judge.as_accurate(got, plain, exact, magnitude)
        return
    error, usual = ((y.double() - exact).square().mean().sqrt().item() for y in (got, plain))
    ulp = torch.finfo(got.dtype).eps * exact.square().mean().sqrt().item()
    assert error <= 2 * max(usual, ulp), f"error {error:.3g}, the plain expression's is {usual:.3g}"


def double(inputs):
    return [x.double() if isinstance(x, torch.Tensor) and x.is_floating_point() else x for x in inputs]


def noticed(check, *args, **named):
    """A planted fault must fail the check."""
    with pytest.raises(AssertionError):
        check(*args, **named)


def with_fault(op, fault, check, *args, **named):
    """The check fails where every result of op's implementation is fault(implementation, *arguments)."""
    with dispatch.around(op, fault):
        noticed(check, *args, **named)


def away(x, scale, q_max=127):
    """Rounding of ties away from zero."""
    quotient = x / scale
    return (quotient.sign() * (quotient.abs() + 0.5).floor()).clamp(-q_max - 1, q_max).to(torch.int8)


def randn(g, *shape, dtype=torch.float32):
    return torch.randn(*shape, generator=g).to(dtype)


# causal_conv1d.


def conv_inputs(batch, length, channels, width=4, with_bias=True, dtype=torch.float32):
    """x, weight, bias, history."""
    g = torch.Generator().manual_seed(length)
    x, weight, bias = (randn(g, *s, dtype=dtype) for s in ((batch, length, channels), (channels, width), (channels,)))
    return x, weight, bias if with_bias else None, randn(g, batch, width - 1, channels, dtype=dtype)


def convolves(judge, x, weight, bias, history, silu=True):
    plain, exact = (causal_conv1d_ref(*inputs, silu) for inputs in ((x, weight, bias, history),
                                                                   double((x, weight, bias, history))))  # fmt: skip
    magnitude = causal_conv1d_ref(*(m if m is None else m.abs() for m in double((x, weight, bias, history))), silu)
    y, after = on_triton(causal_conv1d, x, weight, bias, history, silu=silu)
    as_accurate(judge, y, plain, exact, magnitude)
    assert torch.equal(after, torch.cat([history, x], dim=1)[:, x.shape[1] :])
    return y


def check_causal_conv1d(judge):
    for (batch, length), channels, width in (((1, 1), 7, 4), ((3, 3), 20, 4), ((3, 4), 130, 4), ((1, 35), 20, 4),
                                             ((2, 5), 3, 1), ((1, 2), 1, 2), ((2, 0), 5, 4)):  # fmt: skip
        for with_bias, silu in ((True, True), (False, False)):
            x, *rest = conv_inputs(batch, length, channels, width, with_bias)
            convolves(judge, judge.inside(x) if silu else x, *rest, silu=silu)
    for dtype in HALVES:
        convolves(judge, *conv_inputs(2, 5, 20, dtype=dtype))
    x, weight, bias, history = conv_inputs(2, 7, 20)
    steps, now = [], history
    for t in range(7):
        y, now = on_triton(causal_conv1d, x[:, t : t + 1], weight, bias, now, silu=True)
        steps.append(y)
    double_inputs = double((x, weight, bias, history))
    plain = causal_conv1d_ref(x, weight, bias, history, True)
    as_accurate(judge, torch.cat(steps, dim=1), plain, causal_conv1d_ref(*double_inputs, True))
    inputs = judge, x, weight, bias, history
    with_fault("causal_conv1d", lambda run, x, w, *r: run(x, w.roll(1, 1), *r), convolves, *inputs)  # one tap off
    with_fault("causal_conv1d", lambda run, x, w, b, h, s: run(x, w, b, h * 0, s), convolves, *inputs)  # stale history


# int8_causal_conv1d and its walking form.


def int8_conv_inputs(judge, batch, length, channels, width=4, tables=(False, True), about=0.01):
    """x_q, x_scale, weight, bias, history_q, out_scale."""
    g = torch.Generator().manual_seed(channels)
    x_scale = judge.scales(g, *((channels,) if tables[0] else ()))
    out_scale = judge.scales(g, *((channels,) if tables[1] else ()), about=about)
    x, history = judge.ints(g, batch, length, channels), judge.ints(g, batch, width - 1, channels)
    return x, x_scale, randn(g, channels, width), randn(g, channels) / 4, history, out_scale


def int8_convolves(judge, x, x_scale, weight, bias, history, out_scale, q_max=127):
    plain, exact = (convolved(x, x_scale, weight, bias, history, dtype) for dtype in (torch.float32, torch.float64))
    q, after = on_triton(int8_causal_conv1d, x, x_scale, weight, bias, history, out_scale, q_max=q_max)
    assert torch.equal(after, torch.cat([history, x], dim=1)[:, x.shape[1] :])
    return judge.rounded(q, plain, exact, out_scale, q_max)


def conv_ties():
    """SiLU(v) = v in float32 from v = 18 on: 1 + e^-18 rounds to 1. So q 32 / 64 = q / 2 is a tie for odd q."""
    x = torch.arange(1, 40).to(torch.int8).view(1, -1, 1)
    return x, torch.tensor(32.0), torch.ones(1, 1), None, x[:, :0], torch.tensor(64.0)


def check_int8_causal_conv1d(judge):
    off = 0
    for (batch, length), channels, tables in product(((1, 1), (3, 3), (1, 4), (2, 21)), (7, 130),
                                                     ((False, True), (True, False))):  # fmt: skip
        x, *rest = int8_conv_inputs(judge, batch, length, channels, tables=tables)
        off += int8_convolves(judge, judge.inside(x) if length > 1 else x, *rest, q_max=127 if tables[0] else 7)
    for about in (1e-6, 10.0):  # all saturates; nothing reaches a step
        off += int8_convolves(judge, *int8_conv_inputs(judge, 1, 4, 20, about=about))
    print(f"{off} integers one step off, at ties")

    inputs = conv_ties()
    assert on_triton(int8_causal_conv1d, *inputs)[0].flatten().tolist() == [round(q / 2) for q in range(1, 40)]
    of_ties = partial(int8_convolves, judge, *inputs)
    with_fault("int8_causal_conv1d", lambda run, x, s, w, b, h, out, q_max: away(x * s, out), of_ties)
    one = judge, *int8_conv_inputs(judge, 1, 9, 20)
    with_fault("int8_causal_conv1d", lambda run, x, s, w, *r: run(x, s, w.roll(1, 1), *r), int8_convolves, *one)
    with_fault("int8_causal_conv1d", lambda run, x, s, w, b, h, *r: run(x, s, w, b, h * 0, *r), int8_convolves, *one)


def runs(groups, heads, head_dim, n_heads, n_dims, g):
    """head_sizes, dim_sizes, scale: runs that add up, some of them empty."""

    def cut(total, parts):
        ends = torch.randint(0, total + 1, (parts - 1,), generator=g).sort().values.tolist()
        return torch.tensor([b - a for a, b in zip([0, *ends], [*ends, total], strict=True)])

    head_sizes = torch.stack([cut(heads, n_heads) for _ in range(groups)])
    dim_sizes = torch.stack([torch.stack([cut(head_dim, n_dims) for _ in range(n_heads)]) for _ in range(groups)])
    return head_sizes, dim_sizes, 0.01 * 4 ** torch.rand(groups, n_heads, n_dims, generator=g)


def walks(judge, inputs, table, head_dim):
    """Against float64 with the scales that the reference finds."""
    out_scale = table_of(*table, head_dim)
    plain, exact = (convolved(*inputs, dtype) for dtype in (torch.float32, torch.float64))
    q, _ = on_triton(int8_causal_conv1d_walking, *inputs, *table)
    judge.rounded(q, plain, exact, out_scale)


def check_int8_causal_conv1d_walking(judge):
    g = torch.Generator().manual_seed(0)
    for groups, heads, head_dim, n_heads, n_dims in (
        (1, 4, 20, 3, 4),
        (2, 3, 5, 2, 2),
        (1, 1, 7, 1, 1),
        (2, 4, 20, 4, 1),
    ):
        *inputs, _ = int8_conv_inputs(judge, 2, 5, groups * heads * head_dim)
        walks(judge, inputs, runs(groups, heads, head_dim, n_heads, n_dims, g), head_dim)
    *inputs, _ = int8_conv_inputs(judge, 1, 5, 80)
    table = torch.tensor([[1, 3]]), torch.tensor([[[5, 15], [9, 11]]]), torch.tensor([[[0.01, 0.02], [0.03, 0.05]]])
    walks(judge, inputs, table, 20)

    def one_head_late(run, *args):
        return run(*args[:5], args[5] + torch.tensor([1, -1], device=args[5].device), *args[6:])

    with_fault("int8_causal_conv1d_walking", one_head_late, walks, judge, inputs, table, 20)


# selective_scan and int8_selective_scan.


def scan_inputs(batch, length, width, n, dtype=torch.float32):
    """u, dt, A, B, C, D, state, dt_bias, z."""
    g = torch.Generator().manual_seed(length)
    of = partial(randn, g, dtype=dtype)
    wide, narrow = (batch, length, width), (batch, length, n)
    u, dt, z, B, C, D, state = map(lambda s: of(*s), (wide, wide, wide, narrow, narrow, (width,), (batch, width, n)))
    return [u, dt, -of(width, n).exp(), B, C, D, state, of(width) - 1, z]


def scans(judge, inputs):
    u, dt, A, B, C, D, state, dt_bias, z = inputs
    plain, exact = (in_float32(selective_scan_ref, 6)(*args) for args in (inputs, double(inputs)))
    right = [m if m is None else m.double() for m in (u.abs(), dt, A, B.abs(), C.abs(), D.abs(), state.abs(), dt_bias)]
    size, h = selective_scan_ref(*right, None)
    size = size if z is None else size * torch.nn.functional.silu(z.double()).abs()
    got = on_triton(selective_scan, *inputs[:7], dt_bias=dt_bias, z=z)
    for y, usual, true, magnitude in zip(got, plain, exact, (size, h), strict=True):
        as_accurate(judge, y, usual, true, magnitude)


def without_state(run, *args):
    """Stale: what the call before left is not taken up."""
    at = {9: 6, 11: 6, 16: 13, 17: 11}[len(args)]
    return run(*args[:at], torch.zeros_like(args[at]), *args[at + 1 :])


def check_selective_scan(judge):
    for batch, length, width, n in ((1, 1, 1, 1), (3, 1, 20, 16), (1, 4, 20, 5), (2, 7, 3, 16)):
        u, dt, A, B, C, D, state, dt_bias, z = scan_inputs(batch, length, width, n)
        u, dt, B, C, z = (judge.inside(x) for x in (u, dt, B, C, z))
        scans(judge, [u, dt, A, B, C, D, state, dt_bias, z])
    u, dt, *rest, _, _ = scan_inputs(1, 3, 20, 5)
    scans(judge, [u, dt.exp() / 4, *rest, None, None])
    for dtype in HALVES:
        halves, wide = scan_inputs(1, 2, 5, 4, dtype), scan_inputs(1, 2, 5, 4)
        scans(judge, halves)
        for at in (2, 5, 6, 7):  # A, D, the state and dt_bias may stay float32
            halves[at] = wide[at]
        scans(judge, halves)
    extreme = scan_inputs(1, 3, 5, 4)
    extreme[1] *= 40  # softplus above 20, and far below
    scans(judge, extreme)

    inputs = scan_inputs(2, 4, 5, 4)
    u, dt, A, B, C, D, state, dt_bias, z = inputs
    steps, now = [], state
    for t in range(4):
        of_t = [x[:, t : t + 1] for x in (u, dt, B, C, z)]
        y, now = on_triton(selective_scan, of_t[0], of_t[1], A, of_t[2], of_t[3], D, now, dt_bias=dt_bias, z=of_t[4])
        steps.append(y)
    plain, exact = selective_scan_ref(*inputs), selective_scan_ref(*double(inputs))
    judge.as_accurate(torch.cat(steps, dim=1), plain[0], exact[0])
    judge.as_accurate(now, plain[1], exact[1])
    with_fault("selective_scan", without_state, scans, judge, inputs)
    with_fault("selective_scan", lambda run, u, dt, *r: run(u, dt.roll(1, 1), *r), scans, judge, inputs)


def int8_scan_inputs(judge, batch, length, width, n, tables=False):
    """As int8_selective_scan takes them, but for q_max."""
    g = torch.Generator().manual_seed(length)
    table = (width,) if tables else ()
    wide, narrow = (batch, length, width), (batch, length, n)
    u, dt, z, B, C = (judge.ints(g, *shape) for shape in (wide, wide, wide, narrow, narrow))
    of_u, of_B, of_C = (judge.scales(g) for _ in range(3))
    of_dt, of_z = judge.scales(g, *table, about=0.02), judge.scales(g, *table, about=0.02)
    of_state = judge.scales(g, *((width, n) if tables else (width, 1)), about=0.02)
    return [u, of_u, dt, of_dt, -randn(g, width, n).exp(), B, of_B, C, of_C, randn(g, width), randn(g, width) - 1, z,
            of_z, judge.ints(g, batch, width, n), of_state]  # fmt: skip


def int8_scans(judge, inputs, q_max=127):
    (plain, usual), (exact, right) = (
        selective_scan_ref(*scan_floats(t, *inputs)) for t in (torch.float32, torch.float64)
    )
    y, state = on_triton(int8_selective_scan, *inputs, q_max=q_max)
    judge.as_accurate(y, plain, exact, 4 * exact)  # some terms cancel
    return judge.rounded(state, usual, right, inputs[-1], q_max)


def check_int8_selective_scan(judge):
    off = 0
    for batch, length, width, n, tables in ((1, 1, 1, 1, False), (3, 1, 20, 16, True), (1, 4, 20, 5, False),
                                            (2, 7, 3, 16, True)):  # fmt: skip
        inputs = int8_scan_inputs(judge, batch, length, width, n, tables)
        for at in (0, 2, 5, 7, 11):
            inputs[at] = judge.inside(inputs[at])
        off += int8_scans(judge, inputs, 127 if tables else 7)
    print(f"{off} integers one step off, at ties")
    inputs = int8_scan_inputs(judge, 1, 3, 5, 4)
    with_fault("int8_selective_scan", without_state, int8_scans, judge, inputs)
    saturated = [*inputs[:-1], torch.tensor(1e-6)]
    int8_scans(judge, saturated)
    with_fault("int8_selective_scan", lambda run, *a: (run(*a)[0], run(*a)[1].clamp(min=-127)), int8_scans, judge,
               saturated)  # fmt: skip

    still = int8_scan_inputs(judge, 1, 1, 4, 16, True)  # nothing drives it, nothing decays: to the bit as before
    still[0], still[4] = still[0] * 0, still[4] * 0
    assert torch.equal(on_triton(int8_selective_scan, *still)[1], still[13])


# ssd and int8_ssd.


def ssd_inputs(batch, length, heads, head_dim, groups, n, dtype=torch.float32, per_channel=True):
    """x, dt, A, B, C, D, state, dt_bias."""
    g = torch.Generator().manual_seed(length)
    of = partial(randn, g, dtype=dtype)
    group = (batch, length, groups, n)
    D = of(heads, head_dim) if per_channel else of(heads)
    return [of(batch, length, heads, head_dim), of(batch, length, heads), -of(heads).exp(), of(*group), of(*group), D,
            of(batch, heads, head_dim, n), of(heads) - 1]  # fmt: skip


def ssd_runs(judge, inputs, dt_min=0.0, dt_max=float("inf")):
    x, dt, A, B, C, D, state, dt_bias = inputs
    plain, exact = (in_float32(ssd_ref, 6)(*args, dt_min, dt_max, 256) for args in (inputs, double(inputs)))
    absolute = [x.abs(), dt, A, B.abs(), C.abs(), None if D is None else D.abs(), state.abs(), dt_bias]
    size = ssd_ref(*double(absolute), dt_min, dt_max, 256)
    got = on_triton(ssd, *inputs[:7], dt_bias=dt_bias, dt_min=dt_min, dt_max=dt_max)
    for y, usual, true, magnitude in zip(got, plain, exact, size, strict=True):
        as_accurate(judge, y, usual, true, magnitude)


def check_ssd(judge):
    for batch, length, heads, head_dim, groups, n in ((1, 1, 1, 1, 1, 1), (3, 1, 4, 20, 2, 16), (1, 4, 2, 20, 2, 5),
                                                      (1, 3, 2, 20, 1, 128), (2, 5, 4, 3, 2, 16)):  # fmt: skip
        x, dt, A, B, C, *rest = ssd_inputs(batch, length, heads, head_dim, groups, n, per_channel=length % 2 == 1)
        whole = judge.inside(torch.cat([x.flatten(2), B.flatten(2), C.flatten(2)], dim=2))  # as a block has them
        x, B, C = whole.split([heads * head_dim, groups * n, groups * n], dim=2)
        x, B, C = x.unflatten(2, (heads, head_dim)), B.unflatten(2, (groups, n)), C.unflatten(2, (groups, n))
        ssd_runs(judge, [x, judge.inside(dt), A, B, C, *rest], dt_min=0.1, dt_max=0.9)
    x, dt, A, B, C, _, state, _ = ssd_inputs(1, 2, 2, 20, 1, 5)
    ssd_runs(judge, [x, dt.exp() / 4, A, B, C, None, state, None], dt_min=9.0)  # limits count for a bias only
    for dtype in HALVES:
        halves, wide = ssd_inputs(1, 2, 2, 4, 1, 4, dtype), ssd_inputs(1, 2, 2, 4, 1, 4)
        ssd_runs(judge, halves)
        for at in (2, 5, 6, 7):  # A, D, the state and dt_bias may stay float32
            halves[at] = wide[at]
        ssd_runs(judge, halves)

    inputs = ssd_inputs(1, 4, 2, 4, 1, 5)
    x, dt, A, B, C, D, state, dt_bias = inputs
    steps, now = [], state
    for t in range(4):
        of_x, of_dt, of_B, of_C = (m[:, t : t + 1] for m in (x, dt, B, C))
        y, now = on_triton(ssd, of_x, of_dt, A, of_B, of_C, D, now, dt_bias=dt_bias)
        steps.append(y)
    plain, exact = (ssd_ref(*args, 0.0, float("inf"), 256) for args in (inputs, double(inputs)))
    judge.as_accurate(torch.cat(steps, dim=1), plain[0], exact[0])
    judge.as_accurate(now, plain[1], exact[1])
    with_fault("ssd", without_state, ssd_runs, judge, inputs)
    with_fault("ssd", lambda run, x, dt, A, *r: run(x, dt, A.roll(1), *r), ssd_runs, judge, inputs)


def int8_ssd_inputs(judge, batch, length, heads, head_dim, groups, n, tables):
    """As int8_ssd takes them, but for limits, chunk and q_max."""
    g = torch.Generator().manual_seed(length)
    x, dt = judge.ints(g, batch, length, heads, head_dim), judge.ints(g, batch, length, heads)
    B, C = (judge.ints(g, batch, length, groups, n) for _ in range(2))

    def scale(*table, about=0.01):
        return judge.scales(g, *(table if tables else ()), about=about)

    of_state = judge.scales(g, *((heads, head_dim, n) if tables else (heads, 1, 1)), about=0.02)
    return [x, scale(heads * head_dim), dt, scale(heads, about=0.02), -randn(g, heads).exp(), B, scale(groups * n), C,
            scale(groups * n), randn(g, heads), randn(g, heads) - 1, judge.ints(g, batch, heads, head_dim, n),
            of_state]  # fmt: skip


def int8_ssd_runs(judge, inputs, q_max=127):
    (plain, usual), (exact, right) = (
        ssd_ref(*ssd_floats(t, *inputs), 0.0, 0.9, 256) for t in (torch.float32, torch.float64)
    )
    y, state = on_triton(int8_ssd, *inputs, dt_max=0.9, q_max=q_max)
    judge.as_accurate(y, plain, exact, 4 * exact)  # some terms cancel
    return judge.rounded(state, usual, right, inputs[-1], q_max)


def check_int8_ssd(judge):
    off = 0
    for batch, length, heads, head_dim, groups, n, tables in (
        (1, 1, 1, 1, 1, 1, False),
        (3, 1, 4, 20, 2, 16, True),
        (1, 4, 2, 20, 2, 5, False),
        (1, 3, 2, 3, 1, 16, True),
    ):
        inputs = int8_ssd_inputs(judge, batch, length, heads, head_dim, groups, n, tables)
        inputs[2] = judge.inside(inputs[2])
        off += int8_ssd_runs(judge, inputs, 127 if tables else 7)
    print(f"{off} integers one step off, at ties")
    inputs = int8_ssd_inputs(judge, 1, 3, 2, 4, 1, 5, False)
    with_fault("int8_ssd", without_state, int8_ssd_runs, judge, inputs)
    saturated = [*inputs[:-1], torch.tensor(1e-6)]
    int8_ssd_runs(judge, saturated)
    with_fault("int8_ssd", lambda run, *a: (run(*a)[0], run(*a)[1].clamp(min=-127)), int8_ssd_runs, judge, saturated)


# hadamard_quantize.


def base_of(order):
    """Paley's Hadamard matrices of order 12 (from 11) and 40 (twice 20, from 19); of order 1, 1."""
    if order == 1:
        return torch.ones(1, 1)
    p = {12: 11, 40: 19}[order]
    squares = {i * i % p for i in range(1, p)}
    legendre = torch.tensor(
        [[0.0 if i == j else 1.0 if (i - j) % p in squares else -1.0 for j in range(p)] for i in range(p)]
    )
    skew = torch.zeros(p + 1, p + 1)
    skew[0, 1:], skew[1:, 0], skew[1:, 1:] = 1.0, -1.0, legendre
    found = torch.eye(p + 1) + skew
    return found if order == 12 else torch.kron(torch.tensor([[1.0, 1.0], [1.0, -1.0]]), found)


def rotates(judge, x, scale, base, q_max=127):
    q = on_triton(hadamard_quantize, x, scale, base, q_max=q_max)
    return judge.rounded(q, rotated(x.float(), base), rotated(x.double(), base.double()), scale, q_max)


def check_hadamard_quantize(judge):
    g, off = torch.Generator().manual_seed(0), 0
    for order, inner in ((1, 1), (1, 2), (1, 256), (12, 1), (12, 8), (12, 64), (40, 2), (40, 16)):
        base = base_of(order)
        assert torch.equal(base @ base.t(), order * torch.eye(order))
        x = randn(g, 3, order * inner)
        off += rotates(judge, judge.inside(x), torch.tensor(0.03), base)
        off += rotates(judge, x[:1] * 100, torch.tensor(0.3), base, q_max=7)  # saturates
    for dtype in HALVES:
        off += rotates(judge, randn(g, 2, 24, dtype=dtype), torch.tensor(0.03), base_of(12))
    print(f"{off} integers one step off, at ties")

    # Integers over sqrt(4) on a grid of 1: halves.
    ties = torch.randint(-40, 40, (8, 4), generator=g).float()
    one = torch.ones(1, 1)
    assert torch.equal(
        on_triton(hadamard_quantize, ties, one[0, 0], one), hadamard_quantize_ref(ties, one[0, 0], one, 127)
    )
    inputs = judge, ties, one[0, 0], one
    with_fault("hadamard_quantize", lambda run, x, s, b, q_max: away(rotated(x, b), s), rotates, *inputs)
    rows = judge, randn(g, 2, 24), torch.tensor(0.03), base_of(12)
    with_fault("hadamard_quantize", lambda run, x, s, b, q_max: run(x, s, b.t().contiguous(), q_max), rotates, *rows)

    # One channel, H = 1: what a grid makes of a float, to the bit, the ends and what is no number among it.
    edge = torch.tensor(
        [0.5, 1.5, 2.5, -0.5, -1.5, 126.5, 127.5, -127.5, -128.5, 1e30, torch.inf, -torch.inf, 0.0, -0.0]
    )
    q = on_triton(hadamard_quantize, edge[:, None], torch.tensor(1.0), one)
    assert torch.equal(q, quantize_ref(edge[:, None], torch.tensor(1.0), 127))
    assert on_triton(hadamard_quantize, torch.full((2, 1), torch.nan), torch.tensor(1.0), one).tolist() == [[0], [0]]


# rms_norm_quantize.


def norms(judge, x, gain, groups=1, residual=None, z=None, z_scale=None, first=False, scale=None):
    """Each form by its own function; returns how many integers are one step off."""

    def ref(dtype):
        gate = z if z is None or z.dtype == torch.int8 else z.to(dtype)
        if gate is not None and z_scale is not None:
            gate = z.to(dtype) * z_scale.to(dtype)
        # what is normed is the sum as it is kept
        total = None if residual is None else (residual + x).to(dtype)
        return rms_norm_quantize_ref(x.to(dtype) if total is None else total, None, gate, None, first,
                                     None if gain is None else gain.to(dtype), 1e-5, groups, None, 127)[0]  # fmt: skip

    if residual is not None:
        got, total = on_triton(add_rms_norm_quantize, x, residual, gain, 1e-5, scale)
        assert torch.equal(total, residual + x)  # one rounding, the same everywhere
    elif z is not None:
        got = on_triton(
            gated_rms_norm_quantize, x, z, z_scale, gain, 1e-5, scale, n_groups=groups, norm_before_gate=first
        )
    else:
        got = on_triton(rms_norm_quantize, x, gain, 1e-5, scale, n_groups=groups)
    if scale is None:
        as_accurate(judge, got, ref(x.dtype), ref(torch.float64))
        return 0
    return judge.rounded(got, ref(torch.float32), ref(torch.float64), scale)


def check_rms_norm_quantize(judge):
    g, off = torch.Generator().manual_seed(0), 0
    for lead, n, groups in (((1,), 1, 1), ((3,), 7, 1), ((2, 3), 96, 3), ((1,), 1030, 1), ((2,), 40, 2), ((0,), 5, 1)):
        x, other, gain = randn(g, *lead, n), randn(g, *lead, n), randn(g, n)
        z_q, table = judge.ints(g, *lead, n), judge.scales(g, n)
        for scale in (None, torch.tensor(0.03)):
            off += norms(judge, judge.inside(x), gain, groups, scale=scale)
            off += norms(judge, x, None, 1, residual=judge.inside(other), scale=scale)
            off += norms(judge, x, gain, groups, z=judge.inside(other), first=scale is None, scale=scale)
            off += norms(judge, x, gain, groups, z=z_q, z_scale=table if scale is None else table[0], scale=scale)
    for dtype in HALVES:
        x, other, gain = randn(g, 2, 40, dtype=dtype), randn(g, 2, 40, dtype=dtype), randn(g, 40, dtype=dtype)
        for scale in (None, torch.tensor(0.03)):
            off += norms(judge, x, gain, 2, scale=scale)
            off += norms(judge, x, gain, z=other, first=True, scale=scale)
            if dtype == torch.float16 or DEVICE.type == "cuda":  # the interpreter cuts bfloat16 off, and rounds not
                off += norms(judge, x, gain, residual=other, scale=scale)
    print(f"{off} integers one step off, at ties")

    # Rows of +-2^k have a norm of +-1, but for eps: on a grid of 2, with gains, halves.
    gain = torch.arange(1.0, 33)
    x = torch.full((2, 32), 2.0**40)
    x[:, ::2] *= -1
    assert norms(judge, x, gain, scale=torch.tensor(2.0)) == 0
    by_hand = [round(n / 2) * (-1) ** n for n in range(1, 33)]
    assert on_triton(rms_norm_quantize, x, gain, 1e-5, torch.tensor(2.0))[0].tolist() == by_hand
    ties = partial(norms, judge, x, gain, scale=torch.tensor(2.0))
    with_fault("rms_norm_quantize", lambda run, x, *a: (away(x.sign() * a[4], a[7]), None), ties)
    plain = partial(norms, judge, randn(g, 2, 40), None, 2, scale=torch.tensor(0.03))
    with_fault("rms_norm_quantize", lambda run, *a: run(*a[:7], 1, *a[8:]), plain)  # groups taken together


# int8_embedding and int8_linear: to the bit.


def embeds(tokens, table, scale):
    got = on_triton(int8_embedding, tokens, table, scale)
    assert torch.equal(got, int8_embedding_ref(tokens, table, scale))


def check_int8_embedding(judge):
    g = torch.Generator().manual_seed(0)
    for shape, rows, width in (((1,), 1, 1), ((2, 3), 7, 33), ((0, 4), 5, 8), ((3,), 9, 1030)):
        table, scale = judge.ints(g, rows, width), judge.scales(g, rows)
        tokens = torch.randint(0, rows, shape, generator=g)
        embeds(tokens, table, scale)
    inputs = torch.tensor([0, 4]), judge.ints(g, 5, 8), judge.scales(g, 5)
    with_fault("int8_embedding", lambda run, t, q, s: run(t, q, s.roll(1)), embeds, *inputs)
    if DEVICE.type == "cuda":  # a CPU's operation refuses such tokens
        outside = on_triton(int8_embedding, torch.tensor([1, 5, -1, 2**40]), *inputs[1:])
        assert outside[1:].isnan().all() and not outside[0].isnan().any()


def multiplies(x, w, scale=None, bias=None, out_scale=None, q_max=127):
    got = on_triton(int8_linear, x, w, scale, bias, out_scale, q_max=q_max)
    want = int8_linear_ref(x, w)
    assert torch.equal(got, want if scale is None else finish_ref(want, scale, bias, out_scale, q_max))


def check_int8_linear(judge):
    g = torch.Generator().manual_seed(0)
    for m, n, k in ((1, 1, 1), (3, 33, 70), (17, 65, 129), (65, 40, 300), (0, 5, 8), (2, 3, 2049)):
        x, w = judge.ints(g, m, k), judge.ints(g, n, k)
        scale, bias = judge.scales(g, n, about=1e-3), randn(g, n)
        out = judge.scales(g, n, about=k**0.5 / 30)
        multiplies(x, w)
        multiplies(judge.inside(x), w, scale, bias, out)
        multiplies(x, w, scale[0], None, out[0], q_max=7)
        multiplies(x, w, scale, bias)
        multiplies(x, w, scale[0], None)
        multiplies(x, w, scale, bias, out * 1e-6)  # all saturates
    full = torch.full((3, 2049), 127, dtype=torch.int8)  # an odd sum beyond 2^24, so no float32
    multiplies(full, full)
    multiplies(-full - 1, full, torch.tensor(1e-3), randn(g, 3))
    turned = judge.ints(g, 70, 5).t()
    multiplies(turned, judge.ints(g, 9, 70), judge.scales(g, 9))
    sums, one = torch.arange(-128, 128).to(torch.int8)[:, None], torch.ones(1, 1, dtype=torch.int8)
    for over in (1.0, 2.0, 4.0, 0.3, 7.7):  # halves and quarters, and what is no tie
        multiplies(sums, one, torch.tensor(1.0), None, torch.tensor(over))

    x, w, scale, bias = judge.ints(g, 40, 300), judge.ints(g, 33, 300), judge.scales(g, 33, about=1e-3), randn(g, 33)
    with_fault("int8_linear", lambda run, x, w: run(x.clamp(min=-127), w), multiplies, x, w)
    with in_place_of_fused(contracted):
        noticed(multiplies, x, w, scale, bias)
    with in_place_of_fused(half_away):
        multiplies(sums, one, torch.tensor(1.0), None, torch.tensor(4.1))
        noticed(multiplies, sums, one, torch.tensor(1.0), None, torch.tensor(2.0))


def in_place_of_fused(fault):
    return patch.object(import_module("quambench_kernels.int8_linear.triton"), "fused", fault)


def contracted(x, w, scale, bias, out_scale, q_max):
    """sum * scale + bias in one rounding: what a compiler may make of it."""
    sums = int8_linear_ref(x, w).float().double()  # the product of two float32 is exact in float64
    return (sums * scale.double() + bias.double()).float()


def half_away(x, w, scale, bias, out_scale, q_max):
    return away(int8_linear_ref(x, w) * scale, out_scale, q_max)


# The processes.

CHECKS = {name.removeprefix("check_"): check for name, check in list(globals().items()) if name.startswith("check_")}


def run_check(name, device):
    """In a process of its own; interpreted unless on a GPU."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    if device == "cpu":
        environment["TRITON_INTERPRET"] = "1"
    command = [sys.executable, "-W", "error", __file__, name, device]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("name", CHECKS)
def test_agrees(name, device):
    if why_not():
        pytest.skip(why_not())
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("no GPU")
    done = run_check(name, device)
    assert done.returncode == 0, done.stderr
    print(done.stdout)


# Without a process that interprets.


def python(code, **environment):
    """What a program prints, Triton not interpreting."""
    kept = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], env={**kept, **environment}, capture_output=True,
                          text=True, timeout=600)  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


OPERATIONS = """
import sys, torch
from quambench_kernels import (causal_conv1d, hadamard_quantize, int8_causal_conv1d, int8_embedding, int8_linear,
                               int8_selective_scan, int8_ssd, rms_norm_quantize, selective_scan, ssd)
"""


def test_operations_are_imported_without_triton():
    assert python(OPERATIONS + "print('triton' in sys.modules)") == "False\n"


@pytest.mark.parametrize("op", CHECKS)
def test_serves_a_gpu_before_the_plain_form_and_no_cpu(op):
    entry, names = dispatch._known[op]["triton"], dispatch.implementations(op)
    assert entry.devices == ("cuda",)
    assert all(names.index("triton") < i for i, n in enumerate(names) if n in ("in_place", "chunked", "reference"))
    with pytest.raises(dispatch.UnavailableError, match="runs on cuda, not on cpu"):
        dispatch.resolve(op, "triton", torch.device("cpu"))


def test_interpreted_it_runs_on_a_cpu_by_name_alone():
    code = (
        OPERATIONS
        + """
from quambench_kernels.dispatch import chosen
x = torch.ones(2, 3, dtype=torch.int8)
int8_linear.int8_linear(x, x)
assert "triton" not in chosen()["int8_linear"]
int8_linear.int8_linear(x, x, impl="triton")
print("triton" in chosen()["int8_linear"])
"""
    )
    if why_not():
        pytest.skip(why_not())
    assert python(code, TRITON_INTERPRET="1") == "True\n"


def test_where_triton_is_missing_it_says_so():
    code = (
        OPERATIONS
        + """
import importlib.util
from quambench_kernels import dispatch, lazy
lazy.find_spec = lambda name: None
try:
    dispatch.resolve("ssd", "triton", torch.device("cuda"))
except dispatch.UnavailableError as error:
    print(error)
assert dispatch.resolve("ssd", "auto", torch.device("cuda"), torch.float32).__name__ == "by_chunks"
"""
    )
    assert python(code) == "ssd: implementation 'triton' is unavailable: triton is not installed\n"


ROUNDINGS = """
from quambench_kernels.aot import compiled, table

for row in table(["int8_linear step", "int8_linear"]):
    assert row.stack == 0 and row.widest == 16, row
for target, product in ((80, "mma.sync.aligned.m16n8k32"), (90, "wgmma.mma_async.sync")):
    ptx = compiled("int8_linear", target).asm["ptx"]
    assert product in ptx and "s32.s8.s8" in ptx
    assert "fma" not in ptx  # a product and a sum: two roundings, as the reference has them
    assert "div.rn.f32" in ptx and "div.full" not in ptx
    assert ptx.count(", 0f4B400000;") == 64  # one for each of a thread's sums: adding 1.5 * 2^23 is still there
print("seen")
"""


def test_what_is_compiled_rounds_as_the_source_says(tmp_path):
    if why_not():
        pytest.skip(why_not())
    assert python(ROUNDINGS, TRITON_CACHE_DIR=str(tmp_path)) == "seen\n"


EVERY_KERNEL = """
from quambench_kernels.aot import CASES, TARGETS, table

rows = table()
assert {(row.case, row.target) for row in rows} == {(case, target) for case in CASES for target in TARGETS}
for row in rows:
    assert row.stack == 0, f"{row} spills"
    assert row.shared <= 99 * 1024, f"{row} fits no consumer's GPU"
    assert row.widest == 16, f"{row} has no 16-byte access"
print("all", len({row.case for row in rows}))
"""


@pytest.mark.slow
def test_every_kernel_compiles_for_both_targets_and_none_spills(tmp_path):
    if why_not():
        pytest.skip(why_not())
    assert python(EVERY_KERNEL, TRITON_CACHE_DIR=str(tmp_path)).startswith("all")


SIZES_OF_ONE = """
import torch
from quambench_kernels import aot
from quambench_kernels.aot import f, i, q

one, three, four, three_q, four_q = f(1), f(1, 1, 1), f(1, 1, 1, 1), q(1, 1, 1), q(1, 1, 1, 1)
for call in (
    lambda: aot.causal_conv1d(three, f(1, 1), None, f(1, 0, 1), False),
    lambda: aot.int8_causal_conv1d(three_q, one, f(1, 1), one, q(1, 0, 1), one, 1),
    lambda: aot.int8_causal_conv1d_walking(three_q, f(), f(1, 1), None, q(1, 0, 1), i(1, 1), i(1, 1, 1), three, 1, 1),
    lambda: aot.selective_scan(three, three, f(1, 1), three, three, one, three, None, None),
    lambda: aot.int8_selective_scan(three_q, f(), three_q, one, f(1, 1), three_q, f(), three_q, f(), one, one, three_q,
                                    one, three_q, f(1, 1), 1),
    lambda: aot.ssd(four, three, one, four, four, f(1, 1), four, None, 0.0, 1.0, 1),
    lambda: aot.int8_ssd(four_q, one, three_q, one, one, four_q, one, four_q, one, one, one, four_q, three, 0.0, 1.0,
                         1, 1),
    lambda: aot.hadamard_quantize(f(1, 1), f(), f(1, 1), 1),
    lambda: aot.rms_norm_quantize(f(1, 1), None, q(1, 1), one, True, None, 1.0, 1, f(), 1),
    lambda: aot.int8_embedding(i(1), q(1, 1), one),
    lambda: aot.int8_linear.fused(q(1, 1), q(1, 1), one, one, one, 1),
):
    aot._compile(aot._planned(call), 90)
print("compiled")
"""


@pytest.mark.slow
def test_sizes_and_strides_of_one_compile(tmp_path):
    """A launch makes an integer 1 part of the kernel; the interpreter does not."""
    if why_not():
        pytest.skip(why_not())
    assert python(SIZES_OF_ONE, TRITON_CACHE_DIR=str(tmp_path)) == "compiled\n"


def main(name, device):
    global DEVICE
    DEVICE = torch.device(device)
    CHECKS[name](load_judge())
    assert dispatch.chosen()[name] == "triton" or name == "int8_linear"


if __name__ == "__main__":
    main(*sys.argv[1:])
