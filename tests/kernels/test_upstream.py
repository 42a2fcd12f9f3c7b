"""mamba_ssm's and causal_conv1d's kernels as implementations: what they are handed, and what is made of their answers.

Without a GPU they cannot run. Functions of their names and documented layouts stand in for them, which compute by the
references; on a GPU with the packages the real ones are judged.
"""

import copy
import sys
from dataclasses import replace
from importlib.machinery import ModuleSpec
from types import ModuleType

import pytest
import torch
import torch.nn.functional as F
from quambench_kernels import dispatch, upstream
from quambench_kernels.causal_conv1d.reference import causal_conv1d_ref
from quambench_kernels.selective_scan.reference import selective_scan_ref
from quambench_kernels.ssd.reference import ssd_ref

from quambench.core.errors import BadParameter
from quambench.models import ModelConfig, build
from quambench.models.checkpoint import load_checkpoint


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed + len(shape)), dtype=torch.float64)


def computed(function, *args):
    """By a reference in float64, as their kernels compute in float32: results have the first argument's dtype."""
    found = function(*(a.double() if isinstance(a, torch.Tensor) else a for a in args))
    return [m.to(args[0].dtype) for m in (found if isinstance(found, tuple) else (found,))]


def causal_conv1d_fn(x, weight, bias=None, seq_idx=None, initial_states=None, return_final_states=False,
                     final_states_out=None, activation=None):  # fmt: skip
    """x (batch, dim, seqlen), initial_states (batch, dim, width - 1) -> (batch, dim, seqlen).

    What csrc/causal_conv1d.cpp of causal-conv1d 1.5 asks: channels that lie side by side come in eights, and initial
    states go with such channels alone.
    """
    assert 2 <= weight.shape[1] <= 4 and weight.dtype == x.dtype
    channels_last = x.stride(1) == 1 and x.stride(2) > 1
    if channels_last:
        assert x.shape[1] % 8 == 0 and x.stride(0) % 8 == 0 and x.stride(2) % 8 == 0
    else:
        assert x.stride(2) == 1 and initial_states is None
    if initial_states is None:
        initial_states = x.new_zeros(*x.shape[:2], weight.shape[1] - 1)
    else:
        assert initial_states.stride(1) == 1
    past, rows = initial_states.transpose(1, 2), x.transpose(1, 2)
    y = computed(causal_conv1d_ref, rows, weight, bias, past, activation == "silu")[0]
    return y.transpose(1, 2)


def selective_scan_fn(u, delta, A, B, C, D=None, z=None, delta_bias=None, delta_softplus=False,
                      return_last_state=False):  # fmt: skip
    """u, delta, z (batch, dim, L), B, C (batch, N, L); from no state. The last state is float32."""
    assert delta_softplus == (delta_bias is not None)
    assert all(m.is_contiguous() for m in (u, delta, B, C))
    assert A.dtype == D.dtype == torch.float32 and (delta_bias is None or delta_bias.dtype == torch.float32)
    state = u.new_zeros(len(u), *A.shape)
    rows = [m if m is None else m.transpose(1, 2).double() for m in (u, delta, B, C, z)]
    bias = None if delta_bias is None else delta_bias.double()
    assert return_last_state
    y, last = selective_scan_ref(*rows[:2], A.double(), *rows[2:4], D.double(), state.double(), bias, rows[4])
    return y.transpose(1, 2).to(u.dtype), last.to(torch.promote_types(u.dtype, torch.float32))


