"""More groups where they pay."""

from __future__ import annotations

import pytest
import torch

from quambench.core.errors import BadParameter
from quambench.grouping import ChannelStatistics, GroupingSpec
from quambench.grouping.adaptive import expected_error
from quambench.grouping.groups import in_order
from quambench.models import ModelConfig

CONFIG = ModelConfig(architecture="mamba2", d_model=64, n_layers=3, vocab_size=8, d_state=3, head_dim=8, n_groups=2)


def layer(seed, spread=1.0, loudness=1.0):
    g = torch.Generator().manual_seed(seed)
    mean_abs = loudness * (spread * torch.randn(128, generator=g, dtype=torch.float64)).exp()
    return ChannelStatistics(mean_abs, 3 * mean_abs, 1.5 * mean_abs.square())


def numbers(text, layers):
    found = GroupingSpec.parse(text).build().groups(dict(enumerate(layers)), CONFIG)
    return [groups.shape[1:] for groups in found.values()]


def test_the_expected_error_by_hand():
    config = ModelConfig(architecture="mamba2", d_model=2, n_layers=1, vocab_size=8, d_state=3, head_dim=2)
    amax = torch.tensor([1.0, 2, 3, 4], dtype=torch.float64)
    s = ChannelStatistics(amax, amax, torch.full((4,), 0.5, dtype=torch.float64))
    assert expected_error(in_order(config, 1, 1), s) == 4 * 16 / 2
    assert expected_error(in_order(config, 2, 1), s) == (2 * 4 + 2 * 16) / 2
    assert expected_error(in_order(config, 2, 2), s) == (1 + 4 + 9 + 16) / 2


@pytest.mark.parametrize("base", [1, 2, 4])
def test_a_budget_is_kept_and_spent_where_the_error_is(base):
    found = numbers(f"adaptive[base={base}]", [layer(0, 0.0), layer(1, 0.3), layer(2, 2.0)])
    assert sum(h * d for h, d in found) <= 3 * base**2
    sizes = [h * d for h, d in found]
    assert sizes[0] == 1  # a flat layer gains nothing
    assert sizes == sorted(sizes)


@pytest.mark.parametrize("where", [0, 1, 2])
def test_a_layer_without_any_value_takes_nothing(where):
    layers = [layer(0), layer(1), layer(2)]
    layers[where] = ChannelStatistics(*torch.zeros(3, 128, dtype=torch.float64))
    found = numbers("adaptive[base=2]", layers)
    assert found[where] == (1, 1)
    assert sum(h * d for h, d in found) <= 3 * 2**2


def test_a_budget_for_all_spends_on_all():
    assert numbers("adaptive[base=16]", [layer(i) for i in range(3)]) == [(8, 8)] * 3


def test_the_guides_rule_goes_by_variance():
    layers = [layer(0, loudness=1.0), layer(0, loudness=1.6), layer(0, loudness=0.5)]
    assert numbers("adaptive[rule=variance,base=2]", layers) == [(2, 2), (4, 4), (1, 1)]
    assert numbers("adaptive[rule=variance,base=8]", layers) == [(8, 8), (8, 8), (4, 4)]  # no more than there are


@pytest.mark.parametrize("text", ["adaptive[rule=best]", "adaptive[base=3]", "adaptive[method=x]", "adaptive[n=2]"])
def test_what_makes_no_sense_is_refused_in_one_line(text):
    with pytest.raises(BadParameter) as caught:
        GroupingSpec.parse(text)
    assert "\n" not in str(caught.value)
