"""A quantized model that is saved and built again is the same to the last bit; what is not one is refused."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load, save

from quambench.calibration.channels import arrange, channel_statistics, groups_of
from quambench.calibration.collect import Task, calibrate
from quambench.calibration.hessians import gather_hessians
from quambench.calibration.stored_model import StoredModel
from quambench.core.errors import BadArtefact
from quambench.grids.precision import Precision
from quambench.grouping import GroupingSpec
from quambench.int8.fuse import prepare
from quambench.int8.model import quantize_model
from quambench.int8.recipe import WeightRecipe
from quambench.models import ModelConfig, build
from quambench.observers import ObserverSpec
from quambench.policy.quamba import Quamba

TOKENS = torch.randint(50, (3, 13), generator=torch.Generator().manual_seed(3))
SHAPES = {
    "mamba": dict(architecture="mamba", d_model=12, n_layers=3, vocab_size=50, d_state=4, dt_rank=3),
    "mamba2": dict(
        architecture="mamba2", d_model=16, n_layers=3, vocab_size=50, d_state=4, head_dim=8, n_groups=2, chunk_size=5,
        proj_bias=True, d_per_channel=True, dt_max=0.5,
    ),
    "mamba2 without biases": dict(
        architecture="mamba2", d_model=16, n_layers=3, vocab_size=50, d_state=4, head_dim=8, conv_bias=False
    ),
}  # fmt: skip
WHOLE = [
    ("w8a8", "quamba"),
    ("w8a8-float_ssm_state", "channel"),
    ("w8a8-float_embedding-float_lm_head", "quamba"),
    ("w4a8", "gptq"),
    ("w4a16", "group"),
    ("w16a8", "quamba"),
    ("w8a8-asymmetric", "quamba"),
    ("mix[w8a8,w4a16,w4a8]", "group"),
]


@pytest.fixture(scope="module")
def make(randomize):
    """(shape, precision, weights, grouping) -> StoredModel, of a model whose every weight matters."""

    def made(shape, precision="w8a8", weights="quamba", grouping="1x1"):
        with torch.random.fork_rng():
            model = build(ModelConfig(**SHAPES[shape])).requires_grad_(False)
        randomize(model, 1)
        bits = Precision.parse(precision)
        recipe = WeightRecipe.parse(weights if weights == "gptq" else f"weights={weights}")
        prepared, groups = prepare(model), {}
        if grouping != "1x1":
            statistics = channel_statistics(prepared, TOKENS)
            groups = groups_of(model.config, GroupingSpec.parse(grouping), lambda: statistics)
            prepared = arrange(model, groups, prepared)
        plan = Quamba().plan(prepared.config, ObserverSpec("running_max"), grouping)
        task = Task(plan, min(bits.grid_bits, 8), symmetric=bits.symmetric, groups=groups)
        calibration = calibrate(prepared, TOKENS, {"k": task}, "model")["k"]
        hessians = gather_hessians(prepared, TOKENS)
        return StoredModel(
            quantize_model(prepared, calibration, bits, recipe=recipe, hessians=hessians), calibration, "id"
        )

    return made


def said(model):
    """Logits of prefill and two steps, what a tap sees, and the states, in one list."""
    seen = []

    def tap(site, x):
        seen.append(x.clone())
        return x

    with torch.inference_mode():
        logits, state = model(TOKENS[:, :-2], tap=tap)
        one, state = model(TOKENS[:, -2:-1], state, tap)
        two, state = model(TOKENS[:, -1:], state)
    return [logits, one, two, *seen, *(t for layer in state for t in (layer.conv, layer.ssm))]


def assert_equal(ours, theirs):
    for a, b in zip(said(ours), said(theirs), strict=True):
        assert a.dtype == b.dtype
        assert torch.equal(a, b)
    mine, others = ours.weights(), theirs.weights()
    assert list(mine) == list(others)
    for name, weight in mine.items():
        assert type(weight) is type(others[name])
        assert weight.digest == others[name].digest
        assert weight.n_bytes == others[name].n_bytes


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("precision", "weights"), WHOLE)
def test_what_was_saved_is_built_again_equal_to_the_last_bit(make, tmp_path, shape, precision, weights):
    made = make(shape, precision, weights)
    made.save(tmp_path)
    found = StoredModel.load(tmp_path)
    assert_equal(found.model, made.model)
    assert found.calibration.digest == made.calibration.digest
    assert found.calibration.model_digest == "model"
    assert (found.case_id, found.model.precision) == ("id", made.model.precision)
    assert sorted(path.name.split(".")[0] for path in tmp_path.iterdir()) == ["quantized", "weights"]


def test_a_changed_integer_would_be_seen(make, tmp_path):
    """The twin of the test above: its comparison tells two models apart that differ by one step of one weight."""
    made = make("mamba")
    made.save(tmp_path)
    found = StoredModel.load(tmp_path)
    found.model.blocks[1].in_proj.weight.q[0, 0] += 1
    with pytest.raises(AssertionError):
        assert_equal(found.model, made.model)


def test_groups_are_saved_with_their_order_of_channels(make, tmp_path):
    made = make("mamba2", grouping="2x2")
    made.save(tmp_path)
    found = StoredModel.load(tmp_path)
    assert_equal(found.model, made.model)
    assert {layer: g.digest for layer, g in found.calibration.groups.items()} == {
        layer: g.digest for layer, g in made.calibration.groups.items()
    }


def test_a_second_save_leaves_nothing_of_the_first(make, tmp_path):
    make("mamba").save(tmp_path)
    second = make("mamba", "w4a8", "group")
    second.save(tmp_path)
    assert len(list(tmp_path.iterdir())) == 2
    assert_equal(StoredModel.load(tmp_path).model, second.model)


# --- What is no quantized model


@pytest.fixture
def folder(make, tmp_path):
    make("mamba2").save(tmp_path)
    return tmp_path


def refused(folder):
    with pytest.raises(BadArtefact) as stopped:
        StoredModel.load(folder)
    message = str(stopped.value)
    assert "\n" not in message
    assert str(folder) in message
    return message


def arrays_in(folder):
    (path,) = folder.glob("weights.*")
    return path


def rewritten(folder, change):
    """The arrays and the JSON after `change(arrays, document)`, with a digest that fits again."""
    document = json.loads((folder / "quantized.json").read_text())
    path = arrays_in(folder)
    arrays = load(path.read_bytes())
    change(arrays, document)
    path.write_bytes(save(arrays))
    document["arrays"]["sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()
    (folder / "quantized.json").write_text(json.dumps(document))


def test_a_damaged_file_is_refused(folder):
    path = arrays_in(folder)
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)
    assert "is not the file that quantized.json describes" in refused(folder)
    path.unlink()
    assert f"{path.name} is missing" in refused(folder)
    (folder / "quantized.json").write_text("{")
    assert "it is not JSON" in refused(folder)
    (folder / "quantized.json").unlink()
    assert "holds no quantized model: quantized.json is missing (quambench quantize writes it)" in refused(folder)


def set_in(document, *path, to):
    *where, last = path
    for key in where:
        document = document[key]
    document[last] = to


CHANGES = {
    "another schema": (lambda a, d: set_in(d, "schema", to=2), "has schema 2, this version reads 1"),
    "a layer more": (lambda a, d: set_in(d, "config", "n_layer", to=4), "layers.3"),
    "absurdly many layers": (lambda a, d: set_in(d, "config", "n_layer", to=10**9), "1000000000 layers"),
    "another width": (lambda a, d: set_in(d, "config", "ssm_cfg", "d_state", to=8), "shape"),
    "a weight less": (lambda a, d: d["weights"].pop("layers.0.D"), "layers.0.D is missing"),
    "a scale of zero": (lambda a, d: a["weight:layers.0.D:scale"].zero_(), "layers.0.D: a scale must be finite"),
    "a NaN": (lambda a, d: a["weight:layers.1.dt_bias:q"].fill_(torch.nan), "layers.1.dt_bias has values"),
    "floats for integers": (
        lambda a, d: a.update({"weight:lm_head.weight:q": a["weight:lm_head.weight:q"].float()}),
        "lm_head.weight cannot be of float32",
    ),
    "scales that do not fit": (
        lambda a, d: a.update({"weight:lm_head.weight:scale": torch.ones(3, 1)}),
        "lm_head.weight: scales (3, 1) do not fit (50, 16)",
    ),
    "a site without a scale": (lambda a, d: a.pop("scale:layers.2.z"), "layers.2.z"),
    "an unknown kind": (lambda a, d: set_in(d, "weights", "layers.0.D", "kind", to="int3"), "int3"),
    "bytes that are none": (
        lambda a, d: set_in(d, "weights", "layers.0.D", "packed_bytes", to="x"),
        "packed_bytes must",
    ),
    "a file elsewhere": (lambda a, d: set_in(d, "arrays", "file", to="../x"), "must stand beside quantized.json"),
    "bits that are none": (lambda a, d: set_in(d, "precision", "weight_bits", to=9), "w9a8"),
    "a mix for fewer layers": (lambda a, d: set_in(d, "precision", "layers", to=["w8a8"]), "for 1 layers"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_file_that_somebody_made_is_refused_where_it_is_wrong(folder, name):
    change, told = CHANGES[name]
    rewritten(folder, change)
    assert told in refused(folder)


def test_a_sound_file_that_somebody_made_is_taken(folder):
    rewritten(folder, lambda arrays, document: arrays["weight:layers.0.D:q"].add_(1))
    assert StoredModel.load(folder).model.config.n_layers == 3


def test_another_case_is_another_file(make, tmp_path):
    """The calibration alone moves one of two files' names: what is named is what is read."""
    made = make("mamba")
    made.save(tmp_path / "a")
    scales = {site: scale * 2 for site, scale in made.calibration.scales.items()}
    StoredModel(made.model, replace(made.calibration, scales=scales), "id").save(tmp_path / "b")
    assert arrays_in(tmp_path / "a").name != arrays_in(tmp_path / "b").name
