"""Probes: stored questions and answers, the unit at fault named first, no input that gives a traceback."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from quambench_kernels import dispatch

from quambench.calibration.refine import REFINEMENTS
from quambench.case import Case
from quambench.core.errors import BadArtefact
from quambench.gate import probes
from quambench.gate.probes import EXPECTED, MEASURING, STREAMS, check, in_turn, record
from quambench.gate.probes.base import Probe
from quambench.gate.probes.models import BARE, CONFIGS, stepped
from quambench.gate.probes.streams import TIE_MARGIN, make_streams, tie_margin
from quambench.grouping.cluster import METHODS
from quambench.int8 import model
from quambench.int8.site_grid import AsymmetricGrid
from quambench.observers import OBSERVERS
from quambench.policy import POLICIES
from quambench.selftest.faults import FAULTS
from quambench.selftest.faults.base import BOTH
from quambench.selftest.selftest import OBSERVER

PROBES = {probe.name: probe for probe in probes.all_probes()}


@pytest.fixture(scope="module")
def streams():
    return make_streams()


def test_clean_code_answers_as_stored():
    results = check()
    assert [r for r in results if r.status != "same"] == []
    assert len({r.name for r in results}) == len(results)


def test_the_stored_questions_are_what_their_function_makes(streams):
    from safetensors.torch import load_file

    stored = load_file(STREAMS)
    assert sorted(stored) == sorted(streams)
    # Initialisation goes through libm, whose last bit may differ between machines.
    for name, tensor in streams.items():
        torch.testing.assert_close(stored[name], tensor, rtol=1e-6, atol=1e-7, msg=name)


@pytest.mark.parametrize("kind", CONFIGS)
def test_no_rounding_of_the_step_hangs_on_a_float_error(kind):
    from safetensors.torch import load_file

    assert tie_margin(load_file(STREAMS), kind) > TIE_MARGIN


def test_both_limits_of_dt_bind_for_some_values_and_not_for_all():
    from safetensors.torch import load_file

    seen = []

    def watch(run, *args):
        seen.append(torch.nn.functional.softplus(args[2] * args[3] + args[10]))  # dt, its scale, dt_bias
        return run(*args)

    with torch.no_grad(), dispatch.around("int8_ssd", watch):
        stepped(load_file(STREAMS), "mamba2-options")
    dt, config = torch.cat([x.flatten() for x in seen]), CONFIGS["mamba2-options"]
    for share in ((dt < config.dt_min).double().mean(), (dt > config.dt_max).double().mean()):
        assert 0.02 < share < 0.5


@pytest.mark.parametrize("kind", CONFIGS)
def test_the_models_have_what_their_probes_are_to_see(kind):
    from safetensors.torch import load_file

    weights = {k: v for k, v in load_file(STREAMS).items() if k.startswith(f"{kind}/weight/")}
    config = CONFIGS[kind]
    biases = [v for k, v in weights.items() if k.endswith(("in_proj.bias", "out_proj.bias", "conv1d.bias"))]
    gains = [v for k, v in weights.items() if "norm" in k]
    assert len(biases) == (0 if kind in BARE else 3 * config.n_layers)
    assert (f"{kind}/weight/lm_head.weight" in weights) == (kind in BARE)
    assert all(b.abs().max() > 0.1 for b in biases)
    assert all((g - 1).abs().max() > 0.1 for g in gains)


def test_a_tie_is_seen_by_the_margin(monkeypatch):
    from safetensors.torch import load_file

    streams = load_file(STREAMS)
    original = model.QuantizedBlock.enter

    def on_a_tie(self, into, x, tap):
        x = x.clone()
        x.flatten()[0] = -127.5 * into.grids[0].scale
        return original(self, into, x, tap)

    monkeypatch.setattr(model.QuantizedBlock, "enter", on_a_tie)
    assert tie_margin(streams, "mamba") < 1e-7


def asked_by(fault):
    """The probes that a case with this fault in it rests on, whichever the architecture."""
    case = Case.parse("m", fault.case or OBSERVER)
    kinds = fault.architectures
    return {p.name for p in probes.all_probes() if any(p.rests(kind, case) for kind in kinds)}


# The others: test_probes_evaluation.py, test_probes_judge.py
OF_THE_PATH = [f for f in FAULTS if f.unit and not f.unit.startswith((*MEASURING, "judge"))]


@pytest.mark.parametrize("fault", OF_THE_PATH, ids=lambda f: f.name)
def test_the_unit_at_fault_is_named_first(fault):
    import re

    with fault.plant():
        broken = next((r for r in in_turn(only=asked_by(fault)) if r.broken), None)
    assert broken, "no probe sees it"
    assert re.match(fault.unit, broken.name), broken
    assert "\n" not in broken.reason


def test_a_case_rests_on_no_observer_and_no_grid_that_it_has_not(monkeypatch):
    """A fault in percentile is none of running_max's, which would be red without a reason that anybody could see."""

    def broken(*_, **__):
        raise AssertionError("nobody asked for this")

    for name, observer in OBSERVERS.items():
        if name != "running_max":
            for method in ("observe", "take", "threshold"):
                monkeypatch.setattr(observer, method, broken, raising=False)
    for method in ("quantize", "dequantize"):
        monkeypatch.setattr(AsymmetricGrid, method, broken)
    case = Case.parse("m", "running_max")
    of_the_case = {p.name for p in probes.all_probes() for kind in BOTH if p.rests(kind, case)}
    assert [r for r in check(only=of_the_case) if r.status != "same"] == []