def selective_state_update(state, x, dt, A, B, C, D=None, z=None, dt_bias=None, dt_softplus=False):
    """state (batch, dim, N) or (batch, nheads, dim, N), changed in place; dt and A by channel, also with heads."""
    assert dt_softplus == (dt_bias is not None)
    groups = 1 if state.ndim == 3 else B.shape[1]
    x4, dt4, state4 = (m.unflatten(0, (len(m), 1)) if state.ndim == 3 else m for m in (x, dt, state))
    A, D, bias = (m if m is None or state.ndim == 4 else m[None] for m in (A, D, dt_bias))
    B, C = (m.reshape(len(x), groups, -1).repeat_interleave(x4.shape[1] // groups, dim=1).double() for m in (B, C))
    assert A.shape == state4.shape[1:] and dt4.shape == x4.shape and (bias is None or bias.shape == x4.shape[1:])
    steps = dt4.double() if bias is None else F.softplus(dt4.double() + bias.double())
    after = torch.exp(steps[..., None] * A) * state4 + (steps * x4)[..., None] * B[:, :, None, :]
    y = (after * C[:, :, None, :]).sum(-1) + (0 if D is None else D * x4)
    state.copy_(after.view(state.shape))
    y = y.view(x.shape)
    return (y if z is None else y * F.silu(z.double())).to(x.dtype)


def mamba_chunk_scan_combined(x, dt, A, B, C, chunk_size, D=None, z=None, dt_bias=None, initial_states=None,
                              seq_idx=None, cu_seqlens=None, dt_softplus=False, dt_limit=(0.0, float("inf")),
                              return_final_states=False, return_varlen_states=False):  # fmt: skip
    assert dt_softplus == (dt_bias is not None)
    assert return_final_states and chunk_size & (chunk_size - 1) == 0
    if dt_bias is None:
        dt = dt.clamp(*dt_limit)
    y, last = ssd_ref(*(m if m is None else m.double() for m in (x, dt, A, B, C, D, initial_states, dt_bias)),
                      *dt_limit, chunk_size)  # fmt: skip
    return y.to(x.dtype), last.to(torch.promote_types(x.dtype, torch.float32))


PARTS = {
    "causal_conv1d": [causal_conv1d_fn],
    "mamba_ssm": [],
    "mamba_ssm.ops": [],
    "mamba_ssm.ops.selective_scan_interface": [selective_scan_fn],
    "mamba_ssm.ops.triton": [],
    "mamba_ssm.ops.triton.selective_state_update": [selective_state_update],
    "mamba_ssm.ops.triton.ssd_combined": [mamba_chunk_scan_combined],
}
OPS = {"causal_conv1d": "causal_conv1d", "selective_scan": "mamba_ssm", "ssd": "mamba_ssm"}  # operation -> theirs


@pytest.fixture
def fresh():
    """What was found before is asked anew, and afterwards again."""

    def forget():
        upstream._why_not.cache_clear()
        dispatch._able.clear()

    forget()
    yield forget
    forget()


@pytest.fixture
def packages(monkeypatch, fresh):
    """Stand-ins under the packages' names."""
    for name, functions in PARTS.items():
        module = ModuleType(name)
        module.__path__, module.__spec__ = [], ModuleSpec(name, None)
        for function in functions:
            setattr(module, function.__name__, function)
        monkeypatch.setitem(sys.modules, name, module)


def close(got, want):
    """Two orders of summation in float64, or float32 parameters (A, D and biases are handed on so)."""
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("silu", [True, False])
@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("channels", [6, 8, "a part of 24"])
@pytest.mark.parametrize("length", [1, 5])
def test_causal_conv1d(packages, silu, with_bias, channels, length):
    wide = randn(2, length, 24)
    x = wide[..., 8:16] if isinstance(channels, str) else wide[..., :channels].contiguous()
    weight, bias, history = randn(x.shape[2], 4), randn(x.shape[2]), randn(2, 3, x.shape[2], seed=3)
    inputs = x, weight, bias if with_bias else None, history, silu
    close(upstream.causal_conv1d(*inputs), causal_conv1d_ref(*inputs))


def test_a_part_that_starts_off_the_eights_is_copied(packages):
    x, weight, history = randn(2, 5, 12)[..., 3:11], randn(8, 4), randn(2, 3, 8, seed=3)
    close(upstream.causal_conv1d(x, weight, None, history, True), causal_conv1d_ref(x, weight, None, history, True))


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
@pytest.mark.parametrize("chunk", [2, 24])
@pytest.mark.parametrize("limits", [(0.0, float("inf")), (0.01, 0.5)])
@pytest.mark.parametrize("by_channel", [True, False])
def test_ssd(packages, length, plain, chunk, limits, by_channel):
    x, dt, B, C = (
        randn(2, length, 4, 3),
        randn(2, length, 4).abs(),
        randn(2, length, 2, 5),
        randn(2, length, 2, 5, seed=7),
    )
    D, bias = (None, None) if plain else (randn(4, 3) if by_channel else randn(4), randn(4))
    state = randn(2, 4, 3, 5, seed=2)
    inputs = x, dt, -randn(4).abs().float().double(), B, C, D, state.clone(), bias, *limits, chunk
    for got, want in zip(upstream.ssd(*inputs), ssd_ref(*inputs), strict=True):
        close(got, want)
    assert torch.equal(inputs[6], state)  # the caller's is not written to


def test_a_layout_mistaken_is_noticed(packages, monkeypatch):
    """The twin: without the transposition of time and channels the checks above fail."""
    monkeypatch.setattr(sys.modules["causal_conv1d"], "causal_conv1d_fn", lambda x, *a, **k: x)
    with pytest.raises(AssertionError):
        test_causal_conv1d(packages, True, True, 8, 5)


CUDA = torch.device("cuda")


def chosen_for(op, dtype, size=None):
    """What "auto" would run on a GPU; nothing is run."""
    dispatch._ran.pop(op, None)
    dispatch.resolve(op, "auto", CUDA, dtype, size)
    return dispatch._ran[op]


@pytest.mark.parametrize(("op", "name"), OPS.items())
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_auto_takes_them_on_a_gpu_where_they_are_installed(packages, op, name, dtype):
    assert chosen_for(op, dtype) == {name}
    assert dispatch._known[op][name].devices == ("cuda",)


@pytest.mark.parametrize(("op", "name"), OPS.items())
def test_auto_takes_others_where_they_are_not(fresh, monkeypatch, op, name):
    monkeypatch.setattr(upstream, "find_spec", lambda module: None)
    assert name not in chosen_for(op, torch.float32)
    with pytest.raises(dispatch.UnavailableError, match=r"the package (mamba-ssm|causal-conv1d) is not installed"):
        dispatch.resolve(op, name, CUDA)


@pytest.mark.parametrize(("op", "name"), OPS.items())
def test_auto_takes_others_where_they_cannot_be_imported(packages, monkeypatch, op, name):
    def fail(part):
        raise OSError("undefined symbol: _ZN3c10")

    monkeypatch.setattr(upstream, "import_module", fail)
    assert name not in chosen_for(op, torch.float32)
    with pytest.raises(dispatch.UnavailableError, match=r"cannot be imported here \(OSError\)"):
        dispatch.resolve(op, name, CUDA)


def test_what_they_do_not_compute_is_left_to_others(packages):
    assert "causal_conv1d" not in chosen_for("causal_conv1d", torch.float32, 5)  # widths 2 to 4
    assert all(name not in chosen_for(op, torch.float64) for op, name in OPS.items())


def test_nothing_of_them_is_imported_for_a_cpu(fresh, monkeypatch):
    def fail(*_):
        raise AssertionError("asked for")

    monkeypatch.setattr(upstream, "find_spec", fail)
    for op in OPS:
        dispatch.resolve(op, "auto", torch.device("cpu"), torch.float32)


@pytest.mark.parametrize(("op", "name"), OPS.items())
def test_another_can_be_named_for_a_whole_process(packages, monkeypatch, op, name):
    monkeypatch.setenv(dispatch.ASKED, f"{op}=reference, hadamard_quantize=triton")
    dispatch.check_asked()
    assert chosen_for(op, torch.float32, 4) == {"reference"}
    monkeypatch.setenv(dispatch.ASKED, f"{op}={name}")
    dispatch._able.clear()
    assert name not in chosen_for(op, torch.float64)  # which it does not serve
    monkeypatch.setattr(upstream, "find_spec", lambda module: None)
    upstream._why_not.cache_clear()
    dispatch._able.clear()
    with pytest.raises(dispatch.UnavailableError, match="is not installed"):  # named, so nothing takes its place
        chosen_for(op, torch.float32)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ("ssd", "must read operation=implementation"),
        ("sdd=triton", "no operation: 'sdd'"),
        ("ssd=tritn", "no implementation of ssd: 'tritn'. Known: .*triton"),
    ],
)
def test_what_is_named_and_unknown_is_told(fresh, monkeypatch, asked, message):
    monkeypatch.setenv(dispatch.ASKED, asked)
    with pytest.raises(dispatch.UnavailableError, match=message):
        dispatch.check_asked()
    with pytest.raises(BadParameter, match=message):
        load_checkpoint("mamba-tiny")


