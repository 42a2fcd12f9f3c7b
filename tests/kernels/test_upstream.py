"""mamba_ssm's and causal_conv1d's kernels as implementations: what they are handed, and what is made of their answers.

Without a GPU they cannot run. Functions of their names and documented layouts stand in for them, which compute by the
references; on a GPU with the packages the real ones are judged.
"""

import sys
from types import ModuleType

import pytest
import torch
import torch.nn.functional as F
from quambench_kernels import dispatch, upstream
from quambench_kernels.causal_conv1d.reference import causal_conv1d_ref
from quambench_kernels.selective_scan.reference import selective_scan_ref
from quambench_kernels.ssd.reference import ssd_ref


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed + len(shape)), dtype=torch.float64)


def causal_conv1d_fn(x, weight, bias=None, seq_idx=None, initial_states=None, return_final_states=False,
                     final_states_out=None, activation=None):  # fmt: skip
    """x (batch, dim, seqlen), initial_states (batch, dim, width - 1) -> (batch, dim, seqlen)."""
    y = F.conv1d(torch.cat([initial_states, x], dim=-1), weight[:, None], bias, groups=len(weight))
    return y if activation is None else F.silu(y)


def selective_scan_fn(u, delta, A, B, C, D=None, z=None, delta_bias=None, delta_softplus=False,
                      return_last_state=False):  # fmt: skip
    """u, delta, z (batch, dim, L), B, C (batch, N, L); from no state."""
    assert delta_softplus == (delta_bias is not None)
    assert all(m.is_contiguous() for m in (u, delta, B, C))
    state = u.new_zeros(len(u), *A.shape)
    u, delta, B, C = (m.transpose(1, 2) for m in (u, delta, B, C))
    gate = None if z is None else z.transpose(1, 2)
    y, last = selective_scan_ref(u, delta, A.to(u), B, C, D.to(u), state, delta_bias, gate)
    assert return_last_state
    return y.transpose(1, 2), last


def selective_state_update(state, x, dt, A, B, C, D=None, z=None, dt_bias=None, dt_softplus=False):
    """state (batch, dim, N), changed in place; x, dt, z (batch, dim), B, C (batch, N)."""
    assert dt_softplus == (dt_bias is not None)
    rows = [m if m is None else m[:, None] for m in (x, dt, B, C, z)]
    y, last = selective_scan_ref(rows[0], rows[1], A.to(x), rows[2], rows[3], D.to(x), state, dt_bias, rows[4])
    state.copy_(last)
    return y[:, 0]


def mamba_chunk_scan_combined(x, dt, A, B, C, chunk_size, D=None, z=None, dt_bias=None, initial_states=None,
                              seq_idx=None, cu_seqlens=None, dt_softplus=False, dt_limit=(0.0, float("inf")),
                              return_final_states=False, return_varlen_states=False):  # fmt: skip
    assert dt_softplus == (dt_bias is not None)
    assert return_final_states
    if dt_bias is None:
        dt = dt.clamp(*dt_limit)
    return ssd_ref(x, dt, A.to(x), B, C, D, initial_states, dt_bias, *dt_limit, chunk_size)


@pytest.fixture
def packages(monkeypatch):
    """Stand-ins under the packages' names."""
    for name, functions in {
        "causal_conv1d": [causal_conv1d_fn],
        "mamba_ssm": [],
        "mamba_ssm.ops": [],
        "mamba_ssm.ops.selective_scan_interface": [selective_scan_fn],
        "mamba_ssm.ops.triton": [],
        "mamba_ssm.ops.triton.selective_state_update": [selective_state_update],
        "mamba_ssm.ops.triton.ssd_combined": [mamba_chunk_scan_combined],
    }.items():
        module = ModuleType(name)
        module.__path__ = []
        for function in functions:
            setattr(module, function.__name__, function)
        monkeypatch.setitem(sys.modules, name, module)


def close(got, want):
    """Two orders of summation in float64, or float32 parameters (A, D and biases are handed on so)."""
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("silu", [True, False])
@pytest.mark.parametrize("with_bias", [True, False])
def test_causal_conv1d(packages, silu, with_bias):
    x, weight, bias, history = randn(2, 5, 6), randn(6, 4), randn(6), randn(2, 3, 6, seed=3)
    inputs = x, weight, bias if with_bias else None, history, silu
    close(upstream.causal_conv1d(*inputs), causal_conv1d_ref(*inputs))


