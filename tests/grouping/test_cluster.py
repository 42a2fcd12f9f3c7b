"""The two-level clustering: by hand, its stated rules, and dynamic programming against trying every cut."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from threadpoolctl import threadpool_info, threadpool_limits

from quambench.core.errors import BadParameter
from quambench.grouping import ChannelStatistics, GroupingSpec
from quambench.grouping.adaptive import expected_error
from quambench.grouping.cluster import METHODS, by_dynamic_programming, by_first, by_k_means, cluster, halved, runs_of
from quambench.models import ModelConfig

CONFIG = ModelConfig(
    architecture="mamba2", d_model=16, n_layers=3, vocab_size=8, d_state=3, head_dim=8, n_groups=2
)  # E = 32: H = 4 heads of P = 8, two in each SSD group
WIDE = ModelConfig(
    architecture="mamba2", d_model=64, n_layers=3, vocab_size=8, d_state=3, head_dim=8, n_groups=2
)  # E = 128: H = 16 heads of P = 8, eight in each SSD group


def statistics(mean_abs, amax=None):
    mean_abs = torch.as_tensor(mean_abs, dtype=torch.float64).flatten()
    amax = 4 * mean_abs if amax is None else amax
    return ChannelStatistics(mean_abs, amax, mean_abs.square())


def random_statistics(seed, config=WIDE):
    """As trained models have them: heads of different loudness, some loud channels."""
    g = torch.Generator().manual_seed(seed)
    heads = torch.randn(config.n_heads, 1, generator=g, dtype=torch.float64).exp()
    mean_abs = heads * torch.randn(config.n_heads, config.head_dim, generator=g, dtype=torch.float64).exp()
    amax = mean_abs.flatten() * (2 + 4 * torch.rand(config.d_inner, generator=g, dtype=torch.float64))
    return statistics(mean_abs, amax)


def test_two_by_two_by_hand():
    """Two loud channels in every head, at its end, at its start, apart; heads of one shape go together."""
    loud_end, loud_start, apart = [1, 1, 1, 1, 1, 1, 9, 9], [9, 9, 1, 1, 1, 1, 1, 1], [1, 9, 1, 1, 9, 1, 1, 1]
    flat = [1, 1, 1, 1, 1, 1, 1, 1]
    groups = cluster(statistics([loud_end, flat, loud_start, apart]), CONFIG, 2, 2, "kmeans")
    first, second = groups.channel_index.view(4, 8), groups.dim_sizes
    rows = {int(head): row.tolist() for head, row in zip(groups.head_index, first, strict=True)}
    assert rows[0] == [0, 1, 2, 3, 4, 5, 6, 7]
    assert rows[2] == [16 + p for p in (2, 3, 4, 5, 6, 7, 0, 1)]  # ties keep their order
    assert rows[3] == [24 + p for p in (0, 2, 3, 5, 6, 7, 1, 4)]
    assert groups.head_sizes.tolist() == [[1, 1], [1, 1]]
    cuts = {int(head): second.flatten(0, 1)[i].tolist() for i, head in enumerate(groups.head_index)}
    assert cuts == {0: [6, 2], 1: [4, 4], 2: [6, 2], 3: [6, 2]}  # a flat head has one cluster, which is halved


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("numbers", [(1, 1), (1, 8), (2, 2), (3, 5), (8, 1), (8, 8)])
def test_any_statistic_gives_groups_that_ascend(method, numbers):
    for seed in range(5):
        s = random_statistics(seed)
        groups = cluster(s, WIDE, *numbers, method)
        assert groups.shape == (2, *numbers)
        in_heads = s.mean_abs[groups.channel_index].view(16, 8)
        assert (in_heads.diff(dim=1) >= 0).all()


@pytest.mark.parametrize("method", METHODS)
def test_twice_is_the_same(method):
    assert len({cluster(random_statistics(1), WIDE, 4, 4, method).digest for _ in range(2)}) == 1


def test_heads_of_one_shape_stand_together_whatever_their_loudness():
    shapes = torch.tensor([[1.0, 1, 1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1, 8, 8]], dtype=torch.float64)
    kinds = torch.tensor([0, 1, 0, 1, 1, 0, 0, 1, 1, 1, 0, 0, 1, 0, 1, 0])
    loud = torch.logspace(-3, 3, 16, dtype=torch.float64)[:, None]
    groups = cluster(statistics(loud * shapes[kinds]), WIDE, 2, 2, "kmeans")
    for ssd in kinds[groups.head_index].view(2, 8):
        assert len(set(ssd[:4].tolist())) == len(set(ssd[4:].tolist())) == 1
    assert groups.head_sizes.tolist() == [[4, 4], [4, 4]]


def test_clusters_are_numbered_as_their_first_heads_stand():
    assert by_first(torch.tensor([2, 0, 2, 1, 0, 2])).tolist() == [0, 1, 0, 2, 1, 0]
    for seed in range(5):
        groups = cluster(random_statistics(seed), WIDE, 4, 4, "kmeans")
        for heads, sizes in zip(groups.head_index.view(2, 8), groups.head_sizes, strict=True):
            firsts = [run[0].item() for run in heads.split(sizes.tolist())]
            assert firsts == sorted(firsts)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("what", ["dead channel", "dead head", "all dead", "equal heads", "one value"])
def test_what_data_may_bring_has_a_rule(method, what):
    values = random_statistics(0).mean_abs.view(16, 8).clone()
    match what:
        case "dead channel":
            values[3, 5] = 0
        case "dead head":
            values[3] = 0
        case "all dead":
            values[:] = 0
        case "equal heads":
            values[:] = values[:1]
        case "one value":
            values[:] = 1
    groups = cluster(statistics(values), WIDE, 4, 4, method)
    assert groups.shape == (2, 4, 4)
    assert (values.flatten()[groups.channel_index].view(16, 8).diff(dim=1) >= 0).all()


@pytest.mark.parametrize(
    ("numbers", "says"),
    [((9, 1), "9 head groups: there are 8 heads in an SSD group"), ((1, 9), "9 channel groups: there are 8 channels"),
     ((0, 1), "0 head groups")],
)  # fmt: skip
def test_more_groups_than_there_are_is_refused_in_one_line(numbers, says):
    with pytest.raises(BadParameter, match=says):
        cluster(random_statistics(0), WIDE, *numbers, "kmeans")


def test_an_unknown_method_is_refused_in_one_line():
    with pytest.raises(BadParameter, match="method must be kmeans, dp, quamba_exact"):
        GroupingSpec.parse("4x4[method=best]")


def test_other_threads_are_left_as_they_were():
    """scikit-learn limits BLAS for the whole process; several at once used to leave it at one thread."""
    before = [(lib["prefix"], lib["num_threads"]) for lib in threadpool_info()]
    with threadpool_limits(2):
        limited = [lib["num_threads"] for lib in threadpool_info()]
        GroupingSpec.parse("4x4").build().groups({i: random_statistics(i) for i in range(8)}, WIDE)
        assert [lib["num_threads"] for lib in threadpool_info()] == limited
    assert [(lib["prefix"], lib["num_threads"]) for lib in threadpool_info()] == before


# Cuts


def best_by_trying(amax, n):
    """Least cost over every way to cut."""
    p, costs = len(amax), []
    for inner in itertools.combinations(range(1, p), n - 1):
        ends = [0, *inner, p]
        costs.append(sum((b - a) * amax[a:b].max().item() ** 2 for a, b in itertools.pairwise(ends)))
    return min(costs)


@given(st.lists(st.floats(0, 100), min_size=1, max_size=9), st.data())
def test_dynamic_programming_is_the_best_of_every_cut(values, data):
    amax = torch.tensor(values, dtype=torch.float64)
    n = data.draw(st.integers(1, len(values)))
    sizes = by_dynamic_programming(amax[:, None], amax, n)
    assert len(sizes) == n
    assert sum(sizes) == len(values)
    assert min(sizes) >= 1
    cost = sum(len(run) * run.max().item() ** 2 for run in amax.split(sizes))
    assert cost == pytest.approx(best_by_trying(amax, n), rel=1e-12, abs=1e-300)  # float64 sums in another order


def test_dynamic_programming_by_hand():
    amax = torch.tensor([1.0, 1, 2, 2, 8], dtype=torch.float64)
    assert by_dynamic_programming(amax[:, None], amax, 2) == [4, 1]  # 4 * 4 + 64 = 80; [2, 3] would be 194
    assert by_dynamic_programming(amax[:, None], amax, 3) == [2, 2, 1]  # 2 + 8 + 64


@pytest.mark.parametrize("numbers", [(1, 4), (4, 4), (8, 2)])
def test_no_method_expects_less_error_than_dynamic_programming(numbers):
    for seed in range(10):
        s = random_statistics(seed)
        errors = {m: expected_error(cluster(s, WIDE, *numbers, m), s) for m in METHODS}
        assert errors["dp"] <= min(errors.values()) * (1 + 1e-12)


@given(st.lists(st.lists(st.floats(0, 1), min_size=3, max_size=3), min_size=4, max_size=12), st.integers(1, 4))
def test_k_means_of_ascending_positions_are_runs(rows, n):
    points = torch.tensor(rows, dtype=torch.float64).sort(dim=0).values
    sizes = by_k_means(points, points.amax(1), n)
    assert len(sizes) == n
    assert sum(sizes) == len(rows)


def test_k_means_by_hand():
    """From 0, 0.3 and 5.1 on; the best cut, [3, 2, 1], is another, which is what dynamic programming is for."""
    points = torch.tensor([[0.0], [0.1], [0.3], [5.0], [5.1], [9.0]], dtype=torch.float64)
    assert by_k_means(points, points[:, 0], 3) == [2, 1, 3]


def test_clusters_that_are_no_runs_are_an_error():
    assert runs_of([2, 2, 0, 1, 1]) == [2, 1, 2]
    with pytest.raises(BadParameter, match="are no runs"):
        runs_of([0, 1, 0])


def test_the_longest_run_is_halved():
    assert halved([5, 5, 1], 5) == [3, 2, 3, 2, 1]
    assert halved([8], 4) == [2, 2, 2, 2]


def test_the_originals_cuts_come_from_other_heads():
    """quantization.md: sizes differ; where no head moves, they do not."""

    def cuts(groups):
        """Heads of a cluster -> where its positions are cut; whatever number the cluster has."""
        found = {}
        for heads, sizes, dims in zip(groups.head_index.view(2, 8), groups.head_sizes, groups.dim_sizes, strict=True):
            runs = zip(heads.split(sizes.tolist()), dims.tolist(), strict=True)
            found |= {frozenset(run.tolist()): cut for run, cut in runs}
        return found

    differ = 0
    for seed in range(20):
        s = random_statistics(seed)
        exact, ours = (cuts(cluster(s, WIDE, 4, 4, m)) for m in ("quamba_exact", "kmeans"))
        assert exact.keys() == ours.keys()
        differ += exact != ours
    assert differ == 20
    one = random_statistics(0)
    assert cluster(one, WIDE, 1, 4, "quamba_exact").digest == cluster(one, WIDE, 1, 4, "kmeans").digest
