"""What watching costs, as ratios measured in one run: an observer's update against a plain pass for amax.

Never a time against a stored one. What is compared runs in turn, and each side counts by its fastest
round; a limit is exceeded only if a second measurement exceeds it too.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest
import torch

from quambench.calibration.collect import Task, calibrate
from quambench.grids.granularity import layout
from quambench.grouping import ChannelStatistics, GroupingSpec
from quambench.grouping.groups import in_order
from quambench.int8.fuse import prepare
from quambench.models import ModelConfig
from quambench.models.checkpoint import load_checkpoint
from quambench.observers import OBSERVERS, ObserverSpec
from quambench.policy.quamba import Quamba
from quambench.policy.quamba2 import Quamba2

ROUNDS = 7
SEQUENCES, LENGTH = 16, 128
ALPHAS = [1 - 10**-e * m for e in (2, 3, 4, 5) for m in (5, 2, 1)]  # twelve, 0.95 to 0.99999


@pytest.fixture(scope="module")
def batch() -> torch.Tensor:
    """4 M values in 512 channels of different size, as an activation has them."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(8192, 512, generator=generator) * (0.1 + 3 * torch.rand(512, generator=generator))


@pytest.fixture(scope="module")
def model():
    return prepare(load_checkpoint("mamba2-tiny").model)


def fastest(*calls: Callable[[], object], rounds: int = ROUNDS) -> list[float]:
    """Seconds of each call's fastest round, the calls taking turns."""
    best = [float("inf")] * len(calls)
    for _ in range(rounds):
        for i, call in enumerate(calls):
            began = time.perf_counter()
            call()
            best[i] = min(best[i], time.perf_counter() - began)
    return best


def ratio(call: Callable[[], object], reference: Callable[[], object], limit: float, rounds: int = ROUNDS) -> float:
    """call's time over reference's; measured again where it exceeds the limit."""
    for _ in range(2):
        taken, plain = fastest(call, reference, rounds=rounds)
        if taken / plain <= limit:
            break
    return taken / plain


def updating(spec: str, x: torch.Tensor) -> Callable[[], object]:
    observer = ObserverSpec.parse(spec).build()
    return lambda: observer.update(x)


@pytest.mark.parametrize("name", OBSERVERS)
def test_an_update_costs_at_most_thirty_passes_for_amax(name, batch, benchmark, told):
    limit = 4 if name == "percentile" else 30
    update = updating(name, batch)
    found = ratio(update, lambda: batch.abs().amax(), limit)
    told(f"{name}: update", found, "x.abs().amax()", limit)
    benchmark.pedantic(update, rounds=3)
    assert found <= limit, f"{name}: {found:.1f} times x.abs().amax(), of {batch.numel():,} values"


def test_a_percentile_is_ten_times_as_fast_as_torch_quantile(batch, benchmark, told):
    flat, update = batch.flatten(), updating("percentile", batch)
    found = ratio(update, lambda: flat.abs().quantile(0.9995), 1 / 10, rounds=3)
    told("percentile: update", found, "x.abs().quantile(0.9995)", 1 / 10)
    benchmark.pedantic(update, rounds=3)
    assert found <= 1 / 10, f"{1 / found:.1f} times as fast"


def calibrating(model, specs: list[str]) -> Callable[[], object]:
    tokens = torch.randint(model.config.vocab_size, (SEQUENCES, LENGTH), generator=torch.Generator().manual_seed(1))
    tasks = {spec: Task(Quamba().plan(model.config, ObserverSpec.parse(spec), "1x1"), 8) for spec in specs}
    return lambda: calibrate(model, tokens, tasks, "model")


def test_twelve_percentiles_share_one_calibration(model, benchmark, told):
    twelve = calibrating(model, [f"percentile[alpha={alpha!r}]" for alpha in ALPHAS])
    found = ratio(twelve, calibrating(model, ["percentile"]), 1.5, rounds=3)
    told("calibration with twelve percentiles", found, "calibration with one", 1.5)
    benchmark.pedantic(twelve, rounds=1)
    assert found <= 1.5, f"{found:.2f} times a calibration with one percentile"


