"""Calibration: one pass, exact scales, named places, files that are whole or absent."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from quambench import calibrate as calibration
from quambench.calibrate import Calibration, calibrate
from quambench.errors import BadArtefact, BadCorpus, NonFinite, SiteUnseen
from quambench.gate.record import scale_steps_apart
from quambench.models import ModelConfig, build
from quambench.models.sites import sites_of
from quambench.observers import ObserverSpec
from quambench.policy import POLICIES, Assignment
from quambench.quant.fuse import prepare

CONFIGS = {
    "mamba": ModelConfig(architecture="mamba", d_model=16, n_layers=2, vocab_size=50, d_state=4, dt_rank=3),
    "mamba2": ModelConfig(
        architecture="mamba2", d_model=16, n_layers=2, vocab_size=50, d_state=4, head_dim=8, chunk_size=8
    ),
}
SEQUENCES = torch.randint(50, (21, 13), generator=torch.Generator().manual_seed(3))
PERCENTILE, MAXIMUM = ObserverSpec.parse("percentile[alpha=0.9,sigma=0.2]"), ObserverSpec("running_max")


@pytest.fixture(scope="module", params=CONFIGS)
def prepared(request):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return prepare(build(CONFIGS[request.param]))


def plan(prepared, observer):
    return POLICIES["quamba"](prepared.config, observer)


def one(prepared, observer, sequences=SEQUENCES):
    return calibrate(prepared, sequences, {"k": (plan(prepared, observer), 8)}, "model")["k"]


def test_every_site_has_a_scale_in_forward_order(prepared):
    assert list(one(prepared, PERCENTILE).scales) == list(sites_of(prepared.config))


def test_scales_are_the_observers_of_the_tapped_activations(prepared):
    found = one(prepared, PERCENTILE)
    watchers = {site: a.observer.build() for site, a in plan(prepared, PERCENTILE).items()}
    with torch.no_grad():
        for sequence in SEQUENCES:

            def watch(site, x):
                watchers[site].update(x.float().reshape(1, -1))
                return x

            prepared(sequence[None], tap=watch)
    for site, observer in watchers.items():
        assert int(scale_steps_apart(found.scales[site], observer.scale()).max()) <= 1, site


def test_one_pass_for_several_plans_equals_a_pass_each(prepared):
    plans = {name: (plan(prepared, o), 8) for name, o in (("p", PERCENTILE), ("m", MAXIMUM))}
    together = calibrate(prepared, SEQUENCES, plans, "model")
    assert together["p"].digest == one(prepared, PERCENTILE).digest
    assert together["m"].digest == one(prepared, MAXIMUM).digest


def test_the_case_observer_stands_at_the_percentile_sites_alone(prepared):
    p, m = one(prepared, PERCENTILE), one(prepared, MAXIMUM)
    differ = {s.rpartition(".")[2] for s in p.scales if not torch.equal(p.scales[s], m.scales[s])}
    assert differ == ({"x_proj:input", "ssm_state"} if prepared.config.architecture == "mamba" else
                      {"x_conv_out", "ssm_state"})  # fmt: skip


@pytest.mark.parametrize("batch", [1, 5])
def test_the_forward_batch_does_not_matter(prepared, batch, monkeypatch):
    expected = one(prepared, PERCENTILE)
    monkeypatch.setattr(calibration, "FORWARD_BATCH", batch)
    found = one(prepared, PERCENTILE)
    for site, scale in expected.scales.items():
        assert int(scale_steps_apart(scale, found.scales[site]).max()) <= 1, site


def test_the_order_of_sequences_matters_to_a_moving_average_alone(prepared):
    turned = SEQUENCES.flip(0)
    assert one(prepared, MAXIMUM, turned).digest == one(prepared, MAXIMUM).digest
    assert one(prepared, PERCENTILE, turned).digest != one(prepared, PERCENTILE).digest


def test_act_bits_set_the_step(prepared):
    plans = {bits: (plan(prepared, MAXIMUM), bits) for bits in (8, 4)}
    found = calibrate(prepared, SEQUENCES, plans, "model")
    for site in found[8].scales:
        if found[8].scales[site] > 1e-5:  # not at the floor
            assert (found[4].scales[site] / found[8].scales[site]).item() == pytest.approx(127 / 7, rel=1e-6)


def test_a_site_without_data_is_named(prepared):
    unseen = dict(plan(prepared, MAXIMUM)) | {"layers.9.z": Assignment(MAXIMUM, "tensor")}
    with pytest.raises(SiteUnseen, match=r"no calibration data passed through layers\.9\.z"):
        calibrate(prepared, SEQUENCES, {"k": (unseen, 8)}, "model")


def test_a_value_that_is_not_finite_names_site_and_sequence(prepared):
    forward = prepared.forward

    class Broken:
        config = prepared.config
        seen = 0

        def __call__(self, tokens, tap):
            def poison(site, x):
                if site == "layers.1.ssm_state" and tokens.shape[0] == 5:  # the last, smaller batch
                    x = x.clone()
                    x[2] = torch.nan
                return tap(site, x)

            return forward(tokens, tap=poison)

    with pytest.raises(NonFinite, match=r"layers\.1\.ssm_state, calibration sequence 18"):
        calibrate(Broken(), SEQUENCES, {"k": (plan(prepared, MAXIMUM), 8)}, "model")


def test_no_sequence_is_refused(prepared):
    with pytest.raises(BadCorpus, match="at least one sequence"):
        one(prepared, MAXIMUM, SEQUENCES[:0])


def test_a_saved_calibration_reads_back_equal(prepared, tmp_path):
    found = one(prepared, PERCENTILE)
    found.save(tmp_path)
    loaded = Calibration.load(tmp_path)
    assert loaded.digest == found.digest
    assert list(loaded.scales) == list(found.scales)
    assert loaded.observers == dict(found.observers)


@pytest.mark.parametrize("harm", ["truncate", "other", "schema", "json", "missing"])
def test_a_harmed_calibration_is_one_clear_line(prepared, tmp_path, harm):
    found = one(prepared, PERCENTILE)
    found.save(tmp_path)
    scales, about = tmp_path / "scales.safetensors", tmp_path / "calibration.json"
    if harm == "truncate":
        scales.write_bytes(scales.read_bytes()[:-7])
    elif harm == "other":
        replace(found, scales={s: 2 * x for s, x in found.scales.items()}).save(tmp_path / "b")
        scales.write_bytes((tmp_path / "b" / "scales.safetensors").read_bytes())
    elif harm == "schema":
        about.write_text(json.dumps(json.loads(about.read_text()) | {"schema": 99}))
    elif harm == "json":
        about.write_text("{")
    else:
        scales.unlink()
    with pytest.raises(BadArtefact) as caught:
        Calibration.load(tmp_path)
    assert str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)
