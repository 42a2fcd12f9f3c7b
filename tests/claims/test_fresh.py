"""What is measured afresh, on a model of three small layers, against the parts of quambench that say the same."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from quambench.calibration.collect import Task, calibrate
from quambench.case import Case
from quambench.claims import fresh as module
from quambench.claims.fresh import ALPHA, SEQUENCES, Fresh
from quambench.data.corpus import load_corpus
from quambench.data.tokenizer import Tokenizer
from quambench.models import ModelConfig, build
from quambench.models.checkpoint import save_checkpoint
from quambench.observers import ObserverSpec


@pytest.fixture(scope="module")
def fresh(tmp_path_factory) -> Fresh:
    folder = tmp_path_factory.mktemp("models") / "three-layers"
    with torch.random.fork_rng():
        torch.manual_seed(0)
        shape = dict(architecture="mamba", d_model=8, n_layers=3, vocab_size=300, d_state=4, dt_rank=2)
        made = build(ModelConfig(**shape)).requires_grad_(False)
    for block in made.blocks:
        block.mixer.x_proj.weight.mul_(6.0)  # a state that counts
    save_checkpoint(folder, made, torch.float32)
    texts = [d.text[:20_000] for d in load_corpus(None).part("calibration")]
    Tokenizer.train(texts, 300).save(folder / "tokenizer.json")
    return Fresh(str(folder))


def calibrated(fresh: Fresh, part: str, spec: str) -> dict[str, torch.Tensor]:
    case = Case.parse("three-layers", spec)
    plan = case.policy.build().plan(fresh.checkpoint.config, case.observer, case.grouping)
    made = calibrate(fresh.prepared, fresh.sequences(part), {0: Task(plan, 8)}, fresh.checkpoint.digest)[0]
    return dict(made.scales)


@pytest.mark.parametrize(("part", "attribute"), [("calibration", "seen"), ("test", "seen_at_runtime")])
def test_the_largest_values_are_those_that_a_running_maximum_sees(fresh, part, attribute):
    seen = getattr(fresh, attribute)
    for site, scale in calibrated(fresh, part, "running_max").items():
        assert seen.largest[site].shape == (SEQUENCES,)
        largest = seen.largest[site].max().clamp(min=1e-5)  # running_max's floor
        assert torch.equal((largest / 127).float().clamp(min=1e-6), scale), site


def test_the_recurrence_over_the_quantiles_in_order_is_the_observer(fresh):
    scales = calibrated(fresh, "calibration", f"percentile[alpha={ALPHA},sigma=0.3]")
    assert len(fresh.seen.quantile) == 6
    for site, quantiles in fresh.seen.quantile.items():
        average = quantiles[0]
        for newest in quantiles[1:]:
            average = average + 0.3 * (newest - average)
        assert torch.equal((average / 127).float().clamp(min=1e-6), scales[site]), site


def test_layers_are_weighed_group_by_group(fresh):
    costs = fresh.layer_costs
    assert costs.alone.shape == costs.without.shape == (module.GROUPS, 3)
    assert (costs.alone > 0).all()
    assert (costs.every > costs.alone.max(1).values / 2).all()
    assert set(costs.sites) == set(fresh.seen.largest)
    first_groups = costs.every[0] - costs.without[0]
    assert not torch.equal(first_groups, costs.every[1] - costs.without[1])  # other windows


def test_seconds_follow_from_two_short_runs(fresh, monkeypatch):
    order = []

    def clocked(work):
        spec, sequences = str(work.args[0].observer), work.args[1]
        order.append((spec, len(sequences)))
        return 2.0 + 0.5 * len(sequences)

    monkeypatch.setattr(module, "_cpu_seconds", clocked)
    again = Fresh(fresh.given)
    assert all(seconds.tolist() == [2.0 + 0.5 * 256] * module.REPEATS for seconds in again.times.values())
    assert set(again.times) == set(module.TIMED)
    one_round = len(module.TIMED) * 2
    assert order[:one_round] == order[one_round : 2 * one_round]  # in turn, so that a slow minute meets all
    assert {spec for spec, _ in order} == {str(ObserverSpec.parse(s.split("/")[0])) for s in module.TIMED}


def test_groups_are_found_before_they_are_calibrated(monkeypatch):
    """Of Mamba2 alone: the time is of clusters, too."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = ModelConfig(
            architecture="mamba2", d_model=128, n_layers=1, vocab_size=300, d_state=4, head_dim=16, chunk_size=8
        )  # 16 heads of 16 channels: the finest that are timed
        model = build(config).requires_grad_(False)
    one = Fresh("unread")
    one.__dict__["checkpoint"] = SimpleNamespace(model=model, config=config, digest="d", name="m")
    tokens = torch.randint(300, (3, 16), generator=torch.Generator().manual_seed(0))
    made = one._calibrate(one._case("running_max/2x2/quamba2"), tokens)
    assert made.groups[0].shape == (1, 2, 2)
    assert not made.groups[0].keeps_order
    assert made.scales["layers.0.x_conv_out"].shape == (1, 2, 2)
    monkeypatch.setattr(one, "sequences", lambda part: tokens)
    monkeypatch.setattr(module, "_cpu_seconds", lambda work: 1.0)
    assert set(one.times) == {*module.TIMED, *module.TIMED_IN_GROUPS.values()}
    one.checkpoint.config = replace(config, head_dim=4)
    assert one._timed_in_groups == ["running_max/2x2/quamba2", "running_max/4x4/quamba2"]


def test_training_is_run_and_timed(fresh, monkeypatch):
    done = []
    monkeypatch.setattr(module, "_cpu_seconds", lambda work: done.append(work()) or 7.0)
    monkeypatch.setattr(module.RefinementSpec, "parse", _Refinement)
    assert Fresh(fresh.given).learning_seconds == 7.0
    assert done == ["learned"]


class _Refinement:
    """Stands for one: says what it was asked for."""

    def __init__(self, name: str) -> None:
        self.name = name

    def build(self):
        return self

    def refine(self, prepared, quantized, start, sequences, progress):
        assert len(sequences) == SEQUENCES
        return self.name
