"""Calibration: one pass, exact scales, named places, files that are whole or absent."""

from __future__ import annotations

import copy
import json
import os
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from quambench.calibration import channels as arranging
from quambench.calibration import collect as calibration
from quambench.calibration import scales as storing
from quambench.calibration.channels import arrange, channel_statistics, groups_of, order_digest
from quambench.calibration.collect import Task, calibrate
from quambench.calibration.scales import Calibration
from quambench.core.errors import BadArtefact, BadCorpus, BadParameter, NonFinite, SiteUnseen
from quambench.gate.record import scale_steps_apart
from quambench.grouping import GroupingSpec, Groups
from quambench.int8.fuse import prepare
from quambench.models import ModelConfig, build
from quambench.models.sites import sites_of
from quambench.observers import ObserverSpec
from quambench.observers.running_max import RunningMax
from quambench.policy import Assignment
from quambench.policy.quamba import Quamba
from quambench.policy.quamba2 import Quamba2

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
    return Quamba().plan(prepared.config, observer, "1x1")


def one(prepared, observer, sequences=SEQUENCES):
    return calibrate(prepared, sequences, {"k": Task(plan(prepared, observer), 8)}, "model")["k"]


def test_every_site_has_a_scale_in_forward_order(prepared):
    assert list(one(prepared, PERCENTILE).scales) == list(sites_of(prepared.config))


def tapped(prepared, sequences=SEQUENCES):
    """Site -> |activations| of each sequence, as float32 in numpy; the same forward batches."""
    seen: dict[str, list[np.ndarray]] = {}

    def watch(site, x):
        seen.setdefault(site, []).extend(x.float().abs().flatten(1).numpy())
        return x

    with torch.no_grad():
        for batch in sequences.split(calibration.FORWARD_BATCH):
            prepared(batch, tap=watch)
    return seen


def test_scales_are_the_definition_of_the_tapped_activations(prepared):
    """In numpy, sharing nothing with the observers but the formula."""
    maximum, percentile = one(prepared, MAXIMUM).scales, one(prepared, PERCENTILE).scales
    for site, batches in tapped(prepared).items():
        amax = np.float64(max(1e-5, max(x.max() for x in batches)))
        # One division in float64 and one rounding to float32, on both sides: equal to the bit.
        assert maximum[site].item() == np.float32(amax / 127), site
        if sites_of(prepared.config)[site].observer == "case":
            average = None
            for x in batches:
                m = np.quantile(x.astype(np.float64), 0.9, method="linear")
                average = m if average is None else average + 0.2 * (m - average)
            found = percentile[site]
            # numpy orders the interpolation in float64 differently, which float32 sees as one ulp at most.
            assert int(scale_steps_apart(found, torch.tensor(np.float32(average / 127)))) <= 1, site
        else:
            assert torch.equal(percentile[site], maximum[site]), site


def test_channels_have_scales_of_their_own(prepared, tmp_path):
    sites = sites_of(prepared.config)
    mixed = {
        site: Assignment(MAXIMUM, "channel" if "channel" in sites[site].allowed and "state" not in site else "tensor")
        for site in sites
    }
    found = calibrate(prepared, SEQUENCES, {"k": Task(mixed, 8)}, "model")["k"]
    for site, batches in tapped(prepared).items():
        if mixed[site].granularity == "channel":
            amax = np.abs(np.stack(batches)).reshape(len(SEQUENCES) * SEQUENCES.shape[1], -1).max(0)
            expected = (np.maximum(amax.astype(np.float64), 1e-5) / 127).astype(np.float32)
            assert found.scales[site].tolist() == expected.tolist(), site
    found.save(tmp_path)
    loaded = Calibration.load(tmp_path)
    assert loaded.granularities == found.granularities
    assert all(torch.equal(loaded.scales[s], found.scales[s]) for s in sites)


def test_observers_see_one_float32_sequence_at_a_time(prepared, monkeypatch):
    seen = []

    def look(observer, batch):
        assert batch.x.dtype == torch.float32
        seen.append(batch.x.shape)
        return observer_update(observer, batch)

    observer_update = RunningMax.update
    monkeypatch.setattr(RunningMax, "update", look)
    alone = {"layers.0.in_proj:input": Assignment(MAXIMUM, "tensor")}
    calibrate(prepared, SEQUENCES, {"k": Task(alone, 8)}, "model")
    assert seen == [(SEQUENCES.shape[1], prepared.config.d_model)] * len(SEQUENCES)


