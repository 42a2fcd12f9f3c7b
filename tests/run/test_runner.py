"""One model's cases: saved scales evaluate to the last bit, shared work is shared, nothing else is."""

from __future__ import annotations

import copy
import dataclasses
import gc
import shutil
import sys
import weakref

import pytest
import torch

from quambench.calibration import channels
from quambench.calibration.scales import Calibration
from quambench.case import Case
from quambench.core import plugins
from quambench.core.errors import BadArtefact, BadCorpus, BadParameter, OutsideFailed
from quambench.data.corpus import load_corpus
from quambench.data.recall import mixed_sequences
from quambench.data.windows import spread_windows
from quambench.evaluation.data import EvalData
from quambench.evaluation.evidence import evaluate, evaluate_answers
from quambench.evaluation.reference import float_answers
from quambench.grids.precision import Precision
from quambench.int8.fuse import prepare
from quambench.int8.model import quantize_model
from quambench.models import ModelConfig, build
from quambench.models.checkpoint import load_checkpoint, save_checkpoint
from quambench.observers import ObserverSpec
from quambench.run import runner
from quambench.run.runner import Known, ModelRun
from quambench.selftest.selftest import PROTOCOL

SMALL = dataclasses.replace(PROTOCOL, calib_windows=6, calib_length=16, decode_windows=4, decode_steps=6, max_items=8)


def case(text: str, **changes) -> Case:
    return Case(model="tiny-model", observer=ObserverSpec.parse(text), protocol=SMALL, **changes)


def start(world, *cases: Case, known: Known | None = None, **options) -> ModelRun:
    checkpoint, corpus = load_checkpoint(str(world / "tiny-model")), load_corpus(world / "corpus")
    return ModelRun(checkpoint, corpus, cases, known=known, **options)


def test_saved_and_loaded_scales_evaluate_to_the_last_bit(world, tmp_path):
    one = case("percentile[alpha=0.9]")
    run = start(world, one)
    run.calibrations[one].save(tmp_path)
    loaded = Calibration.load(tmp_path)
    model = quantize_model(run.plain, loaded, one.precision)
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

    monkeypatch.setattr(channels, "prepare", prepared_and_noted)
    monkeypatch.setattr(runner, "prepare", prepared_and_noted)
    orders = set()
    for one in cases:
        run.quantized(one)
        gc.collect()
        assert len(made) <= 2
        orders.add(channels.order_digest(run.groups(one)))
    assert len(orders) > 2  # else there was nothing to let go


# --- what one run has, step by step ---------------------------------------------------------------------

HERE = "quambench_their_calibrations"


class Steps(list):
    """A progress that notes every step."""

    def __call__(self, *step) -> None:
        self.append(step)


@pytest.fixture(scope="module")
def heads(world, tmp_path_factory):
    """A model whose heads and channels can be put into groups."""
    config = ModelConfig(architecture="mamba2", d_model=16, n_layers=2, vocab_size=300, d_state=4, head_dim=4)
    folder = tmp_path_factory.mktemp("models") / "heads"
    with torch.random.fork_rng():
        torch.manual_seed(0)
        save_checkpoint(folder, build(config).requires_grad_(False), torch.float32)
    shutil.copy(world / "tiny-model" / "tokenizer.json", folder)
    return load_checkpoint(str(folder))


@pytest.fixture
def from_outside(monkeypatch):
    """This module under a name that can be imported, and no source noted."""
    monkeypatch.setitem(sys.modules, HERE, sys.modules[__name__])
    monkeypatch.setattr(plugins, "_sources", {})


def largest_over_127(model, sequences):
    """A whole calibration from outside: the running maximum."""
    seen = [{} for _ in range(model.n_layers + 1)]

    def hook(layer, key, x):
        amax = x.abs().amax().clamp(min=1e-5)
        seen[layer][key] = torch.maximum(seen[layer].get(key, amax), amax)

    for tokens in sequences:
        model(tokens, hook)
    return [{key: amax / 127 for key, amax in entry.items()} for entry in seen]


def no_good(model, sequences):
    raise ArithmeticError("no good: 7")


def test_cases_of_two_protocols_are_two_runs(world):
    other = dataclasses.replace(case("mse"), protocol=dataclasses.replace(SMALL, quality_windows=3))
    with pytest.raises(BadParameter) as told:
        start(world, case("mse"), other)
    assert str(told.value) == "the cases of a run must share one protocol (got 2)"