def test_what_was_planted_and_asked_is_gone_again():
    for fault in FAULTS:
        with fault.plant():
            pass
    assert {r.status for r in check()} == {"same"}


@pytest.mark.parametrize("fault", [f for f in FAULTS if f.no_op], ids=lambda f: f.name)
def test_a_change_that_changes_nothing_leaves_every_answer(fault):
    with fault.plant():
        assert {r.status for r in check(only=asked_by(fault))} == {"same"}


def test_some_can_be_asked_alone():
    found = check(only={"grid/scale", "observer/running_max"})
    assert [(r.name, r.status) for r in found] == [("grid/scale", "same"), ("observer/running_max", "same")]


def test_a_new_probe_and_one_that_is_gone(monkeypatch, tmp_path):
    kept = probes.all_probes()
    extra = Probe("grid/extra", lambda streams: {"q": torch.tensor([1, 2])})
    monkeypatch.setattr(probes, "all_probes", lambda: (*kept[1:], extra))
    found = {r.name: r.status for r in check()}
    assert found["grid/extra"] == "new"
    assert found[kept[0].name] == "gone"
    expected = tmp_path / "expected.json"
    shutil.copy(EXPECTED, expected)
    record(["grid/extra", kept[0].name], expected=expected)
    assert {r.status for r in check(expected=expected)} == {"same"}


def test_recording_what_is_new_leaves_what_is_stored(monkeypatch, tmp_path):
    expected = tmp_path / "expected.json"
    document = json.loads(EXPECTED.read_text())
    document["probes"]["grid/scale"]["8 bits"][7] = 0.5
    expected.write_text(json.dumps(document))
    record([p.name for p in probes.all_probes() if p.name != "grid/scale"], expected=expected)
    changed = [r for r in check(expected=expected) if r.status != "same"]
    assert [(r.name, r.status) for r in changed] == [("grid/scale", "changed")]
    assert changed[0].reason == "8 bits: [7] 0.5 -> 0.007874015718698502"
    record(["grid/scale"], expected=expected)
    assert expected.read_bytes() == EXPECTED.read_bytes()


