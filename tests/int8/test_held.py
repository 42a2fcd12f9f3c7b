"""Values held by modules move with them, and are in their state."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from quambench.calibration.collect import Task, calibrate
from quambench.grids.precision import Precision
from quambench.int8.fuse import prepare
from quambench.int8.held import Grids, Held, on_cpu
from quambench.int8.model import quantize_model
from quambench.int8.site_grid import SymmetricGrid, Unquantized
from quambench.int8.weights import QuantizedTensor
from quambench.models import ModelConfig, build
from quambench.observers import ObserverSpec
from quambench.policy.quamba import Quamba

CONFIGS = {
    "mamba": ModelConfig(architecture="mamba", d_model=16, n_layers=2, vocab_size=24, d_state=4, dt_rank=2),
    "mamba2": ModelConfig(architecture="mamba2", d_model=16, n_layers=2, vocab_size=24, d_state=4, head_dim=4),
}
TOKENS = torch.randint(24, (3, 12), generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module", params=CONFIGS)
def quantized(request):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        prepared = prepare(build(CONFIGS[request.param]).eval().requires_grad_(False))
    plan = Quamba().plan(prepared.config, ObserverSpec("running_max"), "1x1")
    calibration = calibrate(prepared, TOKENS, {0: Task(plan, 8)}, "m")[0]
    return quantize_model(prepared, calibration, Precision())


def test_a_value_follows_its_module():
    weight = QuantizedTensor(torch.ones(2, 3, dtype=torch.int8), torch.tensor(0.5), packed_bytes=7)
    held = Held(weight)
    assert held.value == weight
    assert held.value is held.value
    moved = copy.deepcopy(held).to("meta")
    assert moved.value.q.is_meta
    assert moved.value.scale.is_meta
    assert moved.value.packed_bytes == 7
    assert held.value.q is weight.q


def test_what_is_kept_is_in_the_state_and_what_derives_is_not():
    grid = SymmetricGrid(torch.tensor(0.5), 8)
    assert list(Held(grid).state_dict()) == ["scale"]
    assert list(Held(grid, kept=False).state_dict()) == []


def test_grids_are_found_by_the_name_of_their_site():
    grids = Grids({"in_proj:input": SymmetricGrid(torch.tensor(0.5), 8), "z": Unquantized()})
    assert isinstance(grids["z"], Unquantized)
    assert [type(grid) for grid in grids.values()] == [SymmetricGrid, Unquantized]
    with pytest.raises(KeyError):
        grids["y"]


def test_a_value_on_the_cpu_is_itself():
    grid = SymmetricGrid(torch.tensor(0.5), 8)
    assert on_cpu(grid) is grid


def test_every_tensor_of_a_quantized_model_moves(quantized):
    """Whatever a computation may meet; what evidence compares with on the CPU stays there."""
    moved = copy.deepcopy(quantized).to("meta")
    for part in (*moved.blocks, moved.top, moved.exit, moved._embedding, moved._head, moved._head_linear):
        left = [where for where, tensor in tensors_of(part) if not tensor.is_meta]
        assert left == []
    assert moved.blocks[0].out_proj.weight is moved.blocks[0].weights["out_proj.weight"]  # once, not twice


def test_a_tensor_that_is_no_buffer_would_be_seen(quantized):
    """The twin of the test above."""

    @dataclass
    class Stray:
        x: Tensor

    spoilt = copy.deepcopy(quantized)
    spoilt.blocks[1].stray = Stray(torch.ones(1))
    moved = spoilt.to("meta")
    assert [where for where, tensor in tensors_of(moved.blocks[1]) if not tensor.is_meta] == ["block.stray.x"]


def test_the_state_of_a_model_brings_another_to_its_weights(quantized):
    other = copy.deepcopy(quantized)
    for tensor in other.state_dict().values():
        tensor.zero_()
    assert not torch.equal(other(TOKENS)[0], quantized(TOKENS)[0])
    assert all(torch.equal(a.q, torch.zeros_like(a.q)) for a in other.weights().values())
    other.load_state_dict(quantized.state_dict())
    ours, theirs = other.weights(), quantized.weights()
    assert all(torch.equal(ours[name].dequantize(), theirs[name].dequantize()) for name in theirs)


def tensors_of(value, where="block", seen=None):
    """Every tensor within a value, by where it is; modules are walked through all that they have."""
    seen = set() if seen is None else seen
    if id(value) in seen:
        return
    seen.add(id(value))
    if isinstance(value, torch.Tensor):
        yield where, value
    elif isinstance(value, dict):
        for key, v in value.items():
            yield from tensors_of(v, f"{where}[{key}]", seen)
    elif isinstance(value, list | tuple):
        for i, v in enumerate(value):
            yield from tensors_of(v, f"{where}[{i}]", seen)
    elif isinstance(value, nn.Module) or hasattr(value, "__dataclass_fields__"):
        names = vars(value) if isinstance(value, nn.Module) else value.__dataclass_fields__
        for name in names:
            yield from tensors_of(getattr(value, name), f"{where}.{name}", seen)
