"""Whole calibrations from outside: what the hook shows, what is made of it, and what is refused."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest
import torch

from quambench.calibration.channels import arrange, channel_statistics, groups_of
from quambench.calibration.collect import Task, calibrate
from quambench.case import Case, check_fit
from quambench.core import plugins
from quambench.core.errors import BadParameter, UnknownName
from quambench.core.provenance import provenance
from quambench.gate.probes import all_probes
from quambench.grouping import GroupingSpec
from quambench.int8.fuse import prepare
from quambench.interchange.outside import FloatModel, find_calibration
from quambench.interchange.quamba import HEAD_KEY, from_act_scales
from quambench.models import ModelConfig, build
from quambench.models.sites import ARCHITECTURES
from quambench.observers import ObserverSpec
from quambench.policy import POLICIES
from quambench.run.runner import ModelRun

PROBES = {probe.name: probe for probe in all_probes()}

CONFIGS = {
    "mamba": ModelConfig(architecture="mamba", d_model=16, n_layers=2, vocab_size=24, d_state=4, dt_rank=2),
    "mamba2": ModelConfig(
        architecture="mamba2", d_model=16, n_layers=2, vocab_size=24, d_state=4, head_dim=4, n_groups=2
    ),
}
HERE = "quambench_their_calibration"
RUNNING_MAX = ObserverSpec("running_max")


@pytest.fixture(autouse=True)
def importable(monkeypatch):
    """This module under a name that can be imported, and no source noted."""
    monkeypatch.setitem(sys.modules, HERE, sys.modules[__name__])
    monkeypatch.setattr(plugins, "_sources", {})


@pytest.fixture(scope="module", params=CONFIGS)
def model(request):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return build(CONFIGS[request.param]).eval().requires_grad_(False)


SEQUENCES = torch.randint(24, (3, 20), generator=torch.Generator().manual_seed(0))
DATA = list(SEQUENCES.split(1))


def largest_over_127(model, data):
    """The running maximum at every key, which is Quamba's own calibration without its percentile."""
    seen = [{} for _ in range(model.n_layers + 1)]

    def hook(layer, key, x):
        assert x.dtype == torch.float32
        amax = x.abs().amax().clamp(min=1e-5)
        seen[layer][key] = torch.maximum(seen[layer].get(key, amax), amax)

    for tokens in data:
        model(tokens, hook)
    return [{key: amax / 127 for key, amax in entry.items()} for entry in seen]


def one_argument(model):
    """Too few."""


def test_the_hook_sees_every_activation_that_quamba_has_a_scale_for(model):
    given = FloatModel.of(prepare(model), {})
    keys = {key for of_site in ARCHITECTURES[given.architecture].quamba_keys.values() for key in of_site}
    seen = {}
    logits = given(DATA[0], lambda layer, key, x: seen.setdefault((layer, key), []).append(x))
    assert set(seen) == {(i, key) for i in range(given.n_layers) for key in keys} | {(-1, HEAD_KEY)}
    assert all(len(found) == 1 for found in seen.values())
    assert logits.shape == (1, 20, 24)
    torch.testing.assert_close(logits, model(DATA[0])[0], rtol=1e-3, atol=1e-3)  # the checkpoint's own function


def test_a_running_maximum_from_outside_is_ours_to_the_bit(model):
    prepared = prepare(model)
    found = from_act_scales(largest_over_127(FloatModel.of(prepared, {}), DATA), None, model.config, model_digest="m")
    plan = POLICIES["uniform"]().plan(model.config, RUNNING_MAX, "1x1")
    ours = calibrate(prepared, SEQUENCES, {0: Task(plan, 8)}, "m")[0]
    assert found.digest == ours.digest


