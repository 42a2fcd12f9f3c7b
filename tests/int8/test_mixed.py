"""Models of mixed precision, and of float activations or weights: each layer is the uniform model's."""

from __future__ import annotations

from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass

import pytest
import torch
from quambench_kernels import dispatch

from quambench.calibration.collect import Task, calibrate
from quambench.calibration.hessians import gather_hessians
from quambench.calibration.refine.training import taught
from quambench.core.errors import BadParameter
from quambench.grids.precision import Bits, Precision
from quambench.int8 import w4
from quambench.int8.fuse import prepare
from quambench.int8.held import Held
from quambench.int8.model import QuantizedLinear, QuantizedModel, quantize_model
from quambench.int8.recipe import WeightRecipe
from quambench.int8.site_grid import SymmetricGrid, Unquantized
from quambench.int8.w4 import GroupedWeight
from quambench.int8.weights import FloatWeight, QuantizedTensor
from quambench.models import ModelConfig, build
from quambench.models.backbone import LanguageModel
from quambench.models.sites import sites_of
from quambench.observers import ObserverSpec
from quambench.policy.quamba import Quamba

EPS32 = torch.finfo(torch.float32).eps
TOKENS = torch.randint(50, (3, 13), generator=torch.Generator().manual_seed(3))
SHAPES = {
    "mamba": dict(architecture="mamba", d_model=12, n_layers=4, vocab_size=50, d_state=4, dt_rank=3),
    "mamba2": dict(
        architecture="mamba2", d_model=16, n_layers=4, vocab_size=50, d_state=4, head_dim=8, n_groups=2, chunk_size=5,
        proj_bias=True,
    ),
}  # fmt: skip
RECIPES = {"quamba": WeightRecipe(), "group": WeightRecipe(granularity="group"), "gptq": WeightRecipe.parse("gptq")}


@dataclass(frozen=True)
class World:
    """A prepared model, scales for all its sites, and its Hessians."""

    prepared: LanguageModel
    calibration: object
    hessians: dict

    def model(self, precision, recipe="quamba", **more) -> QuantizedModel:
        precision = Precision.parse(precision)
        made = RECIPES[recipe]
        if not precision.layers:
            made = made.at(precision.weight_bits)
        return quantize_model(self.prepared, self.calibration, precision, recipe=made, hessians=self.hessians, **more)


@pytest.fixture(scope="module", params=SHAPES)
def world(request, randomize):
    with torch.random.fork_rng():
        model = build(ModelConfig(**SHAPES[request.param])).requires_grad_(False)
    randomize(model, 1)
    prepared = prepare(model)
    plan = Quamba().plan(prepared.config, ObserverSpec("running_max"), "1x1")
    calibration = calibrate(prepared, TOKENS, {"k": Task(plan, 8)}, "model")["k"]
    return World(prepared, calibration, gather_hessians(prepared, TOKENS))


def equal_weights(a, b):
    assert list(a) == list(b)
    for name, weight in a.items():
        assert type(weight) is type(b[name]), name
        assert torch.equal(weight.q, b[name].q), name
        assert torch.equal(weight.scale, b[name].scale), name


@torch.no_grad()
def speak(model):
    """Logits of a prefill and of two steps after it, and the last state."""
    logits, state = model(TOKENS[:, :9])
    found = [logits]
    for t in (9, 10):
        logits, state = model(TOKENS[:, t : t + 1], state)
        found.append(logits)
    return [*found, *(x for layer in state for x in (layer.conv, layer.ssm))]


@pytest.mark.parametrize(
    ("bits", "recipe"),
    [("w8a8", "quamba"), ("w8a16", "quamba"), ("w16a8", "quamba"), ("w4a8", "group"), ("w4a16", "gptq")],
)
def test_a_mix_of_one_precision_is_that_precision(world, bits, recipe):
    embedding = "w8" if recipe != "quamba" else bits.partition("a")[0]  # groups leave an embedding 8 bits
    mixed = world.model(f"mix[{bits}*4,embedding={embedding},lm_head={bits}]", recipe)
    uniform = world.model(bits, recipe)
    equal_weights(mixed.weights(), uniform.weights())
    for a, b in zip(speak(mixed), speak(uniform), strict=True):
        assert torch.equal(a, b)
    assert mixed.n_bytes == uniform.n_bytes


MIXES = [
    (("w8a8", "w4a16", "w8a16", "w4a8"), "group"),
    (("w16a8", "w8a8", "w4a8", "w16a16"), "gptq"),
    (("w4a16", "w4a8", "w8a8", "w8a16"), "quamba"),
]


