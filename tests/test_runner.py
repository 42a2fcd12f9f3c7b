"""One model's cases: saved scales evaluate to the last bit, shared work is shared, nothing else is."""

from __future__ import annotations

import dataclasses
import gc
import shutil
import weakref

import pytest
import torch

from quambench import arrange, runner
from quambench.calibrate import Calibration
from quambench.case import Case
from quambench.data.corpus import load_corpus
from quambench.errors import BadParameter
from quambench.evaluate import evaluate
from quambench.models import ModelConfig, build
from quambench.models.checkpoint import load_checkpoint, save_checkpoint
from quambench.observers import ObserverSpec
from quambench.quant.fuse import prepare
from quambench.quant.quantized import Precision, QuantizedModel
from quambench.runner import Known, ModelRun
from quambench.selftest import PROTOCOL

SMALL = dataclasses.replace(PROTOCOL, calib_windows=6, calib_length=16, decode_windows=4, decode_steps=6, max_items=8)


def case(text: str, **changes) -> Case:
    return Case(model="tiny-model", observer=ObserverSpec.parse(text), protocol=SMALL, **changes)


def start(world, *cases: Case, known: Known | None = None) -> ModelRun:
    return ModelRun(load_checkpoint(str(world / "tiny-model")), load_corpus(world / "corpus"), cases, known=known)


def test_saved_and_loaded_scales_evaluate_to_the_last_bit(world, tmp_path):
    one = case("percentile[alpha=0.9]")
    run = start(world, one)
    run.calibrations[one].save(tmp_path)
    loaded = Calibration.load(tmp_path)
    model = QuantizedModel(run.plain, loaded, one.precision)
    again = evaluate(model, run.answers, run.inside(one), run.data, loaded)
    first = run.evidence(one)
    assert first.keys() == again.keys()
    for name, tensor in first.items():
        assert torch.equal(tensor.nan_to_num(), again[name].nan_to_num()), name


def test_a_case_that_does_not_fit_or_fails_is_no_other_cases_concern(world):
    texts = {
        "running_max": None,
        "mse/first_middle_last": "sets alpha, which mse does not have",
        "mse/w8a8-asymmetric": "mse looks for the end of a symmetric grid",
        "percentile/gptq": "gptq makes weights of 4 bits",
        f"{__name__}:Failing": "no good: 7",
        "percentile/sensitivity[budget=2]": None,
    }
    cases = {text: Case.parse("tiny-model", text, SMALL) for text in texts}
    run = ModelRun(load_checkpoint(str(world / "tiny-model")), load_corpus(world / "corpus"), cases.values())
    for text, says in texts.items():
        if says is None:
            assert run.calibration(cases[text]).scales
        else:
            with pytest.raises(Exception, match=says):
                run.result(cases[text])
    assert set(run.calibrations) == {cases[text] for text, says in texts.items() if says is None}


class Failing:
    """From outside, and no good."""

    def update(self, w):
        raise ArithmeticError("no good: 7")

    def get_quantization_parameters(self):
        raise AssertionError("it saw nothing")


def test_a_site_left_float_wastes_nothing_and_uses_nothing(world):
    floats = Case.parse("tiny-model", "percentile/sensitivity[budget=2,floats=2]", SMALL)
    run = ModelRun(load_checkpoint(str(world / "tiny-model")), load_corpus(world / "corpus"), [floats])
    result = run.result(floats)
    left = [g == "float" for g in result.calibration.granularities.values()]
    assert sum(left) == 2
    for name in ("range_used", "range_wasted"):
        assert result.evidence[f"sites.{name}"].isnan().tolist() == left
    assert (result.evidence["sites.local_mse"][torch.tensor(left)] == 0).all()
    assert result.metrics["least_range_used"].value > 0
    assert 0 <= result.metrics["range_wasted"].value < 1


def test_cases_with_equal_scales_are_measured_once(world):
    a, b = case("percentile[alpha=0.9]"), case("percentile[alpha=0.9,sigma=0.01]")  # 0.01 is sigma's default
    float_state = case("percentile[alpha=0.9]", precision=Precision(ssm_state=False))
    run = start(world, a, b, float_state)
    assert run.evidence(a) is run.evidence(b)
    assert run.evidence(a) is not run.evidence(float_state)
    assert torch.equal(run.evidence(a)["prefill.kl"], run.evidence(float_state)["prefill.kl"])
    assert not torch.equal(run.evidence(a)["decode.kl"], run.evidence(float_state)["decode.kl"])