def test_in_groups_the_model_stands_in_their_order_and_says_so():
    config = CONFIGS["mamba2"]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = build(config).eval().requires_grad_(False)
    plain = prepare(model)
    groups = groups_of(config, GroupingSpec.parse("2x2"), lambda: channel_statistics(plain, SEQUENCES))
    given = FloatModel.of(arrange(model, groups, plain), groups)
    assert torch.equal(given.reorder_params["channel_index"][1], groups[1].channel_index)

    def grouped(model, data):
        """x's largest of each group by a walk over its ranges; the rest as it is per tensor."""
        found = largest_over_127(model, data)
        for layer in range(model.n_layers):
            peaks = torch.zeros(model.n_heads * model.head_dim)

            def hook(at, key, x, peaks=peaks, layer=layer):
                if at == layer and key == "x_conv_out:input":
                    torch.maximum(peaks, x.abs().amax((0, 1)), out=peaks)

            for tokens in data:
                model(tokens, hook)
            heads = model.reorder_params["head_groups"][layer]
            dims = model.reorder_params["channel_group"][layer]
            by_head, first = peaks.view(model.n_heads, model.head_dim), 0
            walked = torch.zeros(dims.shape)
            for g in range(model.n_groups):
                for h, n in enumerate(heads[g].tolist()):
                    for d, of in enumerate(by_head[first : first + n].split(dims[g, h].tolist(), dim=1)):
                        walked[g, h, d] = of.amax()
                    first += n
            found[layer]["walked"] = walked.clamp(min=1e-5) / 127
        return found

    plan = POLICIES["quamba2"]().plan(config, RUNNING_MAX, "2x2")
    ours = calibrate(arrange(model, groups, plain), SEQUENCES, {0: Task(plan, 8, groups=groups)}, "m")[0]
    for layer, entry in enumerate(grouped(given, DATA)[:-1]):
        assert torch.equal(entry["walked"], ours.scales[f"layers.{layer}.x_conv_out"])


def turned_round(model, data):
    """Meddles with the order that it is told."""
    found = largest_over_127(model, data)
    for index in (model.reorder_params or {}).get("channel_index", ()):
        index.copy_(index.clone().view(-1, 4).flip(1).flatten())
    return found


def test_the_order_is_not_a_functions_to_change():
    config = CONFIGS["mamba2"]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        checkpoint = SimpleNamespace(
            name="m", digest="m", config=config, recall={}, model=build(config).eval().requires_grad_(False)
        )
    made = {}
    for name in ("largest_over_127", "turned_round"):
        case = Case.parse("m", f"calibration={HERE}:{name}/2x2")
        run = ModelRun(checkpoint, None, [case])
        run.__dict__["calibration_sequences"] = SEQUENCES
        made[name] = run.calibration(case)
    assert made["turned_round"].digest == made["largest_over_127"].digest


def test_probes_of_our_own_calibration_say_nothing_of_theirs():
    theirs = Case.parse("m", f"calibration={HERE}:largest_over_127")
    ours = Case.parse("m", "running_max/uniform")
    names = [probe.name for probe in all_probes()]
    units = {name.split("/")[0] for name in names if PROBES[name].rests("mamba2", theirs)}
    assert units.isdisjoint({"policy", "granularity", "calibration"})
    assert {"fuse", "step", "kernel"} <= units
    assert {"policy", "calibration"} <= {name.split("/")[0] for name in names if PROBES[name].rests("mamba2", ours)}


def test_a_planted_fault_shows(model):
    """The twin of equality to the bit: the state's last value left out of its maximum."""

    def forgetful(model, data):
        return largest_over_127(model, data[:-1])

    prepared = prepare(model)
    given = FloatModel.of(prepared, {})
    right, wrong = (
        from_act_scales(f(given, DATA), None, model.config, model_digest="m") for f in (largest_over_127, forgetful)
    )
    assert right.digest != wrong.digest


def test_a_case_names_it_and_provenance_tells_its_source():
    case = Case.parse("m", f"calibration={HERE}:largest_over_127/4x4/w4a8")
    assert case.id == f"m/calibration={HERE}:largest_over_127/4x4/w4a8"
    assert case.settings()["observer"] == f"calibration={HERE}:largest_over_127"
    assert len(provenance()["calibrations"][f"{HERE}:largest_over_127"]) == 16
    assert case.calibrated_by(f"{HERE}:largest_over_127") == case


@pytest.mark.parametrize(
    ("name", "error", "says"),
    [
        (f"{HERE}:largest", UnknownName, "no function in .* named 'largest'"),
        (f"{HERE}:DATA", BadParameter, "must be a function"),
        (f"{HERE}:one_argument", BadParameter, "must take two arguments"),
        ("not_there:f", BadParameter, "calibration not_there:f: 'not_there' cannot be imported"),
    ],
)
def test_what_is_no_calibration_is_refused_in_one_line(name, error, says):
    with pytest.raises(error, match=says) as refused:
        find_calibration(name)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("rest", "says"),
    [
        ("quamba2", "leave the policy quamba2 out"),
        ("channel", "one scale per tensor, or groups such as 4x4 .got channel"),
        ("w8a4", "of symmetric grids of 8 bits .got w8a4"),
        ("w8a8-asymmetric", "of symmetric grids of 8 bits"),
    ],
)
def test_what_does_not_go_with_it_is_refused(rest, says):
    with pytest.raises(BadParameter, match=says):
        check_fit(Case.parse("m", f"calibration={HERE}:largest_over_127/{rest}"))