def test_one_pass_for_several_plans_equals_a_pass_each(prepared):
    plans = {name: Task(plan(prepared, o), 8) for name, o in (("p", PERCENTILE), ("m", MAXIMUM))}
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


def test_the_number_of_threads_does_not_matter(prepared):
    before, found = torch.get_num_threads(), {}
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found[threads] = one(prepared, PERCENTILE).scales
    finally:
        torch.set_num_threads(before)
    for threads in (2, 3):
        for site, scale in found[1].items():
            assert int(scale_steps_apart(scale, found[threads][site]).max()) <= 1, site


def test_equal_assignments_of_several_plans_are_observed_once(prepared, monkeypatch):
    built = []
    monkeypatch.setattr(
        RunningMax, "__post_init__", lambda o, original=RunningMax.__post_init__: (built.append(o), original(o))[1]
    )
    plans = {name: Task(plan(prepared, MAXIMUM), 8) for name in "abc"}
    expected = len(sites_of(prepared.config))
    assert plans["a"].plan  # the specs are known by now: each was built once, for its values
    built.clear()
    calibrate(prepared, SEQUENCES[:1], plans, "model")
    assert len(built) == expected
    assert all(o.n_batches for o in built)


def test_progress_ends_with_all_sequences(prepared):
    told = []
    calibrate(prepared, SEQUENCES, {"k": Task(plan(prepared, MAXIMUM), 8)}, "model", lambda *state: told.append(state))
    assert told == [(16, 21), (21, 21)]


@pytest.mark.parametrize("part", ["act_bits", "scales", "granularities"])
def test_the_digest_follows_all_that_the_runtime_reads(prepared, part):
    found = one(prepared, MAXIMUM)
    site = "lm_head:input"
    changed = {
        "act_bits": 7,
        "scales": {**found.scales, site: torch.nextafter(found.scales[site], torch.tensor(1e9))},
        "granularities": {**found.granularities, site: "channel"},
    }
    assert replace(found, **{part: changed[part]}).digest != found.digest


def test_the_data_digest_follows_tokens_and_shape(prepared):
    found = one(prepared, MAXIMUM)
    other = SEQUENCES.clone()
    other[20, 12] = (other[20, 12] + 1) % 50
    digests = [one(prepared, MAXIMUM, s).data_digest for s in (SEQUENCES, other, SEQUENCES.view(13, 21))]
    assert digests[0] == found.data_digest
    assert len(set(digests)) == 3


def test_the_order_of_sequences_matters_to_a_moving_average_alone(prepared):
    turned = SEQUENCES.flip(0)
    assert one(prepared, MAXIMUM, turned).digest == one(prepared, MAXIMUM).digest
    assert one(prepared, PERCENTILE, turned).digest != one(prepared, PERCENTILE).digest


def test_act_bits_set_the_step(prepared):
    plans = {bits: Task(plan(prepared, MAXIMUM), bits) for bits in (8, 4)}
    found = calibrate(prepared, SEQUENCES, plans, "model")
    for site in found[8].scales:
        if found[8].scales[site] > 1e-5:  # not at the floor
            assert (found[4].scales[site] / found[8].scales[site]).item() == pytest.approx(
                127 / 7,
                rel=2 * torch.finfo(torch.float32).eps,  # three roundings to float32
            )


def test_a_site_without_data_is_named(prepared):
    unseen = dict(plan(prepared, MAXIMUM)) | {"layers.9.z": Assignment(MAXIMUM, "tensor")}
    with pytest.raises(SiteUnseen, match=r"no calibration data passed through layers\.9\.z"):
        calibrate(prepared, SEQUENCES, {"k": Task(unseen, 8)}, "model")


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
        calibrate(Broken(), SEQUENCES, {"k": Task(plan(prepared, MAXIMUM), 8)}, "model")


def test_no_sequence_is_refused(prepared):
    with pytest.raises(BadCorpus, match="at least one sequence"):
        one(prepared, MAXIMUM, SEQUENCES[:0])


def test_a_saved_calibration_reads_back_equal(prepared, tmp_path):
    found = one(prepared, PERCENTILE)
    found.save(tmp_path)
    loaded = Calibration.load(tmp_path)
    assert loaded.digest == found.digest
    assert list(loaded.scales) == list(found.scales)
    assert loaded == replace(found, scales=loaded.scales)
    assert all(torch.equal(loaded.scales[s], scale) for s, scale in found.scales.items())
    assert found.observers["layers.0.ssm_state"] == "percentile[alpha=0.9,sigma=0.2]"


