"""The INT8 model against a plain float64 reading of the recipe, and its states against faults."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from quambench.calibrate import calibrate
from quambench.errors import BadParameter
from quambench.models import ModelConfig, build
from quambench.models.backbone import LayerState
from quambench.models.sites import sites_of
from quambench.observers import ObserverSpec
from quambench.policy import POLICIES
from quambench.quant.fuse import prepare
from quambench.quant.hadamard import rotate
from quambench.quant.quantized import Precision, QuantizedModel

CONFIGS = {
    "mamba": ModelConfig(architecture="mamba", d_model=16, n_layers=2, vocab_size=50, d_state=4, dt_rank=3),
    "mamba2": ModelConfig(
        architecture="mamba2", d_model=16, n_layers=2, vocab_size=50, d_state=4, head_dim=8, n_groups=2, chunk_size=8
    ),
}
TOKENS = torch.randint(50, (3, 12), generator=torch.Generator().manual_seed(3))
EPS32 = torch.finfo(torch.float32).eps


@pytest.fixture(scope="module", params=CONFIGS)
def setting(request):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = build(CONFIGS[request.param]).requires_grad_(False)
        for block in model.blocks:  # large enough that the state counts
            bias = block.mixer.dt_proj.bias if request.param == "mamba" else block.mixer.dt_bias
            bias.add_(3.0)
            if request.param == "mamba":
                block.mixer.x_proj.weight.mul_(6.0)
    prepared = prepare(model)
    plan = POLICIES["quamba"](prepared.config, ObserverSpec("running_max"))
    calibration = calibrate(prepared, TOKENS, {"k": (plan, 8)}, "model")["k"]
    return prepared, calibration, QuantizedModel(prepared, calibration, Precision())


def taps(model, tokens, state=None):
    seen: dict[str, torch.Tensor] = {}

    def tap(site, x):
        seen[site] = x
        return x

    with torch.no_grad():
        logits, after = model(tokens, state, tap)
    return seen, logits, after


def to_grid(w, scale=None):
    """Round trip by the definition, in float64: amax / 127, ties to even, [-128, 127]."""
    scale = (w.abs().max() / 127).float().double() if scale is None else scale
    return (w / scale).round().clamp(-128, 127) * scale


def oracle(prepared, scales, tokens):
    """The recipe of docs/quantization.md read line by line, one token at a time, in float64."""
    c = prepared.config
    embedding = prepared.backbone.embedding.weight
    hidden = torch.stack([to_grid(row) for row in embedding])[tokens]
    seen = {}

    def site(name, x):
        seen[name] = to_grid(x, scales[name].double())
        return seen[name]

    def norm(x, groups=1):
        parts = x.unflatten(-1, (groups, -1))
        return (parts / (parts.square().mean(-1, keepdim=True) + c.norm_eps).sqrt()).flatten(-2)

    def conv(x, weight, bias):
        padded = F.pad(x, (0, 0, c.conv_width - 1, 0))
        return sum(padded[:, k : k + x.shape[1]] * weight[:, k] for k in range(c.conv_width)) + bias

    def scan(x, dt, A, B, C, start):
        """x (b, l, h, p), dt (b, l, h), A (h, n) or (h, 1), B and C (b, l, h, n)."""
        h, ys = start, []
        for t in range(x.shape[1]):
            h = torch.exp(dt[:, t, :, None] * A)[:, :, None] * h
            h = h + (dt[:, t, :, None] * x[:, t])[..., None] * B[:, t, :, None]
            ys.append((h * C[:, t, :, None]).sum(-1))
        return torch.stack(ys, 1), h

    for i, block in enumerate(prepared.blocks):
        m, at = block.mixer, f"layers.{i}."
        xn = site(at + "in_proj:input", norm(hidden))
        A = -torch.exp(to_grid(m.A_log))
        D = to_grid(m.D)
        if c.architecture == "mamba":
            x, z = site(at + "in_proj:output", xn @ to_grid(m.in_proj.weight).T).chunk(2, -1)
            x = F.silu(conv(x, to_grid(m.conv1d.weight[:, 0]), to_grid(m.conv1d.bias)))
            x = site(at + "x_proj:input", x)
            low = site(at + "x_proj:output", x @ to_grid(m.x_proj.weight).T)
            low, B, C = low.split([c.dt_rank, c.d_state, c.d_state], -1)
            dt = site(at + "dt_proj:output", low @ to_grid(m.dt_proj.weight).T)
            dt = F.softplus(dt + to_grid(m.dt_proj.bias))
            B, C = (v[:, :, None].expand(-1, -1, c.d_inner, -1) for v in (B, C))
            y, h = scan(x[..., None], dt, A, B, C, x.new_zeros(len(x), c.d_inner, 1, c.d_state))
            y = y[..., 0] + D * x
            site(at + "ssm_state", h[:, :, 0])
            y = y * F.silu(z)
        else:
            rows = [to_grid(part) for part in m.in_proj.weight.split(m.splits)]
            z, x, B, C, dt = (xn @ w.T for w in rows)
            z, dt = site(at + "z", z), site(at + "dt", dt)
            weights = [to_grid(w) for w in m.conv1d.weight[:, 0].split(m.splits[1:4])]
            biases = [to_grid(b) for b in m.conv1d.bias.split(m.splits[1:4])]
            x, B, C = (
                site(f"{at}{n}_conv_out", F.silu(conv(site(f"{at}{n}_conv_in", v), w, b)))
                for n, v, w, b in zip("xBC", (x, B, C), weights, biases, strict=True)
            )
            dt = F.softplus(dt + m.dt_bias.half().double())
            x = x.unflatten(-1, (c.n_heads, -1))
            B, C = (v.unflatten(-1, (c.n_groups, -1)).repeat_interleave(c.n_heads // c.n_groups, 2) for v in (B, C))
            y, h = scan(x, dt, A[:, None], B, C, x.new_zeros(len(x), c.n_heads, c.head_dim, c.d_state))
            site(at + "ssm_state", h)
            y = (y + D[:, None] * x).flatten(-2) * F.silu(z)
            y = norm(y, c.n_groups) * m.norm.weight
        y = site(at + "out_proj:input", rotate(y))
        hidden = hidden + y @ to_grid(m.out_proj.weight).T
    x = site("lm_head:input", norm(hidden))
    return seen, x @ to_grid(prepared.lm_head.weight).T


def assert_agrees(found, expected, scale, site):
    """Integers are equal, but where the float64 value lies within float32's error of a tie.

    Such a flip is one step, and it is rare: a value's float32 error is of the order of 127 * EPS32
    steps times the operations behind it (a few hundred), so about one value in a hundred at worst;
    and a flip upstream moves what follows by a fraction of a step.
    """
    steps = ((found.double() - expected) / scale.double()).round().abs()
    assert steps.max() <= 1, f"{site}: {int(steps.max())} steps apart"
    assert (steps > 0).double().mean() <= 0.02, f"{site}: {(steps > 0).double().mean():.3f} of the values differ"


def test_the_model_is_the_recipe(setting):
    prepared, calibration, quantized = setting
    found, logits, _ = taps(quantized, TOKENS)
    expected, expected_logits = oracle(prepared, calibration.scales, TOKENS)
    assert list(found) and set(found) == set(sites_of(prepared.config))
    for site in sites_of(prepared.config):
        assert_agrees(found[site], expected[site].view(found[site].shape), calibration.scales[site], site)
    quantization = (expected_logits - prepared(TOKENS)[0]).abs().mean()
    assert (logits - expected_logits).abs().mean() < quantization / 10  # flips are rare, quantization is everywhere


@pytest.mark.parametrize("fault", ["q_max", "truncate", "neighbour"])
def test_the_check_catches(setting, fault, monkeypatch):
    prepared, calibration, quantized = setting
    from quambench.quant import grid
    from quambench.quant import quantized as runtime

    scales = dict(calibration.scales)
    if fault == "q_max":
        scales = {s: x * 127 / 126 for s, x in scales.items()}
    elif fault == "neighbour":
        names = list(scales)
        scales = {s: calibration.scales[names[i - 1]] for i, s in enumerate(names)}
    else:
        monkeypatch.setitem(grid.ROUNDINGS, "half_even", torch.trunc)
    wrong = runtime.QuantizedModel(
        prepared, type("S", (), {"scales": scales, "granularities": calibration.granularities}), Precision()
    )
    found, *_ = taps(wrong, TOKENS)
    expected, _ = oracle(prepared, calibration.scales, TOKENS)
    with pytest.raises(AssertionError):
        for site in sites_of(prepared.config):
            assert_agrees(found[site], expected[site].view(found[site].shape), calibration.scales[site], site)


def decode(model, tokens, prefix, between=lambda states: states):
    with torch.no_grad():
        _, state = model(tokens[:, :prefix])
        logits = []
        for t in range(prefix, tokens.shape[1]):
            out, state = model(tokens[:, t : t + 1], between(state))
            logits.append(out)
    return torch.cat(logits, 1)


def test_states_between_steps_are_integers(setting):
    *_, quantized = setting
    _, states = quantized(TOKENS[:, :5])
    assert all(s.ssm.dtype == s.conv.dtype == torch.int8 for s in states)
    assert all(s.ssm.abs().max() > 1 for s in states)  # the grid is used


def test_a_step_goes_on_from_the_integer_state(setting):
    """One more token by a step, and by a second prefill that is handed the same state."""
    *_, quantized = setting
    _, state = quantized(TOKENS[:, :6])
    step, _ = quantized(TOKENS[:, 6:7], state)
    longer, _ = quantized(TOKENS[:, 6:8], state)
    # Same integers in, float32 in another order: compare to quantization-sized differences.
    other, _ = quantized(TOKENS[:, 6:7])
    assert (step[:, 0] - longer[:, 0]).abs().max() < (step[:, 0] - other[:, 0]).abs().max() / 10


def test_decoding_follows_the_float_model_and_lost_history_does_not(setting):
    prepared, _, quantized = setting
    expected = prepared(TOKENS)[0][:, 4:].detach()
    error = (decode(quantized, TOKENS, 4) - expected).square().mean()

    def forget_conv(states):
        return [LayerState(torch.zeros_like(s.conv), s.ssm) for s in states]

    def forget_state(states):
        return [LayerState(s.conv, torch.zeros_like(s.ssm)) for s in states]

    for forget in (forget_conv, forget_state):
        assert (decode(quantized, TOKENS, 4, forget) - expected).square().mean() > 2 * error


def test_prefill_never_reads_the_states_scale_and_decoding_does(setting):
    prepared, calibration, quantized = setting
    scales = {s: x * 4 if s.endswith("ssm_state") else x for s, x in calibration.scales.items()}
    other = QuantizedModel(
        prepared, type("S", (), {"scales": scales, "granularities": calibration.granularities}), Precision()
    )
    assert torch.equal(other(TOKENS)[0], quantized(TOKENS)[0])
    assert not torch.equal(decode(other, TOKENS, 4), decode(quantized, TOKENS, 4))


def test_a_missing_scale_is_named(setting):
    prepared, calibration, _ = setting
    scales = {s: x for s, x in calibration.scales.items() if s != "layers.1.ssm_state"}
    with pytest.raises(BadParameter, match=r"no scale for layers\.1\.ssm_state"):
        QuantizedModel(prepared, type("S", (), {"scales": scales, "granularities": {}}), Precision())


def test_embedding_and_head_stay_float_where_asked(setting):
    prepared, calibration, _ = setting
    model = QuantizedModel(prepared, calibration, Precision(embedding=False, lm_head=False))
    assert torch.equal(model.embedding, prepared.backbone.embedding.weight.float())
    assert not {"embedding.weight", "lm_head.weight"} & set(model.weights())
    assert "lm_head:input" not in taps(model, TOKENS)[0]


def test_weights_come_embedding_first_and_head_last(setting):
    *_, quantized = setting
    names = list(quantized.weights())
    assert names[0] == "embedding.weight"
    assert names[-1] == "lm_head.weight"
    assert [int(n.split(".")[1]) for n in names[1:-1]] == sorted(int(n.split(".")[1]) for n in names[1:-1])