def test_every_step_that_takes_its_time_is_told(world, heads, from_outside, monkeypatch):
    corpus, calibrated = load_corpus(world / "corpus"), [("heads: calibration", 6, 6)]
    float_, evaluation = ("heads: float reference", 0, 1), "{}: evaluation"
    theirs = f"calibration={HERE}:largest_over_127"
    for text, steps in {
        "running_max": [],
        "running_max/2x2/quamba2": [("heads: statistics of channels", 0, 1)],
        "percentile/sensitivity[budget=2]": [("heads: sensitivity", 0, 1)],
        theirs: [("{}: calibration from outside", 0, 1)],
    }.items():
        one, told = Case.parse("heads", text, SMALL), Steps()
        ModelRun(heads, corpus, [one], told).result(one)
        ours = [] if text == theirs else calibrated
        expected = [*steps, *ours, float_, (evaluation, 0, 1)]
        assert told == [(what.format(one.id), done, total) for what, done, total in expected]
    one, told = Case.parse("heads", "running_max/gptq/w4a8", SMALL), Steps()
    run = ModelRun(heads, corpus, [one], told)
    run.result(one)
    assert told == [*calibrated, float_, (f"{one.id}: evaluation", 0, 1), ("heads: Hessians", 0, 1)]
    assert run.hessians(one) is run.hessians(one)


def test_training_tells_its_steps_and_its_losses_in_order(world):
    one, told = Case.parse("tiny-model", "running_max/learned[steps=3]", SMALL), Steps()
    run = ModelRun(load_checkpoint(str(world / "tiny-model")), load_corpus(world / "corpus"), [one], told)
    evidence = run.result(one).evidence
    mine = [step for step in told if step[0] == f"{one.id}: training scales"]
    assert mine[-1] == (f"{one.id}: training scales", 3, 3)
    losses = run.refined[one].losses
    parts = ("train.start", "train.end", "validation.start", "validation.end")
    assert evidence["refinement.losses"].tolist() == [losses[part] for part in parts]
    assert evidence["refinement.losses"].dtype == torch.float64


def test_a_calibration_from_outside_is_made_of_the_runs_own_sequences(world, from_outside):
    ours, theirs, failing, unfit = (
        Case.parse("tiny-model", text, SMALL)
        for text in ("running_max", f"calibration={HERE}:largest_over_127", f"calibration={HERE}:no_good",
                     f"calibration={HERE}:largest_over_127/channel")
    )  # fmt: skip
    run = start(world, ours, theirs, failing, unfit)
    made, own = run.calibration(theirs), run.calibration(ours)
    assert (made.digest, made.data_digest, made.model_digest) == (own.digest, own.data_digest, run.checkpoint.digest)
    assert set(made.observers.values()) == {f"{HERE}:largest_over_127"}
    with pytest.raises(OutsideFailed, match=rf"^{HERE}:no_good failed at test_runner.py:\d+: ArithmeticError: no good"):
        run.calibration(failing)
    with pytest.raises(BadParameter, match="has one scale per tensor"):
        run.calibration(unfit)


def test_the_float_model_is_left_as_it_was(world):
    run = start(world, case("mse"))
    assert run.answers
    assert {p.dtype for p in run.checkpoint.model.parameters()} == {torch.float32}


def test_data_are_the_protocols_of_the_part_that_is_for_them(world):
    run = start(world, case("mse"))
    test, tokenizer = run.corpus.part("test"), run.checkpoint.tokenizer
    assert run.data.digest == EvalData.of_prose(test, tokenizer, SMALL).digest
    assert torch.equal(
        run.calibration_sequences, spread_windows(run.corpus.part("calibration"), tokenizer, 16, 6).inputs
    )
    assert run.rest_data is None and run.rest_digest == "" and run.rest(case("mse")) == {}


@pytest.fixture
def larger(monkeypatch):
    """A second look for the small protocol."""
    found = dataclasses.replace(SMALL, quality_windows=11, decode_windows=6, max_items=10, recall_sequences=5)
    monkeypatch.setitem(runner.LARGER, SMALL, found)
    return found


