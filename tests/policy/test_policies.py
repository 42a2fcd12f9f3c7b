"""Plans: which site gets what. What every policy owes is judged in tests/contract/test_policies.py."""

from __future__ import annotations

import pytest

from quambench.core.errors import BadParameter, UnknownName
from quambench.models import ModelConfig
from quambench.models.sites import sites_of
from quambench.observers import ObserverSpec
from quambench.policy import Assignment, PolicySpec, check_plan
from quambench.policy.base import granularity_at
from quambench.policy.sensitivity import best_remedy

MAMBA = ModelConfig(architecture="mamba", d_model=8, n_layers=4, vocab_size=8, d_state=3, dt_rank=2)
MAMBA2 = ModelConfig(architecture="mamba2", d_model=8, n_layers=4, vocab_size=8, d_state=3, head_dim=4)
BOTH = pytest.mark.parametrize("config", [MAMBA, MAMBA2], ids=["mamba", "mamba2"])
PERCENTILE = ObserverSpec("percentile")


def plan(config, policy, observer=PERCENTILE, grouping="1x1", sensitivity=None):
    return PolicySpec.parse(policy).build().plan(config, observer, grouping, sensitivity)


def case_sites(config):
    return [name for name, site in sites_of(config).items() if site.observer == "case"]


def costs(config, **worst):
    """Every site costs 1 and no remedy helps, but those named."""
    flat = {"usual": 1.0, "multiplier": 1.0, "finer": 1.0}
    return {site: flat | worst.get(site.rpartition(".")[2].replace(":", "_"), {}) for site in sites_of(config)}


@BOTH
def test_quamba_puts_the_observer_at_the_percentile_sites(config):
    made = plan(config, "quamba")
    assert [site for site, a in made.items() if a.observer == PERCENTILE] == case_sites(config)
    assert {a.observer.name for a in made.values()} == {"percentile", "running_max"}


@BOTH
def test_uniform_puts_it_everywhere(config):
    assert {a.observer for a in plan(config, "uniform").values()} == {PERCENTILE}


@BOTH
def test_first_middle_last_by_hand(config):
    made = plan(config, "first_middle_last[first=0.9,middle=0.8,last=0.7,width=1]")
    alphas = [dict(made[site].observer.parameters)["alpha"] for site in case_sites(config)]
    assert alphas == [0.9] * 2 + [0.8] * 4 + [0.7] * 2
    wide = plan(config, "first_middle_last[first=0.9,middle=0.8,last=0.7,width=2]")
    assert [dict(wide[site].observer.parameters)["alpha"] for site in case_sites(config)] == [0.9] * 4 + [0.7] * 4
    assert {made[s].observer for s in made if s not in case_sites(config)} == {ObserverSpec("running_max")}


@pytest.mark.parametrize(("layers", "chosen"), [("all", {0, 1, 2, 3}), ("first", {0}), ("last", {3}), ("ends", {0, 3})])
def test_the_multiplier_falls_on_the_layers_chosen(layers, chosen):
    made = plan(MAMBA2, f"scale_multiplier[factor=0.5,layers={layers}]", ObserverSpec.parse("mse[clip_ratio=0.5]"))
    quarter, half = ObserverSpec.parse("mse[clip_ratio=0.25]"), ObserverSpec.parse("mse[clip_ratio=0.5]")
    for site in case_sites(MAMBA2):
        assert made[site].observer == (quarter if int(site.split(".")[1]) in chosen else half)


def test_with_a_running_max_only_the_percentile_sites_are_multiplied():
    made = plan(MAMBA, "scale_multiplier", ObserverSpec("running_max"))
    changed = [site for site, a in made.items() if a.observer != ObserverSpec("running_max")]
    assert changed == case_sites(MAMBA)


@BOTH
def test_sensitivity_treats_the_worst_by_what_helps_them_most(config):
    worst = {"usual": 9.0, "multiplier": 5.0, "finer": 3.0}
    helped_less = {"usual": 8.0, "multiplier": 7.0, "finer": 7.5}
    weighed = costs(config, ssm_state=worst, lm_head_input=helped_less)
    made = plan(config, "sensitivity[budget=5]", sensitivity=weighed)
    usual = plan(config, "quamba")
    changed = {site: a for site, a in made.items() if a != usual[site]}
    assert set(changed) == {f"layers.{i}.ssm_state" for i in range(4)} | {"lm_head:input"}
    assert changed["layers.2.ssm_state"] == Assignment(PERCENTILE, "channel_state")
    assert changed["lm_head:input"].observer == ObserverSpec.parse("running_max[clip_ratio=0.8]")


