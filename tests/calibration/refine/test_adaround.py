"""Soft rounding against its definition and hard rounding; stages against the float model."""

from __future__ import annotations

import copy
import itertools
import math

import pytest
import torch

from quambench.calibration.refine.adaround import SOFTEST, AdaRound, stages
from quambench.calibration.refine.training import soft_quantizer, soft_round
from quambench.grids.grid import fake_quantize, q_max
from quambench.models.backbone import no_tap

EPS64 = torch.finfo(torch.float64).eps
PER_STEP = 997
STEPS = torch.linspace(-9, 9, 18 * PER_STEP + 1, dtype=torch.float64)  # in steps of the grid, whole ones included


def assert_tends_to_hard(rounding, temperature):
    """1.2 sigmoid(u) - 0.1 is 0 or less from u = -ln 11 down, 1 or more from ln 11 up: there it is hard rounding.

    Elsewhere, i.e. less than temperature * ln 11 from a tie, it lies between the two integers, on the side of
    the nearer one: at most half a step off. The fraction carries an error of EPS64 times the number itself.
    """
    found, hard = rounding(STEPS, temperature), STEPS.round()
    from_tie = (STEPS - STEPS.floor() - 0.5).abs()
    settled = from_tie >= temperature * math.log(11) + EPS64 * STEPS.abs().max()
    assert torch.equal(found[settled], hard[settled])
    assert (found - hard).abs().max() <= 0.5 + EPS64 * STEPS.abs().max()
    assert settled.double().mean() >= 1 - 2 * temperature * math.log(11) - 3 / PER_STEP
    assert (found.diff() >= 0).all()


@pytest.mark.parametrize("temperature", [SOFTEST - 1e-3, 0.1, 0.02, 0.001])
def test_soft_rounding_tends_to_hard_rounding(temperature):
    assert_tends_to_hard(soft_round, temperature)


@pytest.mark.parametrize(
    "fault",
    [
        lambda v, t: soft_round(v, 2 * t),
        lambda v, t: v.floor() + torch.sigmoid((v - v.floor() - 0.5) / t),  # not rectified
        lambda v, t: soft_round(v - 0.1, t),
    ],
    ids=["warmer", "not rectified", "another tie"],
)
def test_other_rounding_is_noticed(fault):
    with pytest.raises(AssertionError):
        assert_tends_to_hard(fault, 0.1)


def test_soft_rounding_has_no_jumps():
    """Its slope is 1.2 / (4 temperature) at most, so neighbours differ by no more than that times their distance."""
    for temperature in (SOFTEST - 1e-4, 0.05):
        rise = soft_round(STEPS, temperature).diff().max()
        assert rise <= 0.3 / temperature * STEPS.diff().max() + 4 * EPS64 * STEPS.abs().max()
    jump = soft_round(STEPS, 2 * SOFTEST).diff().max()
    assert jump > 0.3 / (2 * SOFTEST) * STEPS.diff().max()


def test_the_gradient_is_what_is_worked_out_by_hand():
    """At a tie h = 1/2 and its slope 0.3 / temperature = 3: d/dx = 3, d/dscale = 2.5 - 2.5 * 3. Settled: 0 and q.

    Products and quotients of temperature 0.1 and a sigmoid are rounded a few times each.
    """
    x = torch.tensor([1.25, 1.0, 100.0], dtype=torch.float64, requires_grad=True)
    scale = torch.tensor(0.5, dtype=torch.float64).expand(3).clone().requires_grad_()
    out = soft_quantizer(0.1)(x, scale, 4)
    d_x, d_scale = torch.autograd.grad(out.sum(), (x, scale))
    expected = torch.tensor([[1.25, 3.0, -5.0], [1.0, 0.0, 2.0], [3.5, 0.0, 7.0]], dtype=torch.float64).T
    for found, wanted in zip((out, d_x, d_scale), expected, strict=True):
        assert (found - wanted).abs().max() <= 16 * EPS64 * wanted.abs().max()