HARMS = ["truncate", "other", "schema", "json", "missing", "empty", "flipped bit", "not text", "list", "no sites"]
HARMS += ["sites as a list", "site without granularity", "other bits", "unknown site"]


@pytest.mark.parametrize("harm", HARMS)
def test_a_harmed_calibration_is_one_clear_line(prepared, tmp_path, harm):
    found = one(prepared, PERCENTILE)
    found.save(tmp_path)
    scales, about = tmp_path / "scales.safetensors", tmp_path / "calibration.json"
    meta = json.loads(about.read_text())
    site = next(iter(meta["sites"]))
    if harm in ("list", "no sites", "sites as a list", "site without granularity", "other bits", "unknown site"):
        meta = {
            "list": [],
            "no sites": {k: v for k, v in meta.items() if k != "sites"},
            "sites as a list": meta | {"sites": list(meta["sites"])},
            "site without granularity": meta | {"sites": meta["sites"] | {site: {"observer": "running_max"}}},
            "other bits": meta | {"act_bits": 4},
            "unknown site": meta | {"sites": meta["sites"] | {"nowhere": meta["sites"][site]}},
        }[harm]
        about.write_text(json.dumps(meta))
    elif harm == "empty":
        scales.write_bytes(b"")
    elif harm == "flipped bit":
        data = bytearray(scales.read_bytes())
        data[-1] ^= 1
        scales.write_bytes(bytes(data))
    elif harm == "not text":
        about.write_bytes(b"\xff\xfe\x00")
    elif harm == "truncate":
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


class Killed(Exception):
    """Stands for the end of the process."""


def die_at(monkeypatch, step):
    """Putting files in place ends after `step` of them."""
    replace_file, done = os.replace, []

    def replacing(source, target):
        done.append(target)
        if len(done) > step:
            raise Killed
        replace_file(source, target)

    monkeypatch.setattr(os, "replace", replacing)


@pytest.mark.parametrize("step", [0, 1, 2])
def test_a_save_that_is_killed_leaves_the_old_pair_or_the_new_one(prepared, tmp_path, monkeypatch, step):
    """First the JSON describes both, then the scales are new, then the JSON is."""
    old, new = one(prepared, MAXIMUM), one(prepared, PERCENTILE)
    old.save(tmp_path)
    with monkeypatch.context() as patch:
        die_at(patch, step)
        with pytest.raises(Killed):
            new.save(tmp_path)
    assert Calibration.load(tmp_path) is not None
    assert Calibration.load(tmp_path).digest == (new if step == 2 else old).digest
    other = replace(new, scales={site: 2 * scale for site, scale in new.scales.items()})
    with monkeypatch.context() as patch:  # and killed again, by the next one
        die_at(patch, step)
        with pytest.raises(Killed):
            other.save(tmp_path)
    assert Calibration.load(tmp_path).digest == {0: old, 1: old, 2: other}[step].digest
    other.save(tmp_path)
    assert Calibration.load(tmp_path).digest == other.digest
    assert "replaced_by" not in json.loads((tmp_path / "calibration.json").read_text())
    assert sorted(p.name for p in tmp_path.iterdir()) == ["calibration.json", "scales.safetensors"]


@pytest.mark.parametrize("step", [0, 1])
def test_a_first_save_that_is_killed_leaves_no_calibration(prepared, tmp_path, monkeypatch, step):
    found = one(prepared, MAXIMUM)
    with monkeypatch.context() as patch:
        die_at(patch, step)
        with pytest.raises(Killed):
            found.save(tmp_path)
    with pytest.raises(BadArtefact, match=r"holds no calibration: .* is missing"):
        Calibration.load(tmp_path)
    found.save(tmp_path)
    assert Calibration.load(tmp_path).digest == found.digest


def test_what_is_harmed_is_replaced_by_a_save(prepared, tmp_path):
    found = one(prepared, MAXIMUM)
    found.save(tmp_path)
    (tmp_path / "calibration.json").write_text("{")
    found.save(tmp_path)
    assert Calibration.load(tmp_path).digest == found.digest