@BOTH
def test_a_budget_is_not_overdrawn_and_floats_go_to_the_worst(config):
    weighed = costs(config, ssm_state={"usual": 9.0, "multiplier": 5.0, "finer": 3.0})
    made = plan(config, "sensitivity[budget=2,floats=1]", sensitivity=weighed)
    usual = plan(config, "quamba")
    assert [site for site, a in made.items() if a != usual[site]] == ["layers.0.ssm_state", "layers.1.ssm_state"]
    assert made["layers.0.ssm_state"].granularity == "float"
    assert made["layers.1.ssm_state"].granularity == "channel_state"


def test_where_nothing_helps_nothing_is_changed():
    assert best_remedy({"usual": 1.0, "multiplier": 1.0, "finer": 2.0}) == "usual"
    assert plan(MAMBA, "sensitivity", sensitivity=costs(MAMBA)) == plan(MAMBA, "quamba")


@pytest.mark.parametrize(
    ("policy", "observer", "grouping", "says"),
    [
        ("first_middle_last[first=1.5]", "percentile", "1x1", "first must be in (0, 1] (got 1.5)"),
        ("first_middle_last[width=0]", "percentile", "1x1", "width must be a whole number, 1 or more (got 0.0)"),
        ("first_middle_last[width=inf]", "percentile", "1x1", "width must be a whole number, 1 or more (got inf)"),
        ("sensitivity[budget=nan]", "percentile", "1x1", "budget must be a whole number, 0 or more (got nan)"),
        ("first_middle_last", "running_max", "1x1", "sets alpha, which running_max does not have"),
        ("scale_multiplier[factor=0]", "percentile", "1x1", "factor must be in (0, 1] (got 0.0)"),
        ("scale_multiplier[layers=middle]", "percentile", "1x1", "layers must be one of all, first, last, ends"),
        ("sensitivity[budget=1.5]", "percentile", "1x1", "budget must be a whole number, 0 or more (got 1.5)"),
        ("sensitivity[budget=1,floats=2]", "percentile", "1x1", "floats must be at most the budget, 1 (got 2)"),
        ("sensitivity", "percentile", "1x1", "needs a measured sensitivity"),
    ],
)
def test_what_does_not_fit_is_one_line(policy, observer, grouping, says):
    with pytest.raises(BadParameter) as caught:
        plan(MAMBA, policy, ObserverSpec(observer), grouping)
    assert says in str(caught.value)


def test_sensitivity_chooses_granularities_itself():
    with pytest.raises(BadParameter, match="leave channel out"):
        plan(MAMBA, "sensitivity", grouping="channel", sensitivity=costs(MAMBA))


@pytest.mark.parametrize(
    ("site", "grouping", "found"),
    [
        ("layers.0.x_conv_out", "1x1", "tensor"),
        ("layers.0.x_conv_out", "head", "head"),
        ("layers.0.x_conv_out", "channel_state", "channel"),
        ("layers.0.B_conv_out", "head", "ssd_group"),  # no finer than asked
        ("layers.0.dt", "channel", "head"),
        ("layers.0.ssm_state", "channel_state", "channel_state"),
        ("layers.0.in_proj:input", "channel", "tensor"),  # its consumer takes one scale
    ],
)
def test_a_site_takes_the_finest_that_it_can_and_that_is_asked(site, grouping, found):
    assert granularity_at(sites_of(MAMBA2)[site], grouping) == found


def test_an_unknown_grouping_names_the_nearest():
    with pytest.raises(UnknownName, match="Did you mean 'channel'"):
        plan(MAMBA, "quamba", grouping="chanel")


def test_what_a_consumer_cannot_work_with_is_refused_with_the_reason():
    made = dict(plan(MAMBA2, "quamba")) | {"layers.1.out_proj:input": Assignment(PERCENTILE, "channel")}
    with pytest.raises(
        BadParameter,
        match=r"layers\.1\.out_proj:input cannot be quantized per channel, only per tensor: "
        r"it feeds an INT8 matrix product, which takes one scale for its whole input",
    ):
        check_plan(MAMBA2, made)