# --- a whole model --------------------------------------------------------------------------------

MODELS = {
    "mamba": ModelConfig(architecture="mamba", d_model=8, n_layers=2, vocab_size=50, d_state=3, dt_rank=2),
    "mamba, odd channels": ModelConfig(
        architecture="mamba", d_model=10, n_layers=2, vocab_size=50, d_state=3, dt_rank=2
    ),
    "mamba2": ModelConfig(
        architecture="mamba2", d_model=8, n_layers=2, vocab_size=50, d_state=4, head_dim=4, n_groups=2, chunk_size=5
    ),
}
MODELS["mamba2, D by channel, limits"] = replace(
    MODELS["mamba2"], d_model=12, n_groups=3, d_per_channel=True, dt_min=0.01, dt_max=0.5
)


@pytest.mark.parametrize("config", MODELS.values(), ids=MODELS.keys())
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_model_by_their_kernels_is_the_same_model(packages, monkeypatch, randomize, config, dtype):
    """Prefill, a second prefill from its state, a step: on a CPU, to which the entries are lent."""
    model = build(config).requires_grad_(False)
    randomize(model, seed=2)
    exact = copy.deepcopy(model).double()
    for name, parameter in model.named_parameters():
        if not name.endswith(("A_log", ".D", "dt_bias", "dt_proj.bias")):
            parameter.data = parameter.data.to(dtype)
    tokens = torch.randint(50, (2, 9), generator=torch.Generator().manual_seed(0))

    def logits(model):
        state, found = None, []
        for piece in tokens.split([5, 3, 1], dim=1):
            out, state = model(piece, state)
            found.append(out)
        return torch.cat(found, dim=1)

    plain, want = logits(model), logits(exact)
    dispatch._ran.clear()
    for op, name in OPS.items():
        entries = dispatch._known[op]
        monkeypatch.setitem(dispatch._known, op, {name: replace(entries[name], devices=("cpu",))})
    theirs = logits(model)
    ours_error, error = ((m.double() - want).square().mean().sqrt() for m in (plain, theirs))
    assert error <= 2 * ours_error  # float32 inside either way
    scan = "selective_scan" if config.architecture == "mamba" else "ssd"
    assert {op: dispatch.chosen()[op] for op in ("causal_conv1d", scan)} == {
        "causal_conv1d": "causal_conv1d",
        scan: "mamba_ssm",
    }


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