def test_a_scale_may_differ_by_one_ulp_and_an_integer_by_nothing(tmp_path):
    document = json.loads(EXPECTED.read_text())
    scale = torch.tensor(document["probes"]["grid/scale"]["8 bits"][7])
    for ulps, status in ((1, "same"), (2, "changed")):
        document["probes"]["grid/scale"]["8 bits"][7] = (scale.view(torch.int32) + ulps).view(torch.float32).item()
        (tmp_path / "e.json").write_text(json.dumps(document))
        assert check(expected=tmp_path / "e.json", only={"grid/scale"})[0].status == status


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"schema": 2, "probes": {}}', '{"schema": 1}', '{"schema": 1, "probes": {"a": 3}}']
)
def test_stored_answers_that_cannot_be_read_are_one_line(tmp_path, text):
    (tmp_path / "e.json").write_text(text)
    with pytest.raises(BadArtefact, match=r"e\.json is not readable .*git checkout") as caught:
        check(expected=tmp_path / "e.json")
    assert "\n" not in str(caught.value)


def test_questions_that_cannot_be_read_are_one_line(tmp_path):
    (tmp_path / "s.safetensors").write_bytes(b"no")
    with pytest.raises(BadArtefact, match=r"s\.safetensors is not readable"):
        check(streams=tmp_path / "s.safetensors")


@pytest.mark.parametrize(
    ("name", "rests"),
    [
        ("grid/half_even", True),
        ("hadamard/12", True),
        ("observer/percentile[alpha=0.9]", True),
        ("observer/mse", False),
        ("policy/quamba/mamba2", True),
        ("policy/quamba/mamba", False),
        ("step/mamba", False),
        ("step/mamba/state", False),
        ("step/mamba2", True),
        ("step/mamba2/state", True),
        ("step/mamba2-options", True),
        ("step/mamba2/w4a4-float_embedding-float_lm_head", True),
        ("step/mamba/w4a4-float_embedding-float_lm_head", False),
        ("fuse/mamba2-options", True),
        ("fuse/mamba", False),
        ("calibration/mamba2-options/running_max", True),
        ("calibration/mamba/running_max", False),
        ("calibration/mamba2/running_max/finest", False),
        ("site/asymmetric", False),
        ("observer/percentile/sizes", True),
        ("observer/running_max/halves", True),
        ("observer/mse/sizes", False),
        ("weights/recipe/quamba/running_max", True),
        ("weights/recipe/quamba/percentile[alpha=0.9]", True),
        ("weights/recipe/quamba/mse[low=0.5,steps=5]", False),
        ("weights/recipe/group/running_max", False),
        ("float/mamba2-bare", True),
        ("fuse/mamba2-bare", True),
        ("step/mamba2-bare/pieces", True),
        ("step/mamba-bare/parameters", False),
        ("calibration/mamba2/fed", True),
        ("calibration/mamba2/run", True),
        ("calibration/mamba/run", False),
        ("calibration/mamba2-bare/running_max", True),
        ("cluster/statistics/fed", False),
        ("gptq/fed", False),
        ("sensitivity/mamba2", False),
        ("checkpoint/config", True),
        ("checkpoint/mamba2-options", True),
        ("saved/mamba2", True),
        ("saved/mamba2/asymmetric", False),
        ("saved/mamba2/groups", False),
        ("export/mamba2", True),
        ("export/mamba", False),
    ],
)
def test_a_case_rests_on_its_own_parts(name, rests):
    assert PROBES[name].rests("mamba2", Case.parse("m", "percentile")) == rests


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("grid/asymmetric", "percentile/w8a8-asymmetric"),
        ("site/asymmetric", "percentile/w8a8-asymmetric"),
        ("calibration/mamba2/percentile[alpha=0.95,sigma=0.2]/asymmetric", "percentile/w8a8-asymmetric"),
        ("calibration/mamba2/percentile[alpha=0.95,sigma=0.2]/finest", "percentile/head"),
        ("w4", "percentile/w4a8/weights=group"),
        ("gptq", "percentile/w4a8/gptq"),
        ("gptq/fed", "percentile/w4a8/gptq"),
        ("gptq/groups", "percentile/w4a8/gptq"),
        ("sensitivity/mamba2", "percentile/sensitivity"),
        ("cluster/statistics/fed", "running_max/4x4/quamba2"),
        ("export/mamba2/groups", "running_max/4x4/quamba2"),
        ("observer/mse/halves", "mse"),
        ("granularity/mamba2/head", "percentile/head"),
        ("granularity/mamba2/channel_state", "percentile/sensitivity"),
        ("observer/mse", "percentile/weights=mse@channel"),
        ("observer/mse[low=0.8,steps=20]", "mse"),
        ("policy/first_middle_last[first=0.9,middle=0.8,last=0.7]/mamba2", "percentile/first_middle_last"),
    ],
)
def test_a_case_of_another_kind_rests_on_what_it_is_made_of(name, text):
    assert PROBES[name].rests("mamba2", Case.parse("m", text))
    assert not PROBES[name].rests("mamba2", Case.parse("m", "percentile"))