def test_a_second_look_measures_the_answers_on_the_rest_once(world, larger):
    one, told = case("running_max"), Steps()
    run = ModelRun(load_checkpoint(str(world / "tiny-model")), load_corpus(world / "corpus"), [one], told)
    rest = run.data.rest_of_prose(run.corpus.part("test"), run.checkpoint.tokenizer, SMALL, larger)
    assert run.rest_digest == rest.digest
    found, answers = run.rest(one), float_answers(copy.deepcopy(run.checkpoint.model).double(), rest)
    expected = evaluate_answers(run.quantized(one), answers, rest)
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(found[name].nan_to_num(), tensor.nan_to_num()), name
    assert run.rest(one) is found
    assert told[-1] == (f"{one.id}: a second look", 0, 1)
    assert sum(step[0].endswith("a second look") for step in told) == 1


def test_recall_is_made_of_its_rungs_and_of_no_corpus(world, larger, monkeypatch):
    small = dataclasses.replace(SMALL, recall_sequences=2, long_windows=1)
    monkeypatch.setitem(runner.LARGER, small, larger)
    checkpoint, known = load_checkpoint("mamba-recall"), Known()
    one = Case.parse(checkpoint.name, "mse", small)
    run = ModelRun(checkpoint, load_corpus(world / "corpus"), [one], known=known)
    data = EvalData.of_recall(checkpoint.recall, small)
    assert run.data.digest == data.digest
    assert run.rest_digest == data.rest_of_recall(checkpoint.recall, small, larger).digest
    assert torch.equal(run.calibration_sequences, mixed_sequences(checkpoint.recall, 6, 16, "calibration"))
    assert set(known.data) == set(known.rest) == set(known.sequences) == {(checkpoint.digest, "", small)}


class Asker:
    """Asks tasks: notes what it is given."""

    def __init__(self) -> None:
        self.given = []

    def evidence(self, *given):
        self.given.append(given)
        return {"task.found": torch.ones(2)}

    def digest(self, *given):
        return ["documents", *given]


def test_tasks_are_asked_of_the_model_that_is_measured_and_their_documents_are_a_setting(world):
    asker, told, one = Asker(), Steps(), case("running_max", tasks=("one",), task_limit=3)
    checkpoint = load_checkpoint(str(world / "tiny-model"))
    run = ModelRun(checkpoint, load_corpus(world / "corpus"), [one], told, tasks=asker)
    evidence = run.evidence(one)
    assert torch.equal(evidence["task.found"], torch.ones(2)) and "prefill.kl" in evidence
    assert asker.given == [(checkpoint, one, run.quantized(one), f"{run.calibration(one).digest} {one.id} ")]
    assert told[-1] == (f"{one.id}: tasks", 0, 1)
    settings = run.settings(one)
    assert settings["task_data"] == ["documents", checkpoint, one]
    assert (settings["model_digest"], settings["evaluation_data"]) == (checkpoint.digest, run.data.digest)
    assert settings["metric.kl"] == runner.METRICS["kl"].version

    def disturb(x):
        return x

    run.measure_again(one, disturb)
    assert asker.given[-1][3] == f"{run.calibration(one).digest} {one.id} {id(disturb)}"


@pytest.mark.parametrize("what", ["result", "settings"])
def test_tasks_that_nobody_asks_are_refused(world, what):
    one = case("running_max", tasks=("one",))
    with pytest.raises(BadParameter) as told:
        getattr(start(world, one), what)(one)
    assert str(told.value) == f"{one.id} names tasks, and nobody here asks them: use --qb-task, or eval --task"


def test_windows_go_in_batches_of_the_size_that_is_asked_for(world, monkeypatch):
    sizes, original = [], runner.evaluate
    monkeypatch.setattr(runner, "evaluate", lambda *args: sizes.append(args[5]) or original(*args))
    one = case("running_max")
    checkpoint, corpus = load_checkpoint(str(world / "tiny-model")), load_corpus(world / "corpus")
    ModelRun(checkpoint, corpus, [one], window_batch=3).evidence(one)
    ModelRun(checkpoint, corpus, [one]).evidence(one)
    assert sizes == [3, 16]