def assert_layer_by_layer(world, layers, recipe):
    """Each block has the uniform model's weights and makes of one input what that makes of it."""
    mixed = world.model(f"mix[{','.join(layers)}]", recipe)
    x = mixed.embed(TOKENS)
    for i, bits in enumerate(map(Bits.parse, layers)):
        uniform = Precision(weight_bits=bits.weights, act_bits=bits.acts)
        own = quantize_model(
            world.prepared, world.calibration, uniform, recipe=RECIPES[recipe].at(bits.weights), hessians=world.hessians
        ).blocks[i]
        equal_weights(mixed.blocks[i].weights, own.weights)
        assert mixed.blocks[i].by_kernels == own.by_kernels
        first = mixed.blocks[i].forward(x, None, None, lambda site, v: v)
        second = own.forward(x, None, None, lambda site, v: v)
        assert torch.equal(first[0], second[0])
        assert torch.equal(first[2].ssm, second[2].ssm)
        x = first[0]


@pytest.mark.parametrize(("layers", "recipe"), MIXES)
def test_each_layer_is_the_uniform_models(world, layers, recipe):
    assert_layer_by_layer(world, layers, recipe)


def test_a_mix_read_one_layer_off_is_seen(world, monkeypatch):
    original = Precision.of
    monkeypatch.setattr(
        Precision,
        "of",
        lambda self, layer: original(self, layer if layer is None or not self.layers else (layer + 1) % 4),
    )
    with pytest.raises(AssertionError):
        assert_layer_by_layer(world, *MIXES[0])


def test_the_embedding_and_the_head_have_their_own(world):
    by_rule = world.model("mix[w8a8*4]", "group")
    assert by_rule.weights()["embedding.weight"].q.abs().amax() == 7  # 4 bits, by row
    grouped = w4.to_int8(w4.round_to_nearest(world.prepared.lm_head.weight))
    assert torch.equal(by_rule.weights()["lm_head.weight"].q, grouped.q)
    said = world.model("mix[w8a8*4,embedding=w16,lm_head=w8a16]", "group")
    assert torch.equal(said.embedding, world.prepared.backbone.embedding.weight.half().float())
    assert isinstance(said.grids["lm_head:input"], Unquantized)
    assert said.weights()["lm_head.weight"].q.abs().amax() >= 127


def kinds(block):
    return {name: type(weight) for name, weight in block.weights.items()}


@pytest.mark.parametrize("recipe", ["group", "gptq"])
def test_a_w4a16_layer_has_groups_half_precision_and_no_grid(world, recipe):
    """Quamba2's W4A16: in_proj and out_proj alone are rounded, and not a second time to 8 bits."""
    model = world.model("mix[w8a8,w4a16,w8a8*2]", recipe)
    for i, block in enumerate(model.blocks):
        grids = {grid for site, grid in model.grids.items() if site.startswith(f"layers.{i}.")}
        assert {type(g) for g in grids} == {Unquantized if i == 1 else SymmetricGrid}
        if i != 1:
            assert set(kinds(block).values()) == {QuantizedTensor}
    of_groups = {name for name, kind in kinds(model.blocks[1]).items() if kind is GroupedWeight}
    assert of_groups == {"in_proj.weight", "out_proj.weight"}
    assert {kind for name, kind in kinds(model.blocks[1]).items() if name not in of_groups} == {FloatWeight}
    mixer, weights = world.prepared.blocks[1].mixer, model.blocks[1].weights
    if recipe == "group":
        assert torch.equal(weights["in_proj.weight"].q, w4.round_to_nearest(mixer.in_proj.weight).q)
    assert torch.equal(weights["conv1d.weight"].q, mixer.conv1d.weight[:, 0].half())
    assert torch.equal(weights["A_log"].q, mixer.A_log.float())  # exponentiated: float32
    _, state = model(TOKENS[:, :5])
    assert [s.ssm.dtype for s in state] == [torch.int8, torch.float32, torch.int8, torch.int8]


def test_weights_alone_and_activations_alone(world):
    plain, no_grids, no_integers = (world.model(bits) for bits in ("w8a8", "w8a16", "w16a8"))
    equal_weights(no_grids.weights(), plain.weights())
    assert {type(g) for g in no_grids.grids.values()} == {Unquantized}
    assert no_integers.grids == plain.grids
    assert {type(w) for w in no_integers.weights().values()} == {FloatWeight}
    shapes = {name: w.q.numel() for name, w in plain.weights().items()}
    small = ("bias", "A_log", "D")  # float32, as Quamba keeps what is added or exponentiated
    expected = sum(n * (4 if name.endswith(small) else 2) for name, n in shapes.items())
    assert no_integers.n_bytes == expected


