"""The contract that every grouping meets: Groups for each layer, of this model, the same every time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import cycle
from typing import ClassVar

import pytest
import torch

from quambench.core.errors import BadParameter
from quambench.grouping import GROUPINGS, ChannelStatistics, GroupingSpec, Groups
from quambench.grouping.clustered import Clustered, PerHead
from quambench.models import ModelConfig

SHAPES = {  # H = 4 heads of 4 channels, two heads in each SSD group; and odd numbers
    "even": dict(d_model=8, head_dim=4, n_groups=2),
    "odd": dict(d_model=21, head_dim=7, n_groups=1),
}
CONFIGS = {
    name: ModelConfig(architecture="mamba2", n_layers=3, vocab_size=8, d_state=3, **shape)
    for name, shape in SHAPES.items()
}
ONE_CHANNEL = ModelConfig(
    architecture="mamba2", d_model=1, n_layers=1, vocab_size=8, d_state=3, head_dim=2, n_groups=1
)  # a single head of two channels
BY_NUMBERS = {"clustered": ("1x1", "2x2")}
TEXTS = [text for name in GROUPINGS for text in BY_NUMBERS.get(name, (name,))]


def statistics(config, silent=()):
    """Loud and quiet channels; layers in `silent` have no value but 0."""
    found = {}
    for layer in range(config.n_layers):
        chance = torch.Generator().manual_seed(layer)
        mean_abs = torch.randn(config.d_inner, generator=chance, dtype=torch.float64).exp() * (layer not in silent)
        found[layer] = ChannelStatistics(mean_abs, 3 * mean_abs, 1.5 * mean_abs.square())
    return found


def grouped(grouping, config, silent=()):
    """Groups by layer, from the statistics where the grouping looks at them."""
    return grouping.groups(statistics(config, silent) if grouping.looks else {}, config)


def check_each_layer_has_groups(grouping, config, silent=()):
    name, found = type(grouping).__name__, grouped(grouping, config, silent)
    layers = list(range(config.n_layers))
    assert sorted(found) == layers, f"{name}: return a Groups for each of the layers {layers} (got {sorted(found)})"
    wanted = config.n_groups, config.n_heads, config.d_inner
    for layer, groups in found.items():
        assert isinstance(groups, Groups), f"{name}: return Groups for layer {layer} (got {type(groups).__name__})"
        got = len(groups.head_sizes), len(groups.head_index), len(groups.channel_index)
        assert got == wanted, (
            f"{name}: build the Groups of layer {layer} for (SSD groups, heads, channels) = {wanted} (got {got})"
        )


def check_silent_layers_have_groups(grouping, config):
    """A layer that calibration never woke is no reason to fail."""
    for silent in ((0,), range(config.n_layers)):
        try:
            check_each_layer_has_groups(grouping, config, silent)
        except (ArithmeticError, ValueError) as error:
            reason = str(error).replace("\n", " ")
        else:
            reason = ""
        assert not reason, f"{type(grouping).__name__}: group a layer of zeros as well (got: {reason})"


def check_statistics_are_left_alone(grouping, config):
    given, before = statistics(config), statistics(config)
    grouping.groups(given, config)
    for layer, kept in before.items():
        same = all(torch.equal(getattr(kept, f), getattr(given[layer], f)) for f in ("mean_abs", "amax", "energy"))
        assert same, f"{type(grouping).__name__}: copy the statistics before changing them (layer {layer} was changed)"


def check_twice_is_the_same(grouping, config):
    name, chance = type(grouping).__name__, torch.random.get_rng_state()
    one, other = grouped(grouping, config), grouped(grouping, config)
    same = all(one[layer].digest == other[layer].digest for layer in one)
    assert same, f"{name}: give equal Groups for equal statistics; seed whatever draws"
    untouched = torch.equal(torch.random.get_rng_state(), chance)
    assert untouched, f"{name}: draw from a torch.Generator of your own, not from torch's stream"


def check_looking_is_said(grouping, config):
    """Without statistics, or with a look at them, but not between."""
    if grouping.looks:
        return
    try:
        found = grouping.groups({}, config)
    except LookupError:
        found = {}
    name = type(grouping).__name__
    assert len(found) == config.n_layers, f"{name}: it reads statistics, so set looks to True"
    assert all(g.keeps_order for g in found.values()), f"{name}: keep the order of channels, or set looks to True"


def check_too_small_a_model_is_refused_in_one_line(grouping, config=ONE_CHANNEL):
    try:
        grouped(grouping, config)
    except Exception as error:
        refusal = error
    else:
        return check_each_layer_has_groups(grouping, config)
    plain = isinstance(refusal, BadParameter) and "\n" not in str(refusal)
    assert plain, (
        f"{type(grouping).__name__}: raise BadParameter, with one line, where the model has too few heads or channels"
        f" (got {type(refusal).__name__})"
    )


RULES = [
    check_each_layer_has_groups,
    check_silent_layers_have_groups,
    check_statistics_are_left_alone,
    check_twice_is_the_same,
    check_looking_is_said,
]


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
@pytest.mark.parametrize("text", TEXTS)
def test_contract(text, rule, config):
    rule(GroupingSpec.parse(text).build(), config)


@pytest.mark.parametrize("text", TEXTS)
def test_too_small_a_model_is_refused_in_one_line(text):
    check_too_small_a_model_is_refused_in_one_line(GroupingSpec.parse(text).build())


# Faults, one for each rule


class ForgetsALayer(PerHead):
    def groups(self, statistics, config):
        return dict(list(super().groups(statistics, config).items())[1:])


class OfAnotherModel(PerHead):
    def groups(self, statistics, config):
        return super().groups(statistics, ONE_CHANNEL) | dict.fromkeys((1, 2), super().groups({}, ONE_CHANNEL)[0])


class FailsOnSilence(PerHead):
    looks = True

    def groups(self, statistics, config):
        if not statistics[0].energy.any():
            raise ZeroDivisionError("no energy")
        return super().groups(statistics, config)


@dataclass(frozen=True)
class Writes(Clustered):
    def groups(self, statistics, config):
        statistics[1].amax.mul_(2)
        return super().groups(statistics, config)


class Alternates(PerHead):
    turns: ClassVar[Iterator[bool]] = cycle((True, False))

    def n_dim_groups(self, config):
        return 1 if next(self.turns) else config.head_dim


class Draws(PerHead):
    def groups(self, statistics, config):
        torch.rand(1)
        return super().groups(statistics, config)


class LooksInSecret(PerHead):
    def groups(self, statistics, config):
        return super().groups(statistics, config) if statistics[0].energy.any() else {}


@dataclass(frozen=True)
class MovesInSecret(Clustered):
    looks = False

    def groups(self, given, config):
        return Clustered(2, 2).groups(statistics(config), config)


class Crashes(PerHead):
    def groups(self, statistics, config):
        return super().groups(statistics, config) if config.n_heads > 1 else {0: 1 // 0}


@pytest.mark.parametrize(
    ("fault", "caught_by", "says"),
    [
        (ForgetsALayer(), check_each_layer_has_groups, "return a Groups for each of the layers [0, 1, 2]"),
        (OfAnotherModel(), check_each_layer_has_groups, "(SSD groups, heads, channels) = (2, 4, 16) (got (1, 1, 2))"),
        (FailsOnSilence(), check_silent_layers_have_groups, "group a layer of zeros as well (got: no energy)"),
        (Writes(2, 2), check_statistics_are_left_alone, "copy the statistics before changing them"),
        (Alternates(), check_twice_is_the_same, "seed whatever draws"),
        (Draws(), check_twice_is_the_same, "draw from a torch.Generator of your own"),
        (LooksInSecret(), check_looking_is_said, "it reads statistics, so set looks to True"),
        (MovesInSecret(2, 2), check_looking_is_said, "keep the order of channels, or set looks to True"),
        (Crashes(), check_too_small_a_model_is_refused_in_one_line, "raise BadParameter, with one line, where"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, PerHead | Clustered) else "",
)
def test_the_contract_catches(fault, caught_by, says, rejected):
    small = caught_by is check_too_small_a_model_is_refused_in_one_line
    with rejected(says):
        caught_by(fault, ONE_CHANNEL if small else CONFIGS["even"])