def test_the_whole_registry_at_once(model, benchmark, told):
    """Reported, not limited: what all observers together add to a calibration with one."""
    everything = calibrating(model, list(OBSERVERS))
    taken, one = fastest(everything, calibrating(model, ["running_max"]), rounds=2)
    told("calibration with every observer", taken / one, "calibration with running_max")
    benchmark.pedantic(everything, rounds=1)


HEADS, HEAD_DIM, SSD_GROUPS = 128, 64, 8  # Mamba2-8b's; 16 heads in each SSD group


@pytest.mark.parametrize("side", [1, 2, 4, 8, 16])
def test_a_scale_per_group_costs_what_a_scale_per_channel_does(side, benchmark, told):
    """At any number of groups: one pass per channel, then the largest of each group by its index."""
    sizes = dict(d_model=4096, n_layers=1, vocab_size=8, d_state=128, head_dim=HEAD_DIM, n_groups=SSD_GROUPS)
    config = ModelConfig(architecture="mamba2", **sizes)
    x = torch.randn(1, 512, HEADS * HEAD_DIM, generator=torch.Generator().manual_seed(0))
    groups = in_order(config, side, side)
    observer, per_channel = ObserverSpec("running_max").build(), layout("channel", "x_conv_out", config)

    def update() -> None:
        observer.update(per_channel.lay_out(x)[0])
        groups.largest(observer.scale())

    found = ratio(update, lambda: x.abs().amax(dim=(0, 1)), 1.5)
    told(f"running_max: update and scales, {side}×{side} groups", found, "x.abs().amax() per channel", 1.5)
    benchmark.pedantic(update, rounds=3)
    assert found <= 1.5, f"{found:.2f} times a plain pass per channel"


@pytest.mark.parametrize(
    ("observer", "grouping"),
    [(o, g) for o in ("running_max", "percentile") for g in ("4x4", "8x8", "channel")] + [("mse", "4x4")],
)
def test_what_groups_add_to_a_calibration(observer, grouping, model, benchmark, told):
    """Reported, not limited: x_conv_out and the state in groups, against one scale for each of the two.

    Of few sequences, so that what is paid once, mse's search for every scale, weighs more than in use.
    """
    c, spec = model.config, ObserverSpec.parse(observer)
    tokens = torch.randint(c.vocab_size, (SEQUENCES, LENGTH), generator=torch.Generator().manual_seed(1))

    def calibration(numbers: str) -> Callable[[], object]:
        statistics = {i: channels_of(c, i) for i in range(c.n_layers)}
        groups = GroupingSpec.parse(numbers).build().groups(statistics, c)
        task = Task(Quamba2().plan(c, spec, numbers), 8, groups=groups)
        return lambda: calibrate(model, tokens, {"": task}, "model")

    in_groups = calibration(grouping)
    taken, plain = fastest(in_groups, calibration("1x1"), rounds=2)
    told(f"calibration with {observer}, {grouping}", taken / plain, "the same, 1×1")
    benchmark.pedantic(in_groups, rounds=1)


def channels_of(config: ModelConfig, seed: int) -> ChannelStatistics:
    """Of different loudness, as trained models have them."""
    generator = torch.Generator().manual_seed(seed)
    mean_abs = torch.randn(config.d_inner, generator=generator, dtype=torch.float64).exp()
    return ChannelStatistics(mean_abs, 4 * mean_abs, mean_abs.square())


def test_the_clusters_of_a_130m_model_take_seconds(benchmark, told):
    """24 layers, 24 heads of 64 channels, 4x4 groups. The guide says two to five minutes."""
    config = ModelConfig(architecture="mamba2", d_model=768, n_layers=24, vocab_size=8, d_state=128, head_dim=HEAD_DIM)
    statistics = {i: channels_of(config, i) for i in range(config.n_layers)}
    grouping = GroupingSpec.parse("4x4").build()
    (taken,) = fastest(lambda: grouping.groups(statistics, config), rounds=2)
    told("clusters of 24 layers, seconds", taken, "one second", 10)
    benchmark.pedantic(lambda: grouping.groups(statistics, config), rounds=1)
    assert taken <= 10, f"{taken:.1f} seconds: minutes, for a deeper model"
