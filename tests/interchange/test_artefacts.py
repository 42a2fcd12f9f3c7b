"""One validation per artefact: what a calibration, a latency row or a record cannot hold, no reader takes."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from quambench.bench.gate import LatencyStore, Recorded
from quambench.calibration.scales import Calibration, check_calibration
from quambench.case import Case
from quambench.core.errors import BadArtefact, BadCheckpoint, BadParameter, QuambenchError, UnknownName
from quambench.gate.forms import check_arrays, check_entry, check_scales
from quambench.grids.granularity import UNQUANTIZED, scale_shape
from quambench.grids.precision import MOST_LAYERS, Precision
from quambench.grouping import GroupingSpec
from quambench.interchange.quamba import from_act_scales, to_act_scales
from quambench.models import ModelConfig
from quambench.models.checkpoint import _read_recall
from quambench.models.sites import architecture_of, sites_of
from quambench.observers import ObserverSpec
from quambench.run.runner import saved_model

MAMBA = ModelConfig(architecture="mamba", d_model=16, n_layers=2, vocab_size=50, d_state=4, dt_rank=3)
MAMBA2 = ModelConfig(
    architecture="mamba2", d_model=16, n_layers=2, vocab_size=50, d_state=8, head_dim=8, n_groups=2, chunk_size=4
)


def made(config=MAMBA, granularity="tensor", symmetric=True, **changes) -> Calibration:
    scales, granularities = {}, {}
    for name, site in sites_of(config).items():
        granularities[name] = granularity if granularity in site.allowed else "tensor"
        step = torch.full(scale_shape(granularities[name], name, config), 0.5)
        scales[name] = step if symmetric else torch.stack([step, torch.zeros_like(step)])
    whole = Calibration(scales, granularities, dict.fromkeys(scales, "o"), 8, "m", "d", symmetric=symmetric)
    return replace(whole, **changes)


def with_scale(value, site="layers.1.ssm_state", **of) -> Calibration:
    whole = made(**of)
    return replace(whole, scales=dict(whole.scales) | {site: value})


# --- Scales


def saved(calibration: Calibration, folder: Path) -> None:
    calibration.save(folder)
    Calibration.load(folder)


def interchanged(calibration: Calibration, folder: Path) -> None:
    act_scales, orders = to_act_scales(calibration)
    from_act_scales(act_scales, orders, MAMBA, model_digest="m")


def met_by_a_model(calibration: Calibration, folder: Path) -> None:
    check_calibration(calibration, MAMBA)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 0.0, -0.5, 1e-9])
@pytest.mark.parametrize("reader", [saved, interchanged, met_by_a_model])
def test_no_reader_takes_a_scale_that_no_grid_has(tmp_path, reader, value):
    with pytest.raises(BadArtefact, match=r"a scale must be finite and at least 1e-06 \(got .*\)") as caught:
        reader(with_scale(torch.tensor(value)), tmp_path)
    assert "ssm_state" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("reader", [saved, interchanged, met_by_a_model])
def test_a_whole_calibration_is_taken(tmp_path, reader):
    reader(made(), tmp_path)


@pytest.mark.parametrize("granularity", ["tensor", "split", "head", "ssd_group", "channel", "channel_state"])
@pytest.mark.parametrize("config", [MAMBA, MAMBA2], ids=["mamba", "mamba2"])
@pytest.mark.parametrize("symmetric", [True, False])
def test_every_granularity_has_its_shape_everywhere(tmp_path, config, granularity, symmetric):
    whole = made(config, granularity, symmetric)
    check_calibration(whole, config)
    saved(whole, tmp_path)
    for site in (s for s, g in whole.granularities.items() if g == granularity != "tensor"):
        longer = torch.cat([whole.scales[site], whole.scales[site]], dim=-1)
        with pytest.raises(BadArtefact, match=f"{site}: .* is no shape of scales per {granularity} there"):
            check_calibration(replace(whole, scales=dict(whole.scales) | {site: longer}), config)


SITE = "layers.1.x_proj:input"
F64, I32 = torch.float64, torch.int32
WRONG = {
    "float64": (lambda c: {"scales": {**c.scales, SITE: torch.ones((), dtype=F64)}}, "scales must be float32"),
    "a row": (lambda c: {"scales": {**c.scales, SITE: torch.ones(1)}}, f"{SITE}: (1,) is no shape"),
    "granularity": (lambda c: {"granularities": {**c.granularities, SITE: "row"}}, "no granularity is called row"),
    "no name": (lambda c: {"granularities": {**c.granularities, SITE: ["tensor"]}}, "no granularity is called"),
    "groups": (lambda c: {"granularities": {**c.granularities, SITE: "groups"}}, "is no shape of scales per groups"),
    "bits": (lambda c: {"act_bits": 9}, "act_bits must be 2 to 8"),
    "bits of another type": (lambda c: {"act_bits": True}, "act_bits must be 2 to 8"),
    "no bits at all": (lambda c: {"act_bits": 16}, "has a scale, and act_bits say that all stays float"),
    "symmetric": (lambda c: {"symmetric": 1}, "symmetric must be true or false"),
    "digest": (lambda c: {"model_digest": None}, "the digests of model and data must be strings"),
    "observer": (lambda c: {"observers": {**c.observers, SITE: 3}}, "the observer must be a string"),
    "layer": (lambda c: {"groups": {"0": None}}, "a layer in groups must be a number"),
    "site": (lambda c: renamed(c, SITE, "layers.1.nothing"), "layers.1.nothing is no site"),
    "layers.x": (lambda c: renamed(c, SITE, "layers.x.z"), "layers.x.z is no site"),
    "two architectures": (lambda c: renamed(c, SITE, "layers.1.z"), "z is no site of a model that has the"),
}  # fmt: skip


def renamed(c: Calibration, old: str, new: str) -> dict[str, dict[str, object]]:
    return {
        name: {new if site == old else site: value for site, value in getattr(c, name).items()}
        for name in ("scales", "granularities", "observers")
    }


@pytest.mark.parametrize(("change", "says"), WRONG.values(), ids=WRONG)
def test_what_no_calibration_can_hold_is_named(change, says):
    with pytest.raises(BadArtefact) as caught:
        check_calibration(replace(made(), **change(made())))
    assert says in str(caught.value)


def test_a_zero_point_lies_within_the_grid():
    for zero, fits in ((-128.0, True), (127.0, True), (128.0, False), (-129.0, False), (math.nan, False)):
        whole = with_scale(torch.tensor([0.5, zero]), symmetric=False)
        if fits:
            check_calibration(whole, MAMBA)
            continue
        with pytest.raises(BadArtefact, match="a zero point must be from -128 to 127"):
            check_calibration(whole, MAMBA)


def test_the_sites_are_the_models():
    for config, says in (
        (replace(MAMBA, n_layers=3), "layers.2"),
        (replace(MAMBA, n_layers=1), "layers.1"),
        (MAMBA2, ""),
    ):
        with pytest.raises(BadArtefact, match=f"the sites must be those of the model: .*{says}"):
            check_calibration(made(), config)
    with pytest.raises(BadArtefact, match="the sites must be those of the model"):
        saved_model(SimpleNamespace(digest="m", config=MAMBA2, name="n"), made())


def test_a_site_that_stays_float_has_no_scale():
    whole = with_scale(torch.zeros(0))
    whole = replace(whole, granularities=dict(whole.granularities) | {"layers.1.ssm_state": UNQUANTIZED})
    check_calibration(whole, MAMBA)
    with pytest.raises(BadArtefact, match="no shape of scales per float"):
        check_calibration(replace(whole, scales=made().scales), MAMBA)


def test_a_calibration_without_its_digest_is_one_line(tmp_path):
    made().save(tmp_path)
    file = tmp_path / "calibration.json"
    file.write_text(file.read_text().replace('"scales_digest"', '"other"'))
    with pytest.raises(BadArtefact, match=r"corrupt calibration: KeyError\('scales_digest'\)"):
        Calibration.load(tmp_path)


def test_every_sites_tensor_has_a_shape():
    for config in (MAMBA, MAMBA2):
        assert len(sites_of(config)) == config.n_layers * len(architecture_of(config).sites) + 1
        assert all(scale_shape("tensor", site, config) == () for site in sites_of(config))


# --- Latencies, records, recall, specs


@pytest.mark.parametrize("ratio", [0, -1, math.nan, math.inf, True, "1.5", None, 10**320])
def test_a_ratio_is_a_number_above_0(ratio):
    with pytest.raises(BadArtefact, match="a ratio must be a number above 0"):
        Recorded(ratio, 0.1)


@pytest.mark.parametrize("spread", [-0.1, math.nan, math.inf, False, "0", None])
def test_a_spread_is_a_number_of_0_or_more(spread):
    Recorded(1.0, 0)
    with pytest.raises(BadArtefact, match="a spread must be a number of 0 or more"):
        Recorded(1.0, spread)


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ('{"ratio": 0, "spread": 0.1}', "a: a ratio must be a number above 0"),
        ('{"ratio": 1, "spread": NaN}', "a: a spread must be"),
        ('{"ratio": 1}', "a must have a ratio and a spread, and nothing else"),
        ('{"ratio": 1, "spread": 0, "x": 1}', "a must have a ratio and a spread, and nothing else"),
        ("[1, 0]", "a must have a ratio and a spread"),
    ],
)
def test_a_latency_row_that_no_measurement_gives_names_the_row(tmp_path, row, says):
    store = LatencyStore(tmp_path)
    store.path.parent.mkdir()
    store.path.write_text(f'{{"schema": 1, "rows": {{"a": {row}}}}}')
    with pytest.raises(BadArtefact) as caught:
        store.read()
    assert says in str(caught.value)
    assert "remove it and record it anew: --qb-update" in str(caught.value)


ENTRY = {
    "protocol": "p", "artefacts": "a", "rest": "", "settings": {"act_bits": 8}, "provenance": {"kernels": {"a": "b"}},
    "metrics": {"kl": [1.0, None]}, "noise": {"means": {"kl": 0.0}}, "weights": {"w": "digest"}, "scales": ["a", "b"],
}  # fmt: skip


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("protocol", 1), ("artefacts", None), ("rest", []), ("settings", []), ("settings", {"act_bits": "8"}),
        ("settings", {}), ("settings", {"act_bits": 8, "x": [1]}), ("settings", {"act_bits": 8, "x": math.inf}),
        ("provenance", {"x": {"a": [1]}}), ("metrics", {"kl": [1.0]}), ("metrics", {"kl": [1.0, "2"]}),
        ("metrics", {"kl": [True, 0]}), ("noise", {"means": []}), ("noise", {"means": {"kl": "0"}}),
        ("weights", {"w": 1}), ("scales", ["a", "a"]), ("scales", "ab"), ("scales", [1]), ("accepted", 1),
    ],
)  # fmt: skip
def test_a_field_of_another_type_is_named(field, value):
    check_entry(ENTRY)
    with pytest.raises(ValueError, match=r"must be .* \(got ") as caught:
        check_entry(ENTRY | {field: value})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("value", [0.0, -1.0, math.nan, math.inf])
def test_a_stored_scale_is_finite_and_above_0(value):
    check_scales({"a": torch.tensor([0.5]), "b": torch.zeros(0)}, symmetric=True)
    with pytest.raises(ValueError, match="a scale of b must be finite and above 0"):
        check_scales({"a": torch.tensor([0.5]), "b": torch.tensor([1.0, value])}, symmetric=True)


def test_a_stored_zero_point_may_be_of_either_sign():
    check_scales({"b": torch.tensor([1.0, -12.0])}, symmetric=False)
    with pytest.raises(ValueError, match="finite"):
        check_scales({"b": torch.tensor([1.0, math.nan])}, symmetric=False)


ARRAYS = {
    "prefill.kl": torch.ones(4, dtype=F64), "prefill.document": torch.zeros(4, dtype=I32),
    "prefill.kl_quantiles": torch.ones(4, 2, dtype=F64), "sites.local_mse": torch.ones(3, dtype=F64),
    "sites.accumulated": torch.ones(3, 5, dtype=F64), "scales.count": torch.tensor(3),
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "array", "says"),
    [
        ("prefill.kl", torch.ones(5, dtype=F64), "cannot have shape"),
        ("prefill.kl", torch.ones(4, 1, dtype=F64), "prefill.kl cannot have shape (4, 1)"),
        ("prefill.kl", torch.ones(4, dtype=I32), "prefill.kl cannot be of type int32"),
        ("prefill.kl_quantiles", torch.ones(3, 2, dtype=F64), "cannot have shape (3, 2)"),
        ("sites.local_mse", torch.ones(2, dtype=F64), "sites.local_mse cannot have shape (2,)"),
        ("sites.local_mse", torch.tensor([1.0, -1.0, 1.0]), "sites.local_mse cannot be below 0"),
        ("sites.accumulated", torch.ones(2, 5, dtype=F64), "sites.accumulated cannot have shape (2, 5)"),
        ("scales.count", torch.ones(1), "scales.count cannot have shape (1,)"),
        ("prefill.kl", torch.full((4,), 1e155, dtype=F64), "has a number beyond 1e+100"),
        ("own.metric", torch.ones(1, dtype=torch.complex64), "own.metric cannot be of type complex64"),
        ("noise.sites.accumulated", torch.tensor([0.1, math.nan, 0.1]), "must be numbers of 0 or more"),
    ],
)
def test_an_array_of_another_form_is_named(name, array, says):
    check_arrays(ARRAYS | {"own.metric": torch.ones(1, 2, 3)}, 3)
    with pytest.raises(ValueError) as caught:  # noqa: PT011 (what it says is asked below)
        check_arrays(ARRAYS | {name: array}, 3)
    assert says in str(caught.value)


@pytest.mark.parametrize("name", ["recall.associative.asked", "items.correct"])
def test_counts_are_whole_whatever_their_type(name):
    check_arrays({name: torch.tensor([1.0, 0.0], dtype=torch.float64)}, None)
    for bad in (0.5, math.nan):
        with pytest.raises(ValueError, match="holds counts, and not all of its numbers are whole"):
            check_arrays({name: torch.tensor([1.0, bad], dtype=torch.float64)}, None)


@pytest.mark.parametrize("rung", ["true", "8.0", '"8"', "[8]", "8888888888888888888888", "null"])
def test_a_rung_is_a_whole_number(tmp_path, rung):
    file = tmp_path / "recall.json"
    file.write_text(f'{{"associative": {rung}, "induction": 32, "selective_copy": 4}}')
    with pytest.raises(BadCheckpoint, match="associative must be one of 4, 8"):
        _read_recall(file)


@pytest.mark.parametrize(
    "text",
    [
        f"mix[w8a8*{MOST_LAYERS + 1}]", "mix[w8a8*100000000]", f"mix[w8a8*{'9' * 5000}]", "mix[w8a8*9999,w4a8*9999]",
        f"mix[{','.join(['w8a8*9999'] * 500)}]",
    ],
    ids=["one more", "many", "digits", "twice", "often"],
)  # fmt: skip
def test_a_mix_is_of_a_bounded_number_of_layers(text):
    with pytest.raises(BadParameter, match=f"a mix is of {MOST_LAYERS:,} layers at most") as caught:
        Precision.parse(text)
    assert len(str(caught.value)) < 1000


def test_a_mix_of_as_many_layers_as_may_be_is_read(tmp_path):
    assert len(Precision.parse(f"mix[w8a8*{MOST_LAYERS},lm_head=w8a8]").layers) == MOST_LAYERS
    (tmp_path / "mix.json").write_text(str(["W8A8"] * (MOST_LAYERS + 1)).replace("'", '"'))
    with pytest.raises(BadParameter, match="layers at most"):
        Precision.parse(f"mix[{tmp_path / 'mix.json'}]")


@pytest.mark.parametrize(
    ("name", "error"),
    [
        ("os:system.x", UnknownName), ("math:pi.y", UnknownName), ("os:system", BadParameter), ("json:", UnknownName),
        ("json:JSONDecoder.decode", BadParameter), (".json:X", BadParameter), (":X", BadParameter),
        ("sys:exit", BadParameter),
        ("builtins:int", BadParameter), ("subprocess:Popen", BadParameter),
    ],
)  # fmt: skip
def test_a_name_that_leads_to_no_observer_is_one_line_and_calls_nothing(name, error):
    with pytest.raises(error) as caught:
        ObserverSpec.parse(name)
    assert "\n" not in str(caught.value)


def test_a_module_that_is_a_program_ends_nobody(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "quambench_a_program.py").write_text("raise SystemExit(0)")
    with pytest.raises(BadParameter, match="cannot be imported: SystemExit: 0"):
        ObserverSpec.parse("quambench_a_program:X")


@pytest.mark.parametrize("parse", [ObserverSpec.parse, GroupingSpec.parse, lambda text: Case.parse("m", f"mse/{text}")])
@pytest.mark.parametrize("text", [f"{'9' * 5000}x4", f"percentile[alpha={'9' * 5000}]", f"tasks=a:{'9' * 5000}"])
def test_five_thousand_digits_are_one_short_line(parse, text):
    with pytest.raises(QuambenchError) as caught:
        parse(text)
    assert len(str(caught.value)) < 2100