def test_weights_alone_need_no_scale_and_no_pass(world, monkeypatch):
    """Which observer would have watched is no matter: one measurement serves both, and nothing watched."""
    a, b, eight = (Case.parse("tiny-model", text, SMALL) for text in ("percentile/w4a16", "mse/w4a16", "mse/w8a16"))
    run = start(world, a, b, eight)
    passes = []
    original = type(run.plain).forward
    with monkeypatch.context() as patched:
        patched.setattr(
            type(run.plain), "forward", lambda self, *args, **more: passes.append(1) or original(self, *args, **more)
        )
        made = run.calibration(a)
    assert not passes
    assert {scale.numel() for scale in made.scales.values()} == {0}
    assert set(made.granularities.values()) == {"float"}
    assert made.act_bits == 16
    assert run.evidence(a) is run.evidence(b)
    assert run.evidence(a) is not run.evidence(eight)
    result = run.result(a)
    assert result.settings["calibration_data"] == run.calibration(eight).data_digest
    assert (result.evidence["sites.local_mse"] == 0).all() and (result.evidence["sites.clipped"] == 0).all()
    assert result.metrics["n_scales"].value == result.metrics["scale_bytes"].value == 0
    assert (result.evidence["sites.accumulated"].sum(1) > 0).all()  # what rounded weights do, at every site
    assert result.evidence["decode.kl_prefill"].max() < 1e-6  # a float state: steps differ by float32's rounding


def test_a_mixs_float_layers_have_no_scales_and_another_depth_is_told(world):
    floats, integers, deep = (
        Case.parse("tiny-model", f"percentile/mix[{text},lm_head=w8a8,embedding=w8]", SMALL)
        for text in ("w8a16", "w8a8", "w8a8*2")
    )
    uniform = Case.parse("tiny-model", "percentile", SMALL)
    run = start(world, floats, integers, uniform, deep)
    left = {site: scale.numel() for site, scale in run.calibration(floats).scales.items()}
    assert all((n == 0) == site.startswith("layers.0.") for site, n in left.items())
    assert run.calibration(floats).act_bits == 8
    for name, tensor in run.evidence(uniform).items():
        assert torch.equal(tensor.nan_to_num(), run.evidence(integers)[name].nan_to_num()), name
    with pytest.raises(BadParameter, match="is for 2 layers, and this model has 1"):
        run.result(deep)


def test_what_is_known_is_handed_on(world):
    known = Known()
    one = case("running_max")
    first, second = start(world, one, known=known), start(world, one, known=known)
    assert first.answers is second.answers
    assert first.data is second.data
    other = start(world, dataclasses.replace(one, protocol=dataclasses.replace(SMALL, quality_windows=3)), known=known)
    assert other.answers is not first.answers


@pytest.mark.parametrize("name", ["prefill.kl", "decode.kl", "decode.accumulated", "sites.accumulated"])
def test_a_disturbed_repetition_differs_and_a_plain_one_does_not(world, name):
    from quambench.gate.noise import disturbance

    one = case("running_max")
    run = start(world, one)
    assert torch.equal(run.measure_again(one)[name], run.evidence(one)[name])
    loud = disturbance(0)
    assert not torch.equal(
        run.measure_again(one, disturb=lambda x: x + 3000 * (loud(x) - x))[name], run.evidence(one)[name]
    )


def test_however_many_orders_of_channels_two_models_are_kept(world, tmp_path, monkeypatch):
    """The one as it stands, and the last one asked for: of 2.7b parameters each takes 20 GB."""
    config = ModelConfig(architecture="mamba2", d_model=16, n_layers=2, vocab_size=300, d_state=4, head_dim=4)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        save_checkpoint(tmp_path / "heads", build(config).requires_grad_(False), torch.float32)
    shutil.copy(world / "tiny-model" / "tokenizer.json", tmp_path / "heads")
    cases = [Case.parse("heads", f"running_max/{n}/quamba2", SMALL) for n in ("1x1", "2x2", "4x1", "4x4", "2x2")]
    run = ModelRun(load_checkpoint(str(tmp_path / "heads")), load_corpus(world / "corpus"), cases)
    made = weakref.WeakSet()

    def prepared_and_noted(*args):
        made.add(found := prepare(*args))
        return found

    monkeypatch.setattr(arrange, "prepare", prepared_and_noted)
    monkeypatch.setattr(runner, "prepare", prepared_and_noted)
    orders = set()
    for one in cases:
        run.quantized(one)
        gc.collect()
        assert len(made) <= 2
        orders.add(arrange.order_of(run.groups(one)))
    assert len(orders) > 2  # else there was nothing to let go