def test_another_calibration_that_was_to_follow_does_not_excuse_foreign_scales(prepared, tmp_path):
    old, new = one(prepared, MAXIMUM), one(prepared, PERCENTILE)
    old.save(tmp_path / "a")
    foreign = replace(new, scales={site: 2 * scale for site, scale in new.scales.items()})
    foreign.save(tmp_path / "b")
    about = json.loads((tmp_path / "a" / "calibration.json").read_text()) | {"replaced_by": new.described()[0]}
    (tmp_path / "a" / "calibration.json").write_text(json.dumps(about))
    (tmp_path / "a" / "scales.safetensors").write_bytes((tmp_path / "b" / "scales.safetensors").read_bytes())
    with pytest.raises(BadArtefact, match="is not the file that"):
        Calibration.load(tmp_path / "a")


def test_who_loads_beside_one_that_saves_gets_the_old_pair_or_the_new_one(prepared, tmp_path, monkeypatch):
    old, new = one(prepared, MAXIMUM), one(prepared, PERCENTILE)
    old.save(tmp_path)
    read, late = storing.load, []

    def loaded(blob):
        if not late:
            late.append(None)
            new.save(tmp_path)
            blob = (tmp_path / "scales.safetensors").read_bytes()
        return read(blob)

    monkeypatch.setattr(storing, "load", loaded)
    assert Calibration.load(tmp_path).digest == new.digest


# Groups


GROUPED = ModelConfig(
    architecture="mamba2", d_model=16, n_layers=2, vocab_size=50, d_state=4, head_dim=4, n_groups=2, chunk_size=8
)  # E = 32: H = 8 heads of P = 4, four in each SSD group


@pytest.fixture(scope="module")
def in_groups():
    """A reordered model and its groups."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = build(GROUPED).requires_grad_(False)
    plain = prepare(model)
    groups = groups_of(GROUPED, GroupingSpec.parse("2x3"), lambda: channel_statistics(plain, SEQUENCES))
    assert order_digest(groups)  # else this is about nothing
    return SimpleNamespace(prepared=arrange(model, groups, plain), groups=groups)


def grouped(arranged, observer, **changes):
    plan = Quamba2().plan(GROUPED, ObserverSpec.parse(observer), "2x3")
    task = Task(plan, 8, groups=arranged.groups, **changes)
    return calibrate(arranged.prepared, SEQUENCES, {"k": task}, "model")["k"]


def looped(arranged, observer, site):
    """A group after the other, each an observer's own."""
    groups = arranged.groups[int(site.split(".")[1])]
    found, spec = [], ObserverSpec.parse(observer)
    seen = {}

    def watch(name, x):
        if name == site:
            seen.setdefault(name, []).extend(x.float().split(1))
        return x

    with torch.no_grad():
        for batch in SEQUENCES.split(calibration.FORWARD_BATCH):
            arranged.prepared(batch, tap=watch)
    for i in range(groups.n_scales):
        of, one = groups.of_channel == i, spec.build()
        for x in seen[site]:
            if site.endswith("ssm_state"):
                one.update(x.flatten(1, 2)[:, of].transpose(1, 2))  # (1, N, channels)
            else:
                one.update(x.flatten(0, 1)[:, of])
        found.append(one.scale())
    return torch.stack(found).view(*groups.shape, *found[0].shape)


@pytest.mark.parametrize("observer", ["running_max", "running_max[clip_ratio=0.9]", "percentile[alpha=0.9,sigma=0.2]"])
@pytest.mark.parametrize("site", ["layers.0.x_conv_out", "layers.1.x_conv_out", "layers.1.ssm_state"])
def test_groups_at_once_are_a_loop_over_groups(in_groups, observer, site):
    found = grouped(in_groups, observer).scales[site]
    assert torch.equal(found, looped(in_groups, observer, site))
    assert found.shape[:3] == (2, 2, 3)
    assert found.unique().numel() > found.numel() / 2


def test_another_channel_in_a_group_is_noticed(in_groups, monkeypatch):
    expected = looped(in_groups, "percentile[alpha=0.9,sigma=0.2]", "layers.0.x_conv_out")
    right = Groups.of_channel.func
    monkeypatch.setattr(Groups, "of_channel", property(lambda self: right(self).roll(1)))
    assert not torch.equal(
        grouped(in_groups, "percentile[alpha=0.9,sigma=0.2]").scales["layers.0.x_conv_out"], expected
    )


def test_a_finer_maximum_is_no_larger_and_somewhere_as_large(in_groups):
    calibrated = grouped(in_groups, "running_max")
    one = calibrate(in_groups.prepared, SEQUENCES, {"k": Task(Quamba().plan(GROUPED, MAXIMUM, "1x1"), 8)}, "model")["k"]
    for site in ("layers.0.x_conv_out", "layers.1.ssm_state", "layers.0.B_conv_out"):
        assert calibrated.scales[site].numel() > 1
        assert calibrated.scales[site].max() == one.scales[site]


