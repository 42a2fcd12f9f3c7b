"""Sensitivity and Hessians, on a model small enough to check by other means."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from quambench.calibration.collect import Task, calibrate
from quambench.calibration.hessians import gather_hessians
from quambench.calibration.sensitivity import PIECE, Scale, by_layer, by_site, grids_of, measure
from quambench.grids.precision import Precision
from quambench.int8.fuse import prepare
from quambench.models import ModelConfig, build
from quambench.models.backbone import forward_in_pieces
from quambench.models.sites import layer_of, sites_of
from quambench.observers import ObserverSpec
from quambench.policy import PolicySpec
from quambench.policy.quamba import Quamba
from quambench.policy.sensitivity import REMEDIES

SHAPES = {
    "mamba": dict(architecture="mamba", d_model=12, n_layers=3, vocab_size=40, d_state=4, dt_rank=3),
    "mamba2": dict(architecture="mamba2", d_model=16, n_layers=3, vocab_size=40, d_state=4, head_dim=8, chunk_size=8),
}
TOKENS = torch.randint(40, (5, 2 * PIECE), generator=torch.Generator().manual_seed(2))
OBSERVER = ObserverSpec.parse("percentile[alpha=0.99]")


@pytest.fixture(scope="module", params=SHAPES)
def prepared(request, randomize):
    with torch.random.fork_rng():
        model = build(ModelConfig(**SHAPES[request.param]))
    randomize(model, 4)
    return prepare(model)


@pytest.fixture(scope="module")
def grids(prepared):
    plan = Quamba().plan(prepared.config, OBSERVER, "1x1")
    return grids_of(prepared, calibrate(prepared, TOKENS, {"k": Task(plan, 4)}, "m")["k"])


def test_pieces_are_the_whole(prepared, assert_only_rounding):
    def pair(dtype):
        model = prepared.to(dtype)
        return forward_in_pieces(model, TOKENS, 5), model(TOKENS)[0]

    with torch.no_grad():
        assert_only_rounding(pair)
    prepared.double()


def test_nothing_quantized_costs_nothing(prepared, grids):
    cost = Scale(prepared, TOKENS).cost(grids, set())
    assert (cost.kl, cost.output_mse) == (0.0, 0.0)


def test_the_cost_of_one_site_is_the_definition(prepared, grids):
    site = "lm_head:input"
    found = Scale(prepared, TOKENS).cost(grids, {site})
    with torch.no_grad():
        float_logits = prepared(TOKENS)[0]

        def tap(name, x):
            step = grids[site].scale
            return (x / step).round().clamp(-8, 7) * step if name == site else x

        logits = prepared(TOKENS, tap=tap)[0]
    p, q = F.log_softmax(float_logits, -1), F.log_softmax(logits, -1)
    eps = torch.finfo(torch.float64).eps * len(p.flatten())  # terms that are summed
    assert math.isclose(found.kl, (p.exp() * (p - q)).sum(-1).mean().item(), rel_tol=eps)
    assert math.isclose(found.output_mse, (logits - float_logits).square().mean().item(), rel_tol=eps)


def test_the_states_scale_is_felt(prepared, grids):
    assert Scale(prepared, TOKENS).cost(grids, {"layers.0.ssm_state"}).kl > 0


def test_one_alone_and_all_but_one(prepared, grids):
    scale = Scale(prepared, TOKENS)
    sites, layers = by_site(scale, grids), by_layer(scale, grids)
    assert list(sites) == list(sites_of(prepared.config))
    assert list(layers) == [0, 1, 2]
    every = set(sites)
    assert sites["lm_head:input"][1] == scale.cost(grids, every - {"lm_head:input"})
    assert layers[1][0] == scale.cost(grids, {s for s in every if layer_of(s) == 1})
    assert all(alone.kl > 0 for alone, _ in layers.values())


def test_a_remedy_is_weighed_where_it_changes_something(prepared):
    found = measure(prepared, TOKENS, ObserverSpec("running_max"), Precision(act_bits=4), "m")
    assert list(found) == list(sites_of(prepared.config))
    for name, costs in found.items():
        finer = len(sites_of(prepared.config)[name].allowed) > 1
        assert set(costs) == set(REMEDIES) - (set() if finer else {"finer"})
    assert found["layers.0.ssm_state"]["finer"] < found["layers.0.ssm_state"]["usual"]


def test_remedies_are_weighed_for_the_worst_alone(prepared):
    observer, bits = ObserverSpec("running_max"), Precision(act_bits=4)
    whole = measure(prepared, TOKENS, observer, bits, "m")
    some = measure(prepared, TOKENS, observer, bits, "m", candidates=3)
    worst = sorted(whole, key=lambda site: -whole[site]["usual"])[:3]
    assert {site for site, costs in some.items() if len(costs) > 1} == set(worst)
    assert all(some[site] == whole[site] for site in worst)
    policy = PolicySpec.parse("sensitivity[budget=3]").build()
    plans = [policy.plan(prepared.config, observer, "1x1", costs) for costs in (whole, some)]
    assert plans[0] == plans[1]


def test_what_the_precision_keeps_float_is_left_out(prepared):
    float_state = Precision(act_bits=4, ssm_state=False, lm_head=False)
    found = measure(prepared, TOKENS, OBSERVER, float_state, "m", candidates=0)
    assert not any(site.endswith("ssm_state") or site == "lm_head:input" for site in found)


def test_hessians_are_second_moments_of_what_the_projections_read(prepared):
    found = gather_hessians(prepared, TOKENS)
    seen = {}

    def tap(site, x):
        seen[site] = x.reshape(-1, x.shape[-1])
        return x

    with torch.no_grad():
        prepared(TOKENS, tap=tap)
    names = {f"layers.{i}.{n}" for i in range(3) for n in ("in_proj.weight", "out_proj.weight")} | {"lm_head.weight"}
    assert set(found) == names
    for name, site in (("layers.1.out_proj.weight", "layers.1.out_proj:input"), ("lm_head.weight", "lm_head:input")):
        x = seen[site]
        bound = torch.finfo(torch.float64).eps * len(x) * (x.abs().T @ x.abs())  # a sum of as many products
        assert ((found[name] - x.T @ x).abs() <= bound).all()