def test_the_gradient_is_the_functions():
    """Central differences: of x by h, error h² / 6 times the third derivative, below scale * 1.2 / T³ / scale³."""
    chance = torch.Generator().manual_seed(0)
    x, scale, temperature, h = torch.randn(500, generator=chance, dtype=torch.float64), 0.1, 0.2, 1e-6
    quantizer, step = soft_quantizer(temperature), torch.tensor(scale, dtype=torch.float64)
    x.requires_grad_()
    (d_x,) = torch.autograd.grad(quantizer(x, step, 4).sum(), x)
    with torch.no_grad():
        kinks = (x / scale - (x / scale).floor() - 0.5).abs() - temperature * math.log(11)
        smooth = (kinks.abs() > h / scale) & ((x / scale).abs() < q_max(4) - 1)
        slope = (quantizer(x + h, step, 4) - quantizer(x - h, step, 4)) / (2 * h)
    allowed = h**2 / 6 * 1.2 / temperature**3 / scale**2 + EPS64 * x.abs().max() / scale / h
    assert smooth.sum() > 100
    assert (d_x - slope)[smooth].abs().max() <= allowed


def test_cold_it_is_the_grids_own(setting):
    """Away from ties by temperature * ln 11; random numbers seldom fall that near."""
    x = torch.randn(1000, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    scale = torch.tensor(0.05, dtype=torch.float64)
    near = ((x / scale).frac().abs() - 0.5).abs() < 1e-4 * math.log(11) + EPS64 * 128
    soft, hard = soft_quantizer(1e-4)(x, scale, 5), fake_quantize(x, scale, 5)
    assert torch.equal(soft[~near], hard[~near])
    assert not near.all()


def test_the_temperature_falls_from_warm_to_cold():
    how = AdaRound(steps=5.0, warm=0.2, cold=0.0125)
    found = [how.temperature(step) for step in range(1, 6)]
    assert found[0] == 0.2
    for one, following in itertools.pairwise(found):
        assert abs(following / one - 0.5) <= 8 * EPS64
    assert AdaRound(steps=1.0).temperature(1) == 0.2


def test_stages_are_the_float_models(setting):
    tokens, model = setting.sequences[:3], setting.prepared
    with torch.no_grad():
        found = list(stages(model, tokens))
        assert torch.equal(found[-1].target, model(tokens)[0])
    assert [stage.layer for stage in found] == [0, 1, None]


def test_a_stage_in_parts_is_the_whole_but_for_rounding(setting, assert_only_rounding):
    tokens = setting.sequences[:3]

    def pair_of(i):
        def pair(dtype):
            model = copy.deepcopy(setting.prepared).to(dtype)
            with torch.no_grad():
                stage = list(stages(model, tokens))[i]
                return stage._output(model, 4, no_tap), stage.target

        return pair

    for i in range(2):
        assert_only_rounding(pair_of(i))


def test_the_error_is_relative_to_the_target(setting):
    with torch.no_grad():
        stage = list(stages(setting.prepared, setting.sequences[:3]))[-1]
        halved = stage.error(setting.prepared, 4, lambda site, x: x / 2)
    assert abs(halved.item() - 0.25) <= 8 * EPS64


def test_each_block_keeps_its_own_best(setting):
    """A block that nothing bettered has the start's scales; the others theirs."""
    found = setting.refined(AdaRound(steps=6.0, every=2.0, train=4.0, validation=3.0, length=9.0, piece=3.0))
    assert set(found.best_steps) == {"layers.0", "layers.1", "lm_head"}
    assert found.best_step == max(found.best_steps.values())
    for site, scale in setting.start.scales.items():
        part = "lm_head" if site.startswith("lm_head") else site.rpartition(".")[0]
        assert found.best_steps[part] > 0 or torch.equal(found.calibration.scales[site], scale)
