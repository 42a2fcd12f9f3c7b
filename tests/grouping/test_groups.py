"""Groups: which scale meets which channel, and what does not fit together."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from quambench.core.errors import BadParameter
from quambench.grouping.groups import Groups, in_order
from quambench.models import ModelConfig

CONFIG = ModelConfig(
    architecture="mamba2", d_model=12, n_layers=1, vocab_size=8, d_state=3, head_dim=4, n_groups=2
)  # E = 24: H = 6 heads of P = 4, three in each SSD group


def compositions(total):
    """Sizes from 1 on that add up to `total`."""
    return st.lists(st.booleans(), min_size=total - 1, max_size=total - 1).map(
        lambda cuts: [len(run) for run in "".join("1" + "," * cut for cut in [*cuts, False]).split(",") if run]
    )


@st.composite
def any_groups(draw):
    """Two SSD groups of three heads of four channels, cut and ordered at random."""
    heads = draw(compositions(3))
    head_sizes = [draw(st.permutations(heads)) for _ in range(2)]
    n_dims = draw(st.integers(1, 4))
    cut = compositions(4).filter(lambda sizes: len(sizes) == n_dims)
    dim_sizes = [[draw(cut) for _ in heads] for _ in range(2)]
    head_index = [g * 3 + h for g in range(2) for h in draw(st.permutations(range(3)))]
    channels = [h * 4 + p for h in head_index for p in draw(st.permutations(range(4)))]
    return Groups(*map(torch.tensor, (head_index, channels, head_sizes, dim_sizes)))


def by_hand():
    return Groups(
        torch.tensor([2, 0, 1, 3, 5, 4]),
        torch.tensor([8, 9, 11, 10, 0, 1, 2, 3, 4, 5, 6, 7, 12, 13, 14, 15, 20, 21, 22, 23, 16, 17, 18, 19]),
        torch.tensor([[1, 2], [2, 1]]),
        torch.tensor([[[1, 3], [2, 2]], [[3, 1], [1, 3]]]),
    )


def test_groups_of_channels_by_hand():
    groups = by_hand()
    assert groups.shape == (2, 2, 2)
    assert groups.n_scales == 8
    assert groups.of_channel.view(6, 4).tolist() == [
        [0, 1, 1, 1],
        [2, 2, 3, 3],
        [2, 2, 3, 3],
        [4, 4, 4, 5],
        [4, 4, 4, 5],
        [6, 7, 7, 7],
    ]
    assert groups.sizes.tolist() == [1, 3, 4, 4, 6, 2, 1, 3]
    assert not groups.keeps_order


def walked(groups, channel):
    """The group of a channel as a kernel finds it: by walking the ranges, head groups first."""
    (_, n_heads, n_dims), head_dim = groups.shape, int(groups.dim_sizes[0, 0].sum())
    per_ssd = head_dim * int(groups.head_sizes[0].sum())
    ssd, rest = divmod(channel, per_ssd)
    head, dim = divmod(rest, head_dim)
    h = 0
    while head >= groups.head_sizes[ssd, : h + 1].sum():
        h += 1
    d = 0
    while dim >= groups.dim_sizes[ssd, h, : d + 1].sum():
        d += 1
    return (ssd * n_heads + h) * n_dims + d


@given(any_groups())
def test_the_table_says_what_walking_the_ranges_finds(groups):
    assert groups.of_channel.tolist() == [walked(groups, channel) for channel in range(24)]


@given(any_groups())
def test_the_largest_of_each_group_is_a_loops(groups):
    values = torch.rand(24, 3, generator=torch.Generator().manual_seed(0))
    looped = torch.stack([values[groups.of_channel == i].amax(0) for i in range(groups.n_scales)])
    found = groups.largest(values)
    assert torch.equal(found, looped.view(*groups.shape, 3))
    assert torch.equal(groups.per_channel(found), looped[groups.of_channel])
    assert torch.equal(groups.sizes, torch.tensor([(groups.of_channel == i).sum() for i in range(groups.n_scales)]))


@pytest.mark.parametrize(("numbers", "n_scales"), [((1, 1), 2), ((3, 1), 6), ((3, 4), 24), ((1, 2), 4)])
def test_in_order_nothing_moves(numbers, n_scales):
    groups = in_order(CONFIG, *numbers)
    assert groups.keeps_order
    assert groups.n_scales == n_scales
    assert groups.of_channel.bincount().unique().tolist() == [24 // n_scales]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("head_index", [3, 0, 1, 2, 5, 4]),  # into the other SSD group
        ("head_index", [2, 0, 0, 3, 5, 4]),
        ("channel_index", list(range(24))),  # not the channels of these heads
        ("head_sizes", [[1, 1], [2, 1]]),
        ("head_sizes", [[3, 0], [2, 1]]),
        ("dim_sizes", [[[1, 3], [2, 1]], [[3, 1], [1, 3]]]),
        ("dim_sizes", [[[0, 4], [2, 2]], [[3, 1], [1, 3]]]),
        ("dim_sizes", [[[1, 3]], [[3, 1]]]),  # for one head group
        ("head_sizes", [[1, 2], [2, 1], [1, 2], [2, 1]]),
        ("head_sizes", [[3], [2], [1]]),
        ("head_sizes", []),
        ("head_index", [2.0, 0.0, 1.0, 3.0, 5.0, 4.0]),
    ],
)
def test_what_does_not_fit_together_is_refused(field, value):
    good = by_hand()
    fields = {n: getattr(good, n) for n in ("head_index", "channel_index", "head_sizes", "dim_sizes")}
    with pytest.raises(BadParameter, match="groups: "):
        Groups(**fields | {field: torch.tensor(value)})


def test_a_digest_is_of_order_and_sizes():
    one, other = by_hand(), by_hand()
    assert one.digest == other.digest
    assert one.digest != in_order(CONFIG, 1, 1).digest


@pytest.mark.parametrize(
    ("side", "n_scales", "n_bytes"), [(2, 32, 128), (4, 128, 512), (8, 512, 2048), (16, 2048, 8192)]
)
def test_numbers_of_scales_of_an_8b_model(side, n_scales, n_bytes):
    """G = 8, H = 128 heads of 64 channels: E = 8192."""
    config = ModelConfig(
        architecture="mamba2", d_model=4096, n_layers=1, vocab_size=8, d_state=128, head_dim=64, n_groups=8
    )
    groups = in_order(config, side, side)
    assert groups.n_scales == n_scales
    assert groups.largest(torch.rand(8192)).nbytes == n_bytes