def test_sites_have_the_granularity_of_quamba2(in_groups):
    shapes = {
        site: tuple(s.shape) for site, s in grouped(in_groups, "running_max").scales.items() if "layers.0" in site
    }
    per_tensor = {"in_proj:input", "z", "x_conv_in", "B_conv_in", "C_conv_in", "dt", "out_proj:input"}
    assert {s.removeprefix("layers.0.") for s, shape in shapes.items() if shape == ()} == per_tensor
    assert shapes["layers.0.x_conv_out"] == (2, 2, 3)
    assert shapes["layers.0.ssm_state"] == (2, 2, 3, 4)
    assert shapes["layers.0.B_conv_out"] == shapes["layers.0.C_conv_out"] == (2,)


def test_asymmetric_groups_have_step_and_zero_point(in_groups):
    found = grouped(in_groups, "running_max", symmetric=False)
    assert found.scales["layers.0.x_conv_out"].shape == (2, 2, 2, 3)
    assert found.scales["layers.0.ssm_state"].shape == (2, 2, 2, 3, 4)


def test_groups_are_saved_with_their_scales(in_groups, tmp_path):
    made = grouped(in_groups, "running_max")
    made.save(tmp_path)
    loaded = Calibration.load(tmp_path)
    assert loaded.digest == made.digest
    assert {layer: g.digest for layer, g in loaded.groups.items()} == {l: g.digest for l, g in made.groups.items()}
    other = replace(made, groups={0: made.groups[1], 1: made.groups[0]})
    assert other.digest != made.digest


@pytest.mark.parametrize(
    ("name", "value"),
    [("head_index", torch.tensor([7, 0, 1, 2, 3, 4, 5, 6])), ("head_sizes", torch.ones(3, 1, dtype=torch.int64)),
     ("head_sizes", torch.zeros(0, dtype=torch.int64)), ("dim_sizes", torch.ones(2, 2, 3))],
)  # fmt: skip
def test_groups_that_do_not_fit_together_are_one_clear_line(in_groups, tmp_path, name, value):
    grouped(in_groups, "running_max").save(tmp_path)
    arrays = load_file(tmp_path / "scales.safetensors")
    arrays[f"groups.0.{name}"] = value
    save_file(arrays, tmp_path / "scales.safetensors")
    with pytest.raises(BadArtefact, match="corrupt calibration") as caught:
        Calibration.load(tmp_path)
    assert "\n" not in str(caught.value)


def test_the_order_of_channels_follows_the_loudness_and_not_the_last_bit(in_groups):
    """What another machine's sums differ by must not decide which channel comes first."""
    statistics = channel_statistics(in_groups.prepared, SEQUENCES)
    for s in statistics.values():
        for kept in (s.mean_abs, s.amax, s.energy):
            assert torch.equal(arranging._kept(kept * (1 + 1e-15)), kept)


def test_statistics_are_their_definition(in_groups):
    seen = {}

    def watch(site, x):
        if site.endswith("x_conv_out"):
            seen.setdefault(int(site.split(".")[1]), []).append(x.float().double())
        return x

    with torch.no_grad():
        for row in SEQUENCES:
            in_groups.prepared(row[None], tap=watch)
    for layer, s in channel_statistics(in_groups.prepared, SEQUENCES).items():
        x = torch.cat(seen[layer])  # (S, L, E)
        near = {"rtol": 2.0**-16, "atol": 0.0}  # what is kept of a statistic
        torch.testing.assert_close(s.mean_abs, x.abs().mean(1).amax(0), **near)
        torch.testing.assert_close(s.energy, x.square().mean((0, 1)), **near)
        torch.testing.assert_close(s.amax, x.abs().amax((0, 1)), **near)


def test_a_value_that_is_not_finite_names_the_site_before_any_cluster(in_groups):
    broken = copy.deepcopy(in_groups.prepared)
    with torch.no_grad():
        broken.blocks[1].mixer.conv1d.weight[3] = torch.nan
    with pytest.raises(NonFinite, match=r"layers\.1\.x_conv_out: 1 of 32 channels"):
        channel_statistics(broken, SEQUENCES)


def test_a_mamba_model_has_nothing_to_group():
    with pytest.raises(BadParameter, match=r"4x4 groups heads, and a Mamba model has none: take channel"):
        groups_of(CONFIGS["mamba"], GroupingSpec.parse("4x4"), dict)