# Cases that between them go through everything.
EVERYTHING = (
    *(name for name in OBSERVERS),
    *(f"percentile/{policy}" for policy in POLICIES if not POLICIES[policy].groups),
    *(f"percentile/{refinement}" for refinement in REFINEMENTS),
    *(f"running_max/4x4[method={method}]/quamba2" for method in METHODS),
    *(f"running_max/adaptive[rule={rule}]/quamba2" for rule in ("error", "variance")),
    *(f"percentile/{finer}" for finer in ("1x1/quamba2", "head/quamba2", "channel/quamba2", "w8a8-asymmetric/channel")),
    *(f"percentile/weights={granularity}" for granularity in ("tensor", "split", "channel")),
    *(f"percentile/weights=mse@{granularity}" for granularity in ("tensor", "split", "channel")), "mse/2x2/quamba2",
    "percentile/w4a8/weights=group", "percentile/w4a8/weights=mse@group", "percentile/w4a8/gptq",
)  # fmt: skip


def test_no_probe_is_nobodys():
    """A probe that no case rests on can answer what it likes."""
    cases = [Case.parse("m", text) for text in EVERYTHING]
    idle = [p.name for p in probes.all_probes() if not any(p.rests(kind, case) for kind in BOTH for case in cases)]
    assert not idle


def test_no_unit_stands_before_one_that_it_goes_through():
    """The order of probes, by what each unit is built on."""
    names = [p.name for p in probes.all_probes()]
    first = {unit: min(i for i, n in enumerate(names) if n.startswith(unit)) for unit in BUILT_ON}
    last = {unit: max(i for i, n in enumerate(names) if n.startswith(unit)) for unit in {*sum(BUILT_ON.values(), ())}}
    for unit, below in BUILT_ON.items():
        for one in below:
            assert last[one] < first[unit], f"{unit} is asked before {one}"


BUILT_ON = {
    "observer/": ("grid/",),
    "weights/": ("grid/", "observer/"),
    "gptq/fed": ("gptq/groups", "kernel/"),
    "kernel/": ("hadamard/", "grid/"),
    "int8_linear": ("kernel/", "site"),
    "float/": ("kernel/",),
    "checkpoint/": ("kernel/", "float/"),
    "fuse/": ("kernel/", "float/", "hadamard/", "weights/"),
    "reorder/": ("kernel/", "fuse/", "granularity/"),
    "cluster/statistics": ("kernel/", "float/", "fuse/"),
    "calibration/": ("kernel/", "float/", "fuse/", "reorder/", "observer/", "granularity/", "policy/"),
    "saved/": ("calibration/", "fuse/"),
    "export/": ("saved/",),
    "step/": ("kernel/", "fuse/", "reorder/", "site", "weights/"),
    "refine/": ("calibration/", "step/"),
}