@pytest.mark.parametrize("text", ["percentile", "percentile/w8a4-asymmetric", "running_max/2x2/quamba2"])
def test_scales_that_were_made_before_come_to_what_they_came_to(world, heads, text):
    one = Case.parse("heads", text, SMALL)
    run = ModelRun(heads, load_corpus(world / "corpus"), [one])
    result = run.result(one)
    assert {name: repr(m) for name, m in run.with_saved(result.calibration).items()} == {
        name: repr(m) for name, m in result.metrics.items()
    }
    assert (result.case, result.evidence["model.bytes"]) == (one, run.quantized(one).n_bytes)
    assert result.seconds > 0
    groups = result.calibration.groups.values()
    assert ("groups.of_channel" in result.evidence) is bool(groups)
    for name in ("channel_index", "of_channel") if groups else ():
        expected = torch.stack([getattr(of_layer, name) for of_layer in groups])
        assert result.evidence[f"groups.{name}"].tolist() == expected.tolist()
        assert result.evidence[f"groups.{name}"].dtype == torch.int32


def test_scales_of_another_model_are_refused(world, heads):
    one = case("running_max")
    run = start(world, one)
    with pytest.raises(BadArtefact) as told:
        runner.saved_model(heads, run.calibration(one))
    assert str(told.value) == "these scales were made for another model than 'heads'"


def test_one_order_of_channels_is_arranged_once_and_the_one_before_leaves_the_device(world, heads, monkeypatch):
    cases = [Case.parse("heads", f"running_max/{n}/quamba2", SMALL) for n in ("2x2", "4x4")]
    run = ModelRun(heads, load_corpus(world / "corpus"), cases)
    assert run.prepared(cases[0]) is run.prepared(cases[0])
    events, made = [], runner.arrange
    monkeypatch.setattr(run._guest, "clear", lambda: events.append("cleared"))
    monkeypatch.setattr(runner, "arrange", lambda *args: events.append("arranged") or made(*args))
    run.prepared(cases[1])
    assert events == ["cleared", "arranged"]
    for one in cases:
        assert run.inside(one) is run.inside(one)
        assert run.quantized(one) is run.quantized(one)


@pytest.mark.parametrize("step", ["saving", "training"])
def test_a_case_that_cannot_be_saved_or_trained_is_no_other_cases_concern(world, monkeypatch, step):
    one, other = case("mse"), case("running_max")
    run, spoilt = start(world, one, other), []

    def fails_at_first(*given):
        if not spoilt:
            spoilt.append(True)
            raise ArithmeticError("no good: 7")
        return given[-1]

    monkeypatch.setattr(*((runner, "_saved_and_loaded") if step == "saving" else (run, "_refined")), fails_at_first)
    assert run.calibration(other).scales
    with pytest.raises(ArithmeticError, match="no good: 7"):
        run.calibration(one)


def test_scales_that_were_made_before_are_measured_on_the_runs_device(world, monkeypatch):
    run, given = start(world, case("mse")), []

    def noted(*args):
        given.append(args)
        raise LookupError

    monkeypatch.setattr(runner, "saved_model", noted)
    run._guest.device = torch.device("cuda:1")
    with pytest.raises(LookupError):
        run.with_saved("scales")
    assert given == [(run.checkpoint, "scales", torch.device("cuda:1"))]


def test_settings_say_how_many_windows_there_were(world):
    """What a protocol asks for and texts do not have is told as it was, or an error, where somebody asked for it."""
    many = dataclasses.replace(SMALL, calib_windows=100_000, quality_windows=50_000)
    one = dataclasses.replace(case("percentile"), protocol=many)
    with pytest.raises(BadCorpus, match=r"the calibration texts fill \d+ of the 100000 windows of 16 tokens"):
        start(world, one, all_calibration=True).calibration(one)
    run = start(world, one)
    settings, asked = run.settings(one), one.settings()
    there = {"calib_windows": len(run.calibration_sequences), "quality_windows": len(run.data.quality.inputs)}
    assert {name: value for name, value in settings.items() if asked.get(name, value) != value} == there
    assert run.shortfall == (
        f"the texts have fewer windows than are asked for: calib_windows {there['calib_windows']} of 100000, "
        f"quality_windows {there['quality_windows']} of 50000"
    )
    small = dataclasses.replace(one, protocol=SMALL)
    assert run.calibration_shortfall == f"{run.shortfall.partition(', quality')[0]}"
    enough = start(world, small)
    assert enough.settings(small) | small.settings() == enough.settings(small)
    assert enough.shortfall == enough.calibration_shortfall == ""