@torch.no_grad()
def assert_is_the_float_models(world, model):
    """The float64 model with the same weights, which at each site goes on with what the runtime made of it.

    So each site is judged by itself. An integer is the float64 value's nearest, unless that lies within float32's
    error of a tie; a float is that value but for float32's error. That error is taken from the same model in
    float32, and the runtime, which sums in another order, may have twice as much, and of a quotient one rounding.
    """
    seen = {}
    logits, _ = model(TOKENS, tap=lambda site, x: seen.setdefault(site, x))
    assert set(seen) == set(sites_of(model.config))

    def replay(dtype):
        found = {}

        def tap(site, x):
            found[site] = x
            return seen[site].to(dtype)

        out, _ = taught(world.prepared, model).to(dtype)(TOKENS, tap=tap)
        return found, out

    (exact, exact_logits), (rough, rough_logits) = replay(torch.float64), replay(torch.float32)
    for site, grid in model.grids.items():
        a, b, c = exact[site], rough[site].double(), seen[site].double()
        if isinstance(grid, SymmetricGrid):
            a, b, c = ((x / grid.scale.double()).clamp(-128, 127) for x in (a, b, c))
            assert (c - c.round()).abs().max() <= 127 * EPS32, f"{site} does not tap its own grid"
            allowed = 0.5 + 2 * (b - a).abs().max() + 128 * EPS32
        else:
            allowed = 2 * (b - a).abs().max() + 2 * EPS32 * a.abs().max()
        assert (c - a).abs().max() <= allowed, f"{site} is {(c - a).abs().max():.2e} off, {allowed:.2e} are allowed"
    allowed = 2 * ((rough_logits - exact_logits).abs().max() + EPS32 * exact_logits.abs().max())
    off = (logits - exact_logits).abs().max()
    assert off <= allowed, f"logits are {off:.2e} off, {allowed:.2e} are allowed"


ORACLE = [("w8a16", "quamba"), ("w16a8", "quamba"), ("w4a16", "group"), ("mix[w8a8,w4a16,w16a8,w4a8]", "group")]


@pytest.mark.parametrize(("precision", "recipe"), ORACLE)
def test_it_is_the_float_model_with_these_weights_rounded_at_these_sites(world, precision, recipe):
    assert_is_the_float_models(world, world.model(precision, recipe))


@pytest.mark.parametrize("fault", ["activations of a float layer rounded", "a float weight left in float64's place"])
def test_the_oracle_sees(world, monkeypatch, fault):
    model = world.model("mix[w8a8,w4a16,w16a8,w4a8]", "group")
    if fault.startswith("activations"):
        block, scale = model.blocks[1], 0.01
        original = block.enter

        def rounded(into, x, tap):
            return original(into, (x / scale).round() * scale, tap)

        monkeypatch.setattr(block, "enter", rounded)
    else:
        linear = model.blocks[2].in_proj
        linear.floats = world.prepared.blocks[2].mixer.in_proj.weight.float()
    with pytest.raises(AssertionError):
        assert_is_the_float_models(world, model)


def test_a_product_of_integers_with_float_weights_by_hand():
    weight = FloatWeight(torch.tensor([[0.5, -1.0], [2.0, 0.25]]).half())
    linear = QuantizedLinear(Held(weight), torch.tensor([1.0, 0.0]), SymmetricGrid(torch.tensor(0.5), 8))
    y = linear(torch.tensor([[4, -2]], dtype=torch.int8))  # stands for 2 and -1
    assert y.tolist() == [[0.5 * 2 + 1 + 1, 2 * 2 - 0.25]]


def test_kernels_serve_the_integer_layers_and_nothing_falls_back(world):
    """What ran, counted: each operator once for every layer that is its own."""
    model = world.model("mix[w8a8,w4a16,w4a8,w16a8,lm_head=w8a8]", "group")
    assert [block.by_kernels for block in model.blocks] == [True, False, True, False]
    assert model.top.by_kernels
    integer, floats = {
        "mamba": ("int8_selective_scan", "selective_scan"), "mamba2": ("int8_ssd", "ssd")
    }[model.config.architecture]  # fmt: skip
    ran = Counter()

    def counted(op):
        def run(implementation, *args, **more):
            ran[op] += 1
            return implementation(*args, **more)

        return dispatch.around(op, run)

    watched = (integer, floats, "int8_causal_conv1d", "causal_conv1d", "int8_embedding")
    with torch.no_grad(), ExitStack() as stack:
        for op in watched:
            stack.enter_context(counted(op))
        model(TOKENS)
    assert dict(ran) == {
        integer: 2, floats: 2, "int8_causal_conv1d": 2, "causal_conv1d": 2, "int8_embedding": 1
    }  # fmt: skip
    assert {integer, floats, "int8_linear"} <= set(dispatch.chosen())


def test_another_depth_is_one_line(world):
    with pytest.raises(BadParameter, match=r"mix\[w8a8\*3\] is for 3 layers, and this model has 4"):
        world.model("mix[w8a8*3]")
