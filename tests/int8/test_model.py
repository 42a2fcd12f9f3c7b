"""The INT8 model against a plain float64 reading of the recipe, value by value, and faults that this must notice."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import pytest
import torch
import torch.nn.functional as F
from quambench_kernels import dispatch
from quambench_kernels.int8_linear.reference import finish_ref
from quambench_kernels.int8_selective_scan.reference import floating as of_mamba
from quambench_kernels.int8_ssd.reference import floating as of_mamba2
from quambench_kernels.rms_norm_quantize import rms_norm_quantize
from quambench_kernels.ssd.reference import with_skip

from quambench.calibration.channels import arrange, channel_statistics, groups_of
from quambench.calibration.collect import Task, calibrate
from quambench.core.errors import BadParameter
from quambench.grids.hadamard import hadamard_matrix
from quambench.grids.precision import Precision
from quambench.grouping import GroupingSpec
from quambench.int8 import mamba as runtime_of_mamba
from quambench.int8 import mamba2 as runtime_of_mamba2
from quambench.int8.fuse import prepare
from quambench.int8.model import QuantizedModel, quantize_model
from quambench.models import ModelConfig, build
from quambench.models.backbone import LayerState
from quambench.models.sites import sites_of
from quambench.observers import ObserverSpec
from quambench.policy import Assignment
from quambench.policy.quamba import Quamba
from quambench.policy.quamba2 import Quamba2

EPS32 = torch.finfo(torch.float32).eps
TOKENS = torch.randint(50, (3, 13), generator=torch.Generator().manual_seed(3))

MAMBA = dict(architecture="mamba", d_model=12, n_layers=2, vocab_size=50, d_state=4, dt_rank=3)
MAMBA2 = dict(architecture="mamba2", d_model=16, n_layers=2, vocab_size=50, d_state=4, head_dim=8, chunk_size=5)
SETTINGS = {  # shape of the model, granularity where a site allows it, bits
    "mamba": (MAMBA, "tensor", Precision()),
    "mamba-channels-options": (
        MAMBA | dict(proj_bias=True, conv_bias=False, tie_embeddings=False), "channel", Precision(),
    ),
    "mamba-w4a6": (MAMBA, "tensor", Precision(weight_bits=4, act_bits=6)),
    "mamba2": (MAMBA2 | dict(n_groups=2), "tensor", Precision()),
    "mamba2-channels-options": (
        MAMBA2 | dict(
            proj_bias=True, conv_bias=False, tie_embeddings=False, d_per_channel=True, norm_before_gate=True,
            dt_min=0.1, dt_max=0.6,
        ),
        "channel", Precision(),
    ),
    "mamba2-groups": (MAMBA2 | dict(d_model=32, n_groups=2, conv_bias=False), "2x3", Precision()),
    "mamba2-groups-options": (
        MAMBA2 | dict(d_model=32, n_groups=2, proj_bias=True, d_per_channel=True, norm_before_gate=True), "2x4",
        Precision(),
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Scales:
    scales: dict
    granularities: dict
    groups: dict = field(default_factory=dict)


@dataclass(frozen=True)
class Setting:
    prepared: object
    calibration: object
    precision: Precision
    model: QuantizedModel

    @property
    def scales(self):
        """Each site's, one a channel where it has several: what the recipe below reads along the last axis."""
        return {site: self._of_channels(site, scale) for site, scale in self.calibration.scales.items()}

    def _of_channels(self, site, scale):
        c = self.prepared.config
        match self.calibration.granularities[site]:
            case "ssd_group":
                return torch.tensor([scale[i // c.d_state] for i in range(c.n_groups * c.d_state)])
            case "groups":
                groups = self.calibration.groups[int(site.split(".")[1])]
                found = torch.stack([scale[walk(groups, channel)] for channel in range(c.d_inner)])
                return found.view(c.n_heads, c.head_dim, -1) if site.endswith("ssm_state") else found
            case _:
                return scale


def walk(groups, channel):
    """(SSD group, head group, dim group) of a channel, as a kernel walks the ends of the ranges."""
    head_dim = int(groups.dim_sizes[0, 0].sum())
    ssd, head = divmod(channel // head_dim, int(groups.head_sizes[0].sum()))
    h = next(h for h, end in enumerate(groups.head_sizes[ssd].cumsum(0)) if head < end)
    d = next(d for d, end in enumerate(groups.dim_sizes[ssd, h].cumsum(0)) if channel % head_dim < end)
    return ssd, h, d


@pytest.fixture(scope="module", params=SETTINGS)
def setting(request, randomize):
    return made(*SETTINGS[request.param], randomize)


def made(shape, granularity, precision, randomize):
    with torch.random.fork_rng():
        model = build(ModelConfig(**shape))
    randomize(model, 1)
    prepared = prepare(model)
    if granularity in ("2x3", "2x4"):
        return made_in_groups(model, prepared, granularity, precision)
    sites = sites_of(prepared.config)
    plan = {
        # The recipe below reads a scale along the last axis; a state's channels are not that.
        site: Assignment(
            a.observer, granularity if granularity in sites[site].allowed and "state" not in site else "tensor"
        )
        for site, a in Quamba().plan(prepared.config, ObserverSpec("running_max"), "1x1").items()
    }
    assert granularity in {a.granularity for a in plan.values()}
    calibration = calibrate(prepared, TOKENS, {"k": Task(plan, precision.act_bits)}, "model")["k"]
    return Setting(prepared, calibration, precision, quantize_model(prepared, calibration, precision))


def made_in_groups(model, plain, numbers, precision):
    """Reordered by what calibration saw, quantized by Quamba2's recipe."""
    groups = groups_of(plain.config, GroupingSpec.parse(numbers), lambda: channel_statistics(plain, TOKENS))
    assert not any(g.keeps_order for g in groups.values())
    prepared = arrange(model, groups, plain)
    plan = Quamba2().plan(plain.config, ObserverSpec("running_max"), numbers)
    task = Task(plan, precision.act_bits, groups=groups)
    calibration = calibrate(prepared, TOKENS, {"k": task}, "model")["k"]
    return Setting(prepared, calibration, precision, quantize_model(prepared, calibration, precision))


def taps(model, tokens, state=None):
    seen: dict[str, torch.Tensor] = {}

    def tap(site, x):
        seen[site] = x
        return x

    with torch.no_grad():
        logits, after = model(tokens, state, tap)
    return seen, logits, after


def recipe(s, tokens, integers, state, dtype):
    """The definition, in `dtype`: each site's value in steps before it is rounded, and the logits.

    Behind every site goes on what the model under test rounded to (`integers`), so that a site is
    judged by itself: a value that fell on the other side of a tie does not spread.
    state: None, or one LayerState of int8 a layer.
    """
    c, scales = s.prepared.config, s.scales
    top = 2 ** (s.precision.weight_bits - 1) - 1
    before_rounding = {}

    def w8(w):
        """Weight on its grid, rounded in float64: largest magnitude / top, ties to even."""
        step = (w.abs().max() / top).float().double()
        return ((w / step).round().clamp(-top - 1, top) * step).to(dtype)

    def site(name, x):
        scale = scales[name].to(dtype)
        before_rounding[name] = x / scale
        return integers[name].to(dtype) * scale

    def norm(x, groups=1):
        parts = x.unflatten(-1, (groups, -1))
        return (parts / (parts.square().mean(-1, keepdim=True) + c.norm_eps).sqrt()).flatten(-2)

    def linear(x, weight, bias=None):
        return x @ weight.T + (0 if bias is None else bias.to(dtype))

    def conv(x, weight, bias, past):
        padded = torch.cat([past, x], 1)
        y = sum(padded[:, k : k + x.shape[1]] * weight[:, k] for k in range(c.conv_width))
        return F.silu(y if bias is None else y + bias)

    def scan(x, dt, A, B, C, h):
        """x (b, l, h, p); dt (b, l, h); A (h, n) or (h, 1); B, C (b, l, h, n); h (b, h, p, n)."""
        ys = []
        for t in range(x.shape[1]):
            h = torch.exp(dt[:, t, :, None] * A)[:, :, None] * h
            h = h + (dt[:, t, :, None] * x[:, t])[..., None] * B[:, t, :, None]
            ys.append((h * C[:, t, :, None]).sum(-1))
        return torch.stack(ys, 1), h

    def by_split(w, splits):
        return None if w is None else torch.cat([w8(part) for part in w.split(splits)])

    hidden = torch.stack([w8(row) for row in s.prepared.backbone.embedding.weight])[tokens]
    for i, block in enumerate(s.prepared.blocks):
        m, at, b = block.mixer, f"layers.{i}.", len(tokens)
        xn = site(at + "in_proj:input", norm(hidden))
        A, D = -torch.exp(w8(m.A_log)), w8(m.D)
        if state is None:
            past = torch.zeros(b, c.conv_width - 1, c.conv_channels, dtype=dtype)
            ssm = torch.zeros(integers[at + "ssm_state"].shape, dtype=dtype)
        else:
            names = ["in_proj:output"] if c.architecture == "mamba" else [f"{n}_conv_in" for n in "xBC"]
            widths = [c.d_inner] if c.architecture == "mamba" else m.splits[1:4]
            per_channel = [scales[at + n].to(dtype).expand(
                2 * w if n == "in_proj:output" else w)[:w] for n, w in zip(names, widths, strict=True)]  # fmt: skip
            past = state[i].conv.to(dtype) * torch.cat(per_channel)
            ssm = state[i].ssm.to(dtype) * scales[at + "ssm_state"].to(dtype)
        if c.architecture == "mamba":
            x, z = site(at + "in_proj:output", linear(xn, w8(m.in_proj.weight), m.in_proj.bias)).chunk(2, -1)
            bias = None if m.conv1d.bias is None else w8(m.conv1d.bias)
            x = site(at + "x_proj:input", conv(x, w8(m.conv1d.weight[:, 0]), bias, past))
            low = site(at + "x_proj:output", linear(x, w8(m.x_proj.weight)))
            low, B, C = low.split([c.dt_rank, c.d_state, c.d_state], -1)
            dt = site(at + "dt_proj:output", linear(low, w8(m.dt_proj.weight)))
            dt = F.softplus(dt + w8(m.dt_proj.bias))
            B, C = (v[:, :, None].expand(-1, -1, c.d_inner, -1) for v in (B, C))
            y, h = scan(x[..., None], dt, A, B, C, ssm[:, :, None])
            site(at + "ssm_state", h[:, :, 0])
            y = (y[..., 0] + D * x) * F.silu(z)
        else:
            xn = linear(xn, by_split(m.in_proj.weight, m.splits), m.in_proj.bias)
            z, *xBC, dt = xn.split(m.splits, -1)
            z, dt = site(at + "z", z), site(at + "dt", dt)
            xBC = torch.cat([site(f"{at}{n}_conv_in", v) for n, v in zip("xBC", xBC, strict=True)], -1)
            weight, bias = (by_split(w, m.splits[1:4]) for w in (m.conv1d.weight[:, 0], m.conv1d.bias))
            xBC = conv(xBC, weight, bias, past).split(m.splits[1:4], -1)
            x, B, C = (site(f"{at}{n}_conv_out", v) for n, v in zip("xBC", xBC, strict=True))
            dt = F.softplus(dt + m.dt_bias.half().to(dtype)).clamp(c.dt_min, c.dt_max)
            x = x.unflatten(-1, (c.n_heads, -1))
            B, C = (v.unflatten(-1, (c.n_groups, -1)).repeat_interleave(c.n_heads // c.n_groups, 2) for v in (B, C))
            y, h = scan(x, dt, A[:, None], B, C, ssm)
            site(at + "ssm_state", h)
            y = (y + (D.view(c.n_heads, -1) if c.d_per_channel else D[:, None]) * x).flatten(-2)
            gain = m.norm.weight.to(dtype)
            gate = F.silu(z)
            y = norm(y, c.n_groups) * gain * gate if c.norm_before_gate else norm(y * gate, c.n_groups) * gain
        y = site(at + "out_proj:input", y @ hadamard_matrix(c.d_inner).to(dtype).T)
        hidden = hidden + linear(y, w8(m.out_proj.weight), m.out_proj.bias)
    x = site("lm_head:input", norm(hidden))
    return before_rounding, linear(x, w8(s.prepared.lm_head.weight))


def assert_is_the_recipe(s, model, tokens, state=None, given=None):
    """Every integer is the float64 value's nearest, unless that lies within float32's error of a tie.

    That error is taken from the recipe evaluated in float32. The model may have twice as much at a
    site, since it sums in another order, and one rounding of the quotient in units of steps, which
    reach 2^(bits-1). The logits are held to the same rule, the rounding being relative to the largest.
    Over 120 random models, prefilling and decoding, this raised no false alarm.
    given: the state that the model gets, where a planted fault makes it another than `state`.
    """
    bits = s.precision.act_bits
    seen, logits, after = taps(model, tokens, state if given is None else given)
    assert set(seen) == set(sites_of(s.prepared.config))
    scales = s.scales
    steps = {name: x.double() / scales[name].double() for name, x in seen.items()}
    integers = {name: x.round() for name, x in steps.items()}
    low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    with torch.no_grad():
        expected, expected_logits = recipe(s, tokens, integers, state, torch.float64)
        rough, rough_logits = recipe(s, tokens, integers, state, torch.float32)
    for name, q in integers.items():
        assert (steps[name] - q).abs().max() <= high * EPS32, f"{name} does not tap its own grid"
        exact = expected[name].clamp(low, high)
        error = (rough[name].double().clamp(low, high) - exact).abs().max()
        off = (exact - q).abs().max()
        assert off <= 0.5 + 2 * error + 2 ** (bits - 1) * EPS32, (
            f"{name}: {off:.6f} steps off, float32 errs {error:.1e}"
        )
    error = (rough_logits - expected_logits).abs().max() + EPS32 * expected_logits.abs().max()
    off = (logits - expected_logits).abs().max()
    assert off <= 2 * error, f"logits are {off:.1e} off, float32 errs {error:.1e}"
    for i, layer in enumerate(after):  # what is carried on is what was tapped
        at = f"layers.{i}."
        assert torch.equal(layer.ssm.double(), integers[at + "ssm_state"])
        inputs = [f"{at}{n}_conv_in" for n in "xBC"] if at + "z" in seen else [at + "in_proj:output"]
        fresh = torch.cat([integers[n] for n in inputs], -1)[..., : s.prepared.config.conv_channels]
        width = s.prepared.config.conv_width - 1
        kept = min(width, fresh.shape[1])
        rest = width - kept
        assert layer.conv.shape[1] == width
        assert torch.equal(layer.conv[:, rest:].double(), fresh[:, fresh.shape[1] - kept :])
        if state is not None:  # and before it, what was there
            assert torch.equal(layer.conv[:, :rest], state[i].conv[:, kept:])


def assert_decodes_by_the_recipe(s, model, disturb=lambda layer: layer):
    """Three steps after a prefill; `disturb` is what a planted fault does to each layer's state."""
    with torch.no_grad():
        _, state = model(TOKENS[:, :6])
        for t in range(6, 9):
            token = TOKENS[:, t : t + 1]
            assert_is_the_recipe(s, model, token, state, [disturb(layer) for layer in state])
            _, state = model(token, state)


def test_prefill_is_the_recipe(setting):
    assert_is_the_recipe(setting, setting.model, TOKENS)


@pytest.mark.parametrize("length", [1, 2, 3])
def test_a_prefill_shorter_than_the_convolution_is_the_recipe(setting, length):
    assert_is_the_recipe(setting, setting.model, TOKENS[:, :length])


def test_going_on_with_several_tokens_is_the_recipe(setting):
    _, state = setting.model(TOKENS[:, :6])
    assert_is_the_recipe(setting, setting.model, TOKENS[:, 6:], state)


def test_decoding_is_the_recipe(setting):
    assert_decodes_by_the_recipe(setting, setting.model)


def test_float_pytorch_between_the_grids_is_the_recipe_too(setting):
    """What a disturbance goes through, here one that changes nothing; the INT8 kernels have the tests above."""
    s = setting
    composed = quantize_model(s.prepared, s.calibration, s.precision, disturb=lambda x: x)
    assert all(block.by_kernels for block in s.model.blocks)
    assert not any(block.by_kernels for block in composed.blocks)
    assert_is_the_recipe(s, composed, TOKENS)
    assert_decodes_by_the_recipe(s, composed)


@pytest.mark.parametrize("shape", [MAMBA, MAMBA2 | dict(n_groups=2)], ids=["mamba", "mamba2"])
def test_a_convolution_of_one_token_carries_no_history(shape, randomize):
    s = made(shape | dict(conv_width=1), "tensor", Precision(), randomize)
    assert_is_the_recipe(s, s.model, TOKENS)
    assert_decodes_by_the_recipe(s, s.model)


def test_states_between_steps_are_integers(setting):
    _, states = setting.model(TOKENS[:, :5])
    assert all(s.ssm.dtype == s.conv.dtype == torch.int8 for s in states)
    assert all(s.ssm.abs().max() > 1 for s in states)  # the grid is used


def rebuilt(s, scales):
    return quantize_model(s.prepared, Scales(scales, s.calibration.granularities, s.calibration.groups), s.precision)


def truncated(sums, scale, bias, out_scale, q_max):
    y = finish_ref(sums, scale, bias, None, q_max)
    return y if out_scale is None else (y / out_scale).trunc().clamp(-q_max - 1, q_max).to(torch.int8)


@pytest.mark.parametrize("fault", ["q_max", "truncate", "weight", "neighbour"])
def test_the_check_catches(setting, fault, monkeypatch):
    s, scales = setting, dict(setting.calibration.scales)
    wrong = s.model
    if fault == "q_max":  # 126 for 127: the integers are right for another grid
        wrong = rebuilt(s, {site: x * 127 / 126 for site, x in scales.items()})
    elif fault == "truncate":
        finish = "int8_linear.finish"
        monkeypatch.setitem(
            dispatch._known,
            finish,
            {name: replace(entry, run=truncated) for name, entry in dispatch._known[finish].items()},
        )
    elif fault == "weight":  # one integer of one weight, as another rounding of a tie leaves it
        wrong = rebuilt(s, scales)
        wrong.blocks[0].out_proj.weight.q[0, 0] += 1
    else:
        wrong = rebuilt(s, scales | {"layers.0.out_proj:input": scales["layers.1.out_proj:input"]})
    with pytest.raises(AssertionError):
        assert_is_the_recipe(s, wrong, TOKENS)


@pytest.mark.parametrize("numbers", ["2x3", "2x4"])
def test_another_groups_scale_is_noticed(randomize, numbers):
    s = made(MAMBA2 | dict(d_model=32, n_groups=2), numbers, Precision(), randomize)
    scales, site = dict(s.calibration.scales), "layers.0.x_conv_out"
    wrong = rebuilt(s, scales | {site: scales[site].flip(-1)})
    with pytest.raises(AssertionError):
        assert_is_the_recipe(s, wrong, TOKENS)


@pytest.mark.parametrize("lost", ["conv", "ssm"])
def test_decoding_without_its_past_is_noticed(setting, lost):
    def forget(layer):
        parts = {"conv": layer.conv, "ssm": layer.ssm}
        return LayerState(**parts | {lost: torch.zeros_like(parts[lost])})

    with pytest.raises(AssertionError):
        assert_decodes_by_the_recipe(setting, setting.model, forget)


def test_reading_y_from_the_rounded_state_is_noticed(setting, monkeypatch):
    mamba, mamba2 = runtime_of_mamba.int8_selective_scan, runtime_of_mamba2.int8_ssd

    def wrong_mamba(*args, **kw):
        y, kept = mamba(*args, **kw)
        if args[0].shape[1] > 1:
            return y, kept
        u, _, _, _, C, D, _, _, z = of_mamba(torch.float32, *args)
        h = kept * args[-1]
        return ((h @ C[:, 0, :, None])[:, None, :, 0] + D * u) * F.silu(z), kept

    def wrong_mamba2(*args, **kw):
        y, kept = mamba2(*args, **kw)
        if args[0].shape[1] > 1:
            return y, kept
        x, _, _, _, C, D, _, _ = of_mamba2(torch.float32, *args)
        h, C = kept * args[-1], C.repeat_interleave(x.shape[2] // C.shape[2], 2)
        return with_skip((h @ C[:, 0, ..., None])[:, None, ..., 0], x, D), kept

    monkeypatch.setattr(runtime_of_mamba, "int8_selective_scan", wrong_mamba)
    monkeypatch.setattr(runtime_of_mamba2, "int8_ssd", wrong_mamba2)
    with pytest.raises(AssertionError, match="out_proj:input"):
        assert_decodes_by_the_recipe(setting, setting.model)


def test_the_error_against_the_float_model_shrinks_with_the_step(setting):
    """The recipe shares the prepared weights with the model; this is the word of the float model.

    From 6 to 8 bits a step shrinks by 127 / 31 = 4.1, a fault not at all: the line lies half-way in
    bits. A model as initialised, where one step leads to no other: over 160 of them the error shrank
    by 3.7 to 4.5. Each token counts the same, as in conftest's `typical_error`.
    """
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = build(setting.prepared.config).requires_grad_(False)
    groups = setting.calibration.groups
    prepared, exact = prepare(model, groups), model.double()(TOKENS)[0]
    plan = {
        site: Assignment(ObserverSpec("running_max"), granularity)
        for site, granularity in setting.calibration.granularities.items()
    }
    made = calibrate(prepared, TOKENS, {bits: Task(plan, bits, groups=groups) for bits in (6, 8)}, "model")
    error = {}
    for bits, calibration in made.items():
        model = quantize_model(prepared, calibration, Precision(weight_bits=bits, act_bits=bits))
        error[bits] = (model(TOKENS)[0] - exact).square().mean(-1).sqrt().log().mean().exp()
    assert error[8] <= error[6] / (127 / 31) ** 0.5, error


def test_prefill_never_reads_the_states_scale_and_decoding_does(setting):
    scales = {s: x * 4 if s.endswith("ssm_state") else x for s, x in setting.calibration.scales.items()}
    other = rebuilt(setting, scales)
    (logits, state), (logits_other, state_other) = setting.model(TOKENS[:, :6]), other(TOKENS[:, :6])
    assert torch.equal(logits, logits_other)
    step = TOKENS[:, 6:7]
    assert not torch.equal(setting.model(step, state)[0], other(step, state_other)[0])


def test_a_missing_scale_is_named(setting):
    scales = {s: x for s, x in setting.calibration.scales.items() if s != "layers.1.ssm_state"}
    with pytest.raises(BadParameter, match=r"no scale for layers\.1\.ssm_state \(1 sites missing\)"):
        rebuilt(setting, scales)


def test_embedding_and_head_stay_float_where_asked(setting):
    s = setting
    model = quantize_model(s.prepared, s.calibration, Precision(embedding=False, lm_head=False))
    assert torch.equal(model.embedding, s.prepared.backbone.embedding.weight.float())
    assert not {"embedding.weight", "lm_head.weight"} & set(model.weights())
    assert "lm_head:input" not in taps(model, TOKENS)[0]
    # lm_head alone: its weights are those of the prepared head, to the bit.
    hidden, _ = model.hidden(TOKENS)
    normed = rms_norm_quantize(hidden, None, s.prepared.config.norm_eps, None)
    assert torch.equal(model.head(hidden), normed @ s.prepared.lm_head.weight.float().T)


@pytest.mark.parametrize(("name", "kept"), [("embedding", "lm_head"), ("lm_head", "embedding")])
def test_each_option_speaks_for_itself(setting, name, kept):
    model = quantize_model(setting.prepared, setting.calibration, Precision(**{name: False}))
    assert f"{name}.weight" not in model.weights()
    assert f"{kept}.weight" in model.weights()


def test_weights_come_in_forward_order(setting):
    c = setting.prepared.config
    bias = ["conv1d.bias"] if c.conv_bias else []
    if c.architecture == "mamba":
        block = ["in_proj.weight", "conv1d.weight", *bias, "x_proj.weight", "dt_proj.weight", "dt_proj.bias"]
    else:
        block = ["in_proj.weight", "conv1d.weight", *bias]
    block += ["A_log", "D", "out_proj.weight"]
    layers = [f"layers.{i}.{name}" for i in range(c.n_layers) for name in block]
    assert list(setting.model.weights()) == ["embedding.weight", *layers, "lm_head.weight"]
