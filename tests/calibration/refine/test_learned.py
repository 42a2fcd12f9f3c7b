"""The straight-through estimator against LSQ's formula, and the model that is trained against the INT8 model."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from quambench.calibration.refine.learned import Learned
from quambench.calibration.refine.training import hard_tap, straight_through, taught, trained_sites
from quambench.grids.grid import fake_quantize, q_max
from quambench.grids.precision import Precision
from quambench.int8 import w4
from quambench.int8.model import quantize_model
from quambench.int8.recipe import WeightRecipe
from quambench.models.backbone import forward_in_pieces
from quambench.models.sites import sites_of

EPS32, EPS64 = (torch.finfo(dtype).eps for dtype in (torch.float32, torch.float64))


def gradients(quantizer, x: Tensor, scale: Tensor, bits: int, upstream: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    x, scale = x.clone().requires_grad_(), scale.clone().requires_grad_()
    out = quantizer(x, scale, bits)
    return out.detach(), *torch.autograd.grad(out, (x, scale), upstream)


# The estimator


def assert_is_by_hand(quantizer):
    """4 bits, step 1/2, so integers from -8 to 7; every number here is exact in binary."""
    x = torch.tensor([1.375, -0.625, 0.0, 3.5, 9.0, -4.0, -100.0], dtype=torch.float64)
    #     in steps     2.75   -1.25  0.0  7.0 18.0  -8.0  -200.0
    out = torch.tensor([1.5, -0.5, 0.0, 3.5, 3.5, -4.0, -4.0], dtype=torch.float64)
    d_x = torch.tensor([1.0, 1.0, 1.0, 1.0, 0.0, 1.0, 0.0], dtype=torch.float64)
    d_scale = torch.tensor([0.25, 0.25, 0.0, 0.0, 7.0, 0.0, -8.0], dtype=torch.float64)
    step = torch.tensor(0.5, dtype=torch.float64)
    for i in range(len(x)):
        found = gradients(quantizer, x[i], step, 4, torch.ones((), dtype=torch.float64))
        assert torch.equal(torch.stack(found), torch.stack([out[i], d_x[i], d_scale[i]])), f"x = {x[i]}: {found}"


def lsq(x: Tensor, scale: Tensor, bits: int, upstream: Tensor) -> tuple[Tensor, Tensor]:
    """Esser et al. 2020, equations 3 and 5, as written; the gradient of a scale () or (C) of x (n, C)."""
    low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    v = x / scale
    inside = (v > low) & (v < high)
    d_scale = torch.where(inside, v.round() - v, torch.where(v <= low, low, high))
    summed = (upstream * d_scale).sum(0)
    return upstream * inside, summed if scale.ndim else summed.sum()


def assert_is_lsq(quantizer, bits: int, per_channel: bool):
    """Each of n terms is computed with errors of a few roundings of numbers up to 2^(bits-1); sums add n more."""
    chance = torch.Generator().manual_seed(bits)
    x, upstream = torch.randn(2, 300, 7, generator=chance, dtype=torch.float64)
    scale = torch.rand(7, generator=chance, dtype=torch.float64) / q_max(bits) + 1 / q_max(bits)
    scale = scale if per_channel else scale[0]
    out, d_x, d_scale = gradients(quantizer, x, scale, bits, upstream)
    expected_x, expected_scale = lsq(x, scale, bits, upstream)
    assert torch.equal(out, fake_quantize(x, scale, bits))
    allowed = EPS64 * x.numel() * 2 ** (bits - 1) * upstream.abs().sum().item()
    assert (d_scale - expected_scale).abs().max() <= allowed
    assert (d_x - expected_x).abs().max() <= 4 * EPS64 * upstream.abs().max()
    assert (expected_x == 0).any() and (expected_x != 0).any()


def test_the_gradient_is_what_is_worked_out_by_hand():
    assert_is_by_hand(straight_through)


@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_the_gradient_is_lsqs(bits, per_channel):
    assert_is_lsq(straight_through, bits, per_channel)


def through_rounding_only(x, scale, bits):
    """The fault: the scale is taken for a constant inside x / scale, as when only q * scale is derived."""
    top = q_max(bits)
    return scale * ((x / scale.detach()).clamp(-top - 1, top) * 0 + (x / scale).round().clamp(-top - 1, top).detach())


def flipped(x, scale, bits):
    out = straight_through(x, scale, bits)
    return 2 * out.detach() - out


def unclipped(x, scale, bits):
    steps = x / scale
    top = q_max(bits)
    return scale * (steps + (steps.round().clamp(-top - 1, top) - steps).detach())


@pytest.mark.parametrize("fault", [through_rounding_only, flipped, unclipped])
def test_another_gradient_is_noticed(fault):
    with pytest.raises(AssertionError):
        assert_is_by_hand(fault)
    with pytest.raises(AssertionError):
        assert_is_lsq(fault, 4, False)


# The model that is trained


def assert_is_the_int8_model(setting, quantized, model, piece):
    """Site by site the same integers, and then the same logits, but for float32's rounding.

    Behind every site goes on what the INT8 model rounded to, so each is judged by itself; the rule is
    that of tests/int8/test_model.py: float32's error is the taught model's own when run in float32,
    the INT8 model may have twice that, and one rounding of the quotient, which reaches 2^(bits-1).
    """
    bits, scales = setting.precision.act_bits, setting.start.scales
    tokens, config = setting.sequences[:4], setting.prepared.config
    rounded: dict[str, list[Tensor]] = {}

    def keep(site, x):
        rounded.setdefault(site, []).append(x)
        return x

    with torch.no_grad():
        logits = forward_in_pieces(quantized, tokens, piece, keep)
        before, out = {}, {}
        for dtype in (torch.float32, torch.float64):
            steps = before[dtype] = {}
            turn = dict.fromkeys(rounded, 0)

            def force(site, x, dtype=dtype, steps=steps, turn=turn):
                steps.setdefault(site, []).append(x / scales[site].to(dtype))
                turn[site] += 1
                return rounded[site][turn[site] - 1].to(dtype)

            out[dtype] = forward_in_pieces(model.to(dtype), tokens, piece, force)
    assert set(rounded) == set(sites_of(config)) == set(before[torch.float64])
    top = q_max(bits)
    for site, parts in rounded.items():
        rough, exact = (
            torch.cat([x.flatten() for x in before[d][site]]).double().clamp(-top - 1, top)
            for d in (torch.float32, torch.float64)
        )
        q = (torch.cat([x.flatten() for x in parts]).double() / scales[site].double()).round()
        off, error = (exact - q).abs().max(), (rough - exact).abs().max()
        assert off <= 0.5 + 2 * error + 2 ** (bits - 1) * EPS32, f"{site}: {off:.6f} steps off"
    exact, rough = out[torch.float64], out[torch.float32].double()
    allowed = 2 * (rough - exact).abs().max() + EPS32 * exact.abs().max()
    assert (logits.double() - exact).abs().max() <= allowed


@pytest.mark.parametrize("piece", [9, 4, 1])
def test_at_the_start_it_is_the_int8_model(setting, piece):
    assert_is_the_int8_model(setting, setting.quantized, taught(setting.prepared, setting.quantized), piece)


def test_so_it_is_with_weights_of_four_bits_in_groups(make_setting):
    setting = make_setting("mamba2", Precision(weight_bits=4))
    model = quantize_model(setting.prepared, setting.start, setting.precision, recipe=WeightRecipe(granularity="group"))
    assert w4.BITS == 4
    assert_is_the_int8_model(setting, model, taught(setting.prepared, model), 4)


@pytest.mark.parametrize("fault", ["float weights", "one integer", "embedding", "decay"])
def test_another_model_is_noticed(setting, fault):
    quantized = setting.quantized
    wrong = taught(setting.prepared, quantized)
    with torch.no_grad():
        if fault == "float weights":
            wrong.blocks[1].mixer.out_proj.weight.copy_(setting.prepared.blocks[1].mixer.out_proj.weight)
        elif fault == "one integer":
            quantized.blocks[0].out_proj.weight.q[0, 0] += 1
        elif fault == "embedding":
            wrong.backbone.embedding.weight.copy_(setting.prepared.backbone.embedding.weight)
        else:
            wrong.blocks[0].mixer.A_log.copy_(setting.prepared.blocks[0].mixer.A_log)
    with pytest.raises(AssertionError):
        assert_is_the_int8_model(setting, quantized, wrong, 4)


def test_a_float_copy_keeps_the_prepared_model(setting):
    before = {name: p.clone() for name, p in setting.prepared.named_parameters()}
    model = taught(setting.prepared, setting.quantized)
    assert all(p.dtype == torch.float64 and not p.requires_grad for p in model.parameters())
    assert all(torch.equal(p, before[name]) for name, p in setting.prepared.named_parameters())


# The losses


@pytest.mark.parametrize("kind", ["kl", "nll"])
def test_the_loss_is_the_one_named(setting, kind):
    """Of the two first sequences by torch's own; each of 16 tokens' terms is rounded a few times, sums add some."""
    how, tokens = Learned(loss=kind, piece=4.0), setting.sequences[:2]
    sites = trained_sites(setting.quantized)
    model, tap = taught(setting.prepared, setting.quantized), hard_tap(setting.prepared.config, setting.start, sites)
    with torch.no_grad():
        float_logits = setting.prepared(tokens)[0]
        logits = forward_in_pieces(model, tokens, 4, tap)
        found = how._loss(how._log_probs(model, tokens, tap), tokens, float_logits.log_softmax(-1))
    if kind == "kl":
        p = torch.distributions.Categorical(logits=float_logits)
        expected = torch.distributions.kl_divergence(p, torch.distributions.Categorical(logits=logits)).mean()
    else:
        expected = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())
    largest = logits.abs().max() + float_logits.abs().max()
    assert (found - expected).abs() <= EPS64 * logits.shape[-1] * largest
    assert found > 0


def test_a_single_piece_leaves_the_states_scale(setting):
    """Prefill never reads a quantized state, so one call has no gradient for its scale."""
    found = setting.refined(Learned(steps=2.0, every=1.0, rate=0.01, piece=9.0, length=9.0, train=4.0, validation=3.0))
    for site, scale in setting.start.scales.items():
        if site.endswith("ssm_state"):
            assert torch.equal(found.calibration.scales[site], scale)
