"""A model called from the host: what stands in for one on a device does what the model does."""

from __future__ import annotations

import copy

import pytest
import torch

from quambench.calibration.collect import Task, calibrate
from quambench.grids.precision import Precision
from quambench.int8.fuse import prepare
from quambench.int8.model import quantize_model
from quambench.models import ModelConfig, build
from quambench.models.device import Guest, _OnHost, on_host
from quambench.observers import ObserverSpec
from quambench.policy import POLICIES

CPU = torch.device("cpu")
CONFIGS = {
    "mamba": ModelConfig(architecture="mamba", d_model=16, n_layers=2, vocab_size=24, d_state=4, dt_rank=2),
    "mamba2": ModelConfig(architecture="mamba2", d_model=16, n_layers=2, vocab_size=24, d_state=4, head_dim=4),
}
TOKENS = torch.randint(24, (3, 12), generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module", params=CONFIGS)
def prepared(request):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return prepare(build(CONFIGS[request.param]).eval().requires_grad_(False))


@pytest.fixture(scope="module")
def quantized(prepared):
    plan = POLICIES["uniform"]().plan(prepared.config, ObserverSpec("running_max"), "1x1")
    calibration = calibrate(prepared, TOKENS, {0: Task(plan, 8)}, "m")[0]
    return quantize_model(prepared, calibration, Precision())


def called(model):
    """Logits of prefill and of a step, and all that a tap sees; `hidden` and `head` likewise."""
    seen = {}

    def tap(site, x):
        seen.setdefault(site, []).append(x.clone())
        return x

    with torch.inference_mode():
        logits, state = model(TOKENS[:, :-1], tap=tap)
        step, _ = model(TOKENS[:, -1:], state, tap)
        head = model.head(model.hidden(TOKENS)[0])
    return [logits, step, head, *(x for found in seen.values() for x in found)]


def test_a_stand_in_says_and_shows_what_the_model_does(prepared, quantized):
    for model in (prepared, quantized):
        for ours, theirs in zip(called(_OnHost(model, CPU)), called(model), strict=True):
            assert torch.equal(ours, theirs)
        assert _OnHost(model, CPU).config is model.config
        assert on_host(model, CPU) is model


def test_what_a_tap_changes_goes_on_changed(prepared):
    def zeroed(site, x):
        return torch.zeros_like(x) if site.endswith("in_proj:input") else x

    with torch.inference_mode():
        assert torch.equal(_OnHost(prepared, CPU)(TOKENS, tap=zeroed)[0], prepared(TOKENS, tap=zeroed)[0])
        assert not torch.equal(prepared(TOKENS, tap=zeroed)[0], prepared(TOKENS)[0])


def test_a_guest_takes_one_model_at_a_time(prepared, monkeypatch):
    other = copy.deepcopy(prepared)
    guest = Guest("cpu")
    assert guest.take(prepared) is prepared  # nothing is copied on the host
    guest.device = torch.device("meta")  # a device that is everywhere
    first = guest.take(prepared)
    assert first._model is not prepared
    assert next(first.parameters()).device.type == "meta"
    assert guest.take(prepared)._model is first._model  # once
    assert guest.take(other)._model is not first._model
    guest.clear()
    assert guest._there is None


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU with CUDA")
def test_on_a_gpu_float64_sites_differ_by_rounding_alone(prepared):
    there = Guest("cuda").take(prepared)
    for ours, theirs in zip(called(there), called(prepared), strict=True):
        assert ours.device.type == "cpu"
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)
