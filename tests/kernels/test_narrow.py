"""float16 and bfloat16: computed in float32, rounded once; rates and states may be float32 beside narrow inputs."""

from __future__ import annotations

import pytest
import torch
from quambench_kernels.causal_conv1d import causal_conv1d
from quambench_kernels.causal_conv1d.reference import causal_conv1d_ref
from quambench_kernels.dispatch import implementations, resolve
from quambench_kernels.narrow import in_float32
from quambench_kernels.rms_norm_quantize import add_rms_norm_quantize, gated_rms_norm_quantize, rms_norm_quantize
from quambench_kernels.selective_scan import selective_scan
from quambench_kernels.selective_scan.reference import selective_scan_ref
from quambench_kernels.ssd import ssd

NARROW = [torch.float16, torch.bfloat16]


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed + len(shape)))


def on_cpu(op):
    """Names of those that run here, on narrow inputs."""
    found = []
    for name in implementations(op):
        try:
            resolve(op, name, torch.device("cpu"), torch.bfloat16)
        except ValueError:
            continue
        found.append(name)
    return [pytest.param(op, name, id=f"{op} {name}") for name in found]


def conv(impl, cast, wide):
    return causal_conv1d(cast(randn(2, 5, 6)), cast(randn(6, 4)), cast(randn(6)), cast(randn(2, 3, 6, seed=1)),
                         silu=True, impl=impl)  # fmt: skip


def scan(impl, cast, wide):
    u, dt, z = (cast(randn(2, 7, 6, seed=i)) for i in range(3))
    B, C = cast(randn(2, 7, 3)), cast(randn(2, 7, 3, seed=4))
    return selective_scan(u, dt, wide(-randn(6, 3).abs()), B, C, wide(randn(6)), wide(randn(2, 6, 3, seed=5)),
                          dt_bias=wide(randn(6, seed=6)), z=z, impl=impl)  # fmt: skip


def dual(impl, cast, wide):
    B, C = cast(randn(2, 7, 2, 5)), cast(randn(2, 7, 2, 5, seed=4))
    return ssd(cast(randn(2, 7, 4, 3)), cast(randn(2, 7, 4)), wide(-randn(4).abs()), B, C, wide(randn(4)),
               wide(randn(2, 4, 3, 5, seed=5)), dt_bias=wide(randn(4, seed=6)), chunk=3, impl=impl)  # fmt: skip


def norms(impl, cast, wide):
    x, gain = cast(randn(3, 8)), cast(randn(8))
    return (
        rms_norm_quantize(x, gain, 1e-5, None, impl=impl),
        rms_norm_quantize(x, gain, 1e-5, torch.tensor(0.1), impl=impl),
        *add_rms_norm_quantize(x, cast(randn(3, 8, seed=3)), gain, 1e-5, None, impl=impl),
        gated_rms_norm_quantize(x, cast(randn(3, 8, seed=3)), None, gain, 1e-5, None, n_groups=2, impl=impl),
    )


CALLS = {"causal_conv1d": conv, "selective_scan": scan, "ssd": dual, "rms_norm_quantize": norms}
EVERY = [case for op in CALLS for case in on_cpu(op)]


def rounded(x, dtype):
    return x.to(dtype) if x.is_floating_point() else x


@pytest.mark.parametrize(("op", "impl"), EVERY)
@pytest.mark.parametrize("dtype", NARROW)
def test_results_are_float32s_rounded_once(op, impl, dtype):
    found = CALLS[op](impl, lambda x: x.to(dtype), lambda x: x.to(dtype))
    want = CALLS[op](impl, lambda x: x.to(dtype).float(), lambda x: x.to(dtype).float())
    for a, b in zip(found, want, strict=True):
        assert torch.equal(a, rounded(b, dtype))
        assert a.dtype == (dtype if b.is_floating_point() else torch.int8)


@pytest.mark.parametrize(("op", "impl"), [c for op in ("selective_scan", "ssd") for c in on_cpu(op)])
@pytest.mark.parametrize("dtype", NARROW)
def test_rates_and_states_may_stay_float32(op, impl, dtype):
    y, state = CALLS[op](impl, lambda x: x.to(dtype), lambda x: x)
    want_y, want_state = CALLS[op](impl, lambda x: x.to(dtype).float(), lambda x: x)
    assert y.dtype == dtype and torch.equal(y, want_y.to(dtype))
    assert state.dtype == torch.float32 and torch.equal(state, want_state)  # to the last bit


@pytest.mark.parametrize("op", ["selective_scan", "ssd"])
def test_other_mixtures_are_refused(op):
    for cast, wide in [(torch.Tensor.float, torch.Tensor.double), (torch.Tensor.half, torch.Tensor.bfloat16),
                       (torch.Tensor.float, torch.Tensor.half), (torch.Tensor.half, torch.Tensor.double)]:  # fmt: skip
        with pytest.raises(ValueError, match="all must be of one floating dtype"):
            CALLS[op]("auto", cast, wide)


def test_a_scan_in_bfloat16_itself_would_be_noticed():
    """The twin: the reference without widening rounds its state at every step."""
    dtype = torch.bfloat16
    inputs = [randn(2, 7, 6), randn(2, 7, 6, seed=1), -randn(6, 3).abs(), randn(2, 7, 3), randn(2, 7, 3, seed=4)]
    inputs = [x.to(dtype) for x in (*inputs, randn(6), randn(2, 6, 3, seed=5), randn(6, seed=6))]
    plain = selective_scan_ref(*inputs, None)
    once = in_float32(selective_scan_ref, 6)(*inputs, None)
    want = [x.to(dtype) for x in selective_scan_ref(*(x.float() for x in inputs), None)]
    assert all(torch.equal(a, b) for a, b in zip(once, want, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(plain, want, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_wide_arguments_pass_untouched(dtype):
    x = randn(2, 5, 6).to(dtype)
    inputs = x, randn(6, 4).to(dtype), None, randn(2, 3, 6).to(dtype), False
    seen = []
    in_float32(lambda *args: seen.append(args) or causal_conv1d_ref(*args))(*inputs)
    assert all(a is b for a, b in zip(seen[0], inputs, strict=True))


def test_gradients_pass_through_narrow_inputs():
    x = randn(2, 5, 6).bfloat16().requires_grad_()
    causal_conv1d(x, randn(6, 4).bfloat16(), None, randn(2, 3, 6).bfloat16())[0].sum().backward()
    assert x.grad.dtype == torch.bfloat16 and x.grad.isfinite().all() and x.grad.any()