@pytest.mark.parametrize("length", [1, 4])
@pytest.mark.parametrize("carried", [True, False])
@pytest.mark.parametrize("plain", [True, False])
def test_selective_scan(packages, length, carried, plain):
    u, dt, z = (randn(2, length, 6, seed=i) for i in range(3))
    B, C, state = randn(2, length, 3), randn(2, length, 3, seed=9), randn(2, 6, 3) * carried
    bias, gate = (None, None) if plain else (randn(6).float().double(), z)
    inputs = u, dt.abs(), -randn(6, 3).abs().float().double(), B, C, randn(6).float().double(), state, bias, gate
    before = state.clone()
    for got, want in zip(upstream.selective_scan(*inputs), selective_scan_ref(*inputs), strict=True):
        close(got, want)
    assert torch.equal(state, before)  # the caller's is not written to


@pytest.mark.parametrize("length", [1, 5])
@pytest.mark.parametrize("plain", [True, False])
def test_ssd(packages, length, plain):
    x, dt, B, C = (
        randn(2, length, 4, 3),
        randn(2, length, 4).abs(),
        randn(2, length, 2, 5),
        randn(2, length, 2, 5, seed=7),
    )
    D, bias = (None, None) if plain else (randn(4, 3), randn(4))
    inputs = x, dt, -randn(4).abs().float().double(), B, C, D, randn(2, 4, 3, 5, seed=2), bias, 0.01, 0.5, 2
    for got, want in zip(upstream.ssd(*inputs), ssd_ref(*inputs), strict=True):
        close(got, want)


def test_a_layout_mistaken_is_noticed(packages, monkeypatch):
    """The twin: without the transposition of time and channels the checks above fail."""
    monkeypatch.setattr(sys.modules["causal_conv1d"], "causal_conv1d_fn", lambda x, *a, **k: x)
    with pytest.raises(AssertionError):
        test_causal_conv1d(packages, True, True)


@pytest.mark.parametrize(
    ("op", "name"), [("causal_conv1d", "causal_conv1d"), ("selective_scan", "mamba_ssm"), ("ssd", "mamba_ssm")]
)
def test_they_run_on_a_gpu_and_by_name_alone(op, name, monkeypatch):
    entry = dispatch._known[op][name]
    assert entry.devices == ("cuda",)
    assert not entry.auto()
    monkeypatch.setattr(upstream, "find_spec", lambda module: None)
    upstream._why_not.cache_clear()
    with pytest.raises(dispatch.UnavailableError, match=r"the package (mamba-ssm|causal-conv1d|causal_conv1d) is not"):
        dispatch.resolve(op, name, torch.device("cuda"))
    upstream._why_not.cache_clear()


@pytest.mark.parametrize("op", ["causal_conv1d", "selective_scan", "ssd"])
def test_the_real_ones_on_a_gpu(op):
    reason = upstream._why_not("causal_conv1d" if op == "causal_conv1d" else "mamba_ssm")
    if reason or not torch.cuda.is_available():
        pytest.skip(reason or "no GPU")
    if op == "causal_conv1d":
        inputs, reference = (randn(2, 9, 8), randn(8, 4), randn(8), randn(2, 3, 8, seed=3), True), causal_conv1d_ref
    elif op == "selective_scan":
        u, dt, z = (randn(2, 9, 8, seed=i) for i in range(3))
        B, C, zeros = randn(2, 9, 16), randn(2, 9, 16, seed=3), torch.zeros(2, 8, 16, dtype=torch.float64)
        inputs = u, dt, -randn(8, 16).abs(), B, C, randn(8), zeros, randn(8), z
        reference = selective_scan_ref
    else:
        inputs = (randn(2, 9, 4, 16), randn(2, 9, 4), -randn(4).abs(), randn(2, 9, 1, 16), randn(2, 9, 1, 16, seed=5),
                  randn(4), randn(2, 4, 16, 16, seed=6), randn(4), 0.0, float("inf"), 16)  # fmt: skip
        reference = ssd_ref
    there = [m.float().cuda() if isinstance(m, torch.Tensor) else m for m in inputs]
    got, want = getattr(upstream, op)(*there), reference(*inputs)
    for a, b in zip(got if isinstance(got, tuple) else (got,), want, strict=False):
        assert (a.cpu().double() - b).abs().max() <= 1e-2 * b.abs().max()  # TF32 products inside, 10 bits each
