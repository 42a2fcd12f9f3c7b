"""Groupings from outside: Quamba's function, put behind ours; refused in one line; told apart by their source."""

from __future__ import annotations

import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.cluster import AgglomerativeClustering

from quambench.case import Case
from quambench.core import plugins
from quambench.core.errors import BadParameter, OutsideFailed, UnknownName
from quambench.core.provenance import provenance
from quambench.grouping import ChannelStatistics, GroupingSpec
from quambench.grouping.cluster import cluster
from quambench.grouping.outside import FromOutside, adapted, checked_groups
from quambench.models import ModelConfig

CONFIG = ModelConfig(
    architecture="mamba2", d_model=16, n_layers=2, vocab_size=8, d_state=3, head_dim=8, n_groups=2
)  # H = 4 heads of P = 8, two in each SSD group


def in_halves(tensor, headdim, ssd_ngroups, group_heads=False, nhead_groups=4, ndim_groups=4):
    """Channels sorted, heads turned round in each SSD group, groups of equal sizes."""
    assert group_heads is True
    assert tensor.dtype == torch.float32
    assert isinstance(nhead_groups, int)
    order = tensor.view(ssd_ngroups, -1, headdim).argsort(-1)
    heads = torch.arange(tensor.numel() // headdim).view(ssd_ngroups, -1).flip(1)
    channels = torch.stack([headdim * g + order.flatten(0, 1)[g] for g in heads.flatten()])
    sizes = torch.full((ssd_ngroups, nhead_groups), heads.shape[1] // nhead_groups, dtype=torch.int32)
    dims = torch.full((ssd_ngroups, nhead_groups, ndim_groups), headdim // ndim_groups, dtype=torch.int32)
    return channels.flatten(), sizes, heads.flatten(), dims


def lacking(tensor, headdim, ssd_ngroups):
    """Without what Quamba's has."""


class NoFunction:
    """A class."""


HERE = "quambench_theirs"


@pytest.fixture(autouse=True)
def importable(monkeypatch):
    """This module under a name that can be imported, and no source noted."""
    import sys

    monkeypatch.setitem(sys.modules, HERE, sys.modules[__name__])
    monkeypatch.setattr(plugins, "_sources", {})


def statistics(seed):
    g = torch.Generator().manual_seed(seed)
    mean_abs = torch.randn(CONFIG.d_inner, generator=g, dtype=torch.float64).exp().float().double()
    return ChannelStatistics(mean_abs, 4 * mean_abs, mean_abs.square())


def test_what_the_function_says_is_what_is_grouped():
    spec = GroupingSpec.parse(f"{HERE}:in_halves[nhead_groups=2,ndim_groups=2]")
    found = spec.build().groups({0: statistics(0), 1: statistics(1)}, CONFIG)
    for layer in (0, 1):
        groups = found[layer]
        assert groups.head_index.tolist() == [1, 0, 3, 2]
        assert groups.shape == (2, 2, 2)
        moved = statistics(layer).mean_abs[groups.channel_index].view(4, 8)
        assert (moved.diff(dim=-1) >= 0).all()  # each head's channels ascend
        assert groups.channel_index[:8].sort().values.tolist() == list(range(8, 16))  # of the second head


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([(1, 1), (2, 2), (2, 4), (1, 8)]))
def test_our_own_clustering_through_quambas_signature_is_our_own_clustering(seed, numbers):
    def ours(tensor, headdim, ssd_ngroups, group_heads=False, nhead_groups=4, ndim_groups=4):
        mean_abs = tensor.double()
        of = ChannelStatistics(mean_abs, mean_abs, mean_abs)
        g = cluster(of, CONFIG, nhead_groups, ndim_groups, "kmeans")
        return g.channel_index, g.head_sizes.int(), g.head_index, g.dim_sizes.int()

    grouping = adapted("ours", ours)(*numbers)
    found, wanted = (
        grouping.groups({0: statistics(seed)}, CONFIG)[0],
        cluster(statistics(seed), CONFIG, *numbers, "kmeans"),
    )
    assert found.digest == wanted.digest


def test_a_case_names_it_and_provenance_tells_its_source():
    case = Case.parse("m", f"running_max/{HERE}:in_halves[ndim_groups=2]/quamba2")
    assert case.id == f"m/running_max/{HERE}:in_halves[ndim_groups=2]/quamba2"
    assert case.settings()["grouping"] == f"{HERE}:in_halves[ndim_groups=2.0,nhead_groups=4]"
    assert re.fullmatch("[0-9a-f]{16}", provenance()["groupings"][f"{HERE}:in_halves"])


def test_an_installed_package_gives_a_name(monkeypatch):
    monkeypatch.setattr(plugins, "installed", lambda kind: {"theirs": f"{HERE}:in_halves"})
    assert Case.parse("m", "running_max/theirs").grouping == "theirs"
    assert issubclass(GroupingSpec.parse("theirs").found(), FromOutside)


@pytest.mark.parametrize(
    ("spec", "error", "says"),
    [
        (f"{HERE}:in_thirds", UnknownName, "no function in .* named 'in_thirds'. Did you mean 'in_halves'"),
        (f"{HERE}:lacking", BadParameter, "it lacks group_heads, nhead_groups, ndim_groups"),
        ("math:hypot", BadParameter, "it lacks tensor"),
        (f"{HERE}:NoFunction", BadParameter, "must be a function .got type."),
        ("not_there:f", BadParameter, "grouping not_there:f: 'not_there' cannot be imported"),
        (f"{HERE}:in_halves[ndim_groups=0]", BadParameter, "ndim_groups must be a whole number, 1 or more"),
        (f"{HERE}:in_halves[ndim_groups=1.5]", BadParameter, "ndim_groups must be a whole number, 1 or more"),
    ],
)
def test_what_is_no_grouping_is_refused_in_one_line(spec, error, says):
    with pytest.raises(error, match=says) as refused:
        GroupingSpec.parse(spec)
    assert "\n" not in str(refused.value)


GOOD = in_halves(torch.arange(32.0), 8, 2, True, 2, 2)


def replaced(i, value):
    return tuple(value if j == i else array for j, array in enumerate(GOOD))


@pytest.mark.parametrize(
    ("found", "says"),
    [
        (GOOD[0], "must return channel_index, head_groups, head_index, dim_groups .got Tensor"),
        (GOOD[:3], "got 3 things"),
        (replaced(0, GOOD[0].float()), "channel_index must be whole numbers"),
        (replaced(0, GOOD[0].roll(1)), "permutation"),
        (replaced(1, GOOD[1] + 1), "add up"),
        (replaced(2, torch.zeros(4, dtype=torch.int64)), "permutation"),
        (replaced(2, GOOD[2].roll(2)), "permutation"),  # heads that leave their SSD group
        (replaced(3, torch.empty(0, dtype=torch.int32)), "do not fit together"),  # as with group_heads=False
        (replaced(3, object()), "must be arrays of whole numbers"),
    ],
)
def test_what_it_returns_is_checked_and_the_layer_named(found, says):
    with pytest.raises(BadParameter, match=says) as refused:
        checked_groups("theirs: layer 3", found)
    assert str(refused.value).startswith("theirs: layer 3: ")
    assert "\n" not in str(refused.value)


def of_other_size(tensor, headdim, ssd_ngroups, group_heads=False, nhead_groups=4, ndim_groups=4):
    """Sound in itself: of one SSD group, where the model has two."""
    return in_halves(tensor, headdim, 1, group_heads, nhead_groups, ndim_groups)


def of_fewer_heads(tensor, headdim, ssd_ngroups, group_heads=False, nhead_groups=4, ndim_groups=4):
    return in_halves(tensor[: len(tensor) // 2], headdim, ssd_ngroups, group_heads, nhead_groups, ndim_groups)


@pytest.mark.parametrize(("function", "got"), [(of_other_size, "1, 4, 32"), (of_fewer_heads, "2, 2, 16")])
def test_what_fits_another_model_is_refused(function, got):
    numbers = (2, 2) if function is of_other_size else (1, 2)
    with pytest.raises(BadParameter, match=rf"layer 1: must be of 2 SSD groups, 4 heads, 32 channels .got {got}"):
        adapted("theirs", function)(*numbers).groups({1: statistics(0)}, CONFIG)


def test_no_package_takes_our_own_names(monkeypatch):
    monkeypatch.setattr(
        plugins, "installed", lambda kind: dict.fromkeys(("adaptive", "quamba2", "gptq"), f"{HERE}:in_halves")
    )
    assert not issubclass(GroupingSpec.parse("adaptive").found(), FromOutside)
    case = Case.parse("m", "running_max/4x4/quamba2/w4a8/gptq")
    assert (case.grouping, case.policy.name, case.weights.gptq) == ("4x4", "quamba2", True)


def test_lists_are_arrays_too():
    assert checked_groups("theirs", [a.tolist() for a in GOOD]).digest == checked_groups("theirs", GOOD).digest


def test_what_the_function_raises_is_one_line_that_says_where():
    def fails(tensor, headdim, ssd_ngroups, group_heads=False, nhead_groups=4, ndim_groups=4):
        AgglomerativeClustering(n_clusters=99).fit(tensor.view(-1, headdim).numpy())

    with pytest.raises(OutsideFailed, match=r"^fails in layer 0 failed at \w+\.py:\d+: ValueError: .*99") as error:
        adapted("fails", fails)().groups({0: statistics(0)}, CONFIG)
    assert isinstance(error.value.__cause__, ValueError)
