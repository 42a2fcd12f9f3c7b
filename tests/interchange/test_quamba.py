"""Quamba's structure: by hand, by the walk of its kernel, there and back, and what does not fit it."""

from __future__ import annotations

import copy
import re
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from quambench.calibration.channels import arrange, channel_statistics, groups_of
from quambench.calibration.collect import Task, calibrate
from quambench.calibration.scales import Calibration
from quambench.core.errors import BadArtefact, BadParameter
from quambench.grids.granularity import UNQUANTIZED
from quambench.grids.grid import MIN_SCALE
from quambench.grouping import GroupingSpec, Groups
from quambench.int8.fuse import prepare
from quambench.int8.reorder import reorder
from quambench.int8.site_grid import site_grid
from quambench.interchange import quamba
from quambench.interchange.quamba import from_act_scales, to_act_scales
from quambench.models import ModelConfig, build
from quambench.models.sites import ARCHITECTURES, layer_of, sites_of
from quambench.observers import ObserverSpec
from quambench.policy.base import granularity_in_groups
from quambench.policy.quamba import Quamba
from quambench.policy.quamba2 import Quamba2

MAMBA = ModelConfig(architecture="mamba", d_model=16, n_layers=2, vocab_size=50, d_state=4, dt_rank=3)
# E = 24: H = 6 heads of P = 4, three in each of two SSD groups; N = 2
MAMBA2 = ModelConfig(
    architecture="mamba2", d_model=12, n_layers=1, vocab_size=50, d_state=2, head_dim=4, n_groups=2, chunk_size=8
)
CONFIGS = {"mamba": MAMBA, "mamba2": replace(MAMBA2, n_layers=2)}


def same(one, other):
    """Equal in structure, types, shapes and every bit."""
    if isinstance(one, torch.Tensor):
        return isinstance(other, torch.Tensor) and one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, dict):
        return type(other) is dict and one.keys() == other.keys() and all(same(one[k], other[k]) for k in one)
    if isinstance(one, list | tuple):
        alike = type(one) is type(other) and len(one) == len(other)
        return alike and all(same(a, b) for a, b in zip(one, other, strict=True))
    return one == other


def random_groups(seed, config=MAMBA2, numbers=None):
    """Any order of heads within SSD groups and of channels within heads, cut anywhere."""
    c, generator = config, torch.Generator().manual_seed(seed)
    heads = c.n_heads // c.n_groups

    def cut(total, n):
        ends = torch.randperm(total - 1, generator=generator)[: n - 1].sort().values + 1
        return torch.diff(ends, prepend=torch.tensor([0]), append=torch.tensor([total]))

    def up_to(n):
        return int(torch.randint(1, n + 1, (), generator=generator))

    n_heads, n_dims = numbers or (up_to(heads), up_to(c.head_dim))
    head_index = torch.cat([g * heads + torch.randperm(heads, generator=generator) for g in range(c.n_groups)])
    channels = [h * c.head_dim + torch.randperm(c.head_dim, generator=generator) for h in head_index]
    return Groups(
        head_index,
        torch.cat(channels),
        torch.stack([cut(heads, n_heads) for _ in range(c.n_groups)]),
        torch.stack([torch.stack([cut(c.head_dim, n_dims) for _ in range(n_heads)]) for _ in range(c.n_groups)]),
    )


def made(config, groups=None, seed=0):
    """A calibration of random scales: per tensor, or as Quamba2 groups."""
    generator, groups = torch.Generator().manual_seed(seed), groups or {}
    granularities, scales = {}, {}
    for name, site in sites_of(config).items():
        granularities[name] = granularity_in_groups(site) if groups else "tensor"
        shape = {"tensor": (), "ssd_group": (config.n_groups,)}.get(granularities[name])
        if shape is None:
            rest = (config.d_state,) if name.endswith("ssm_state") else ()
            shape = (*groups[layer_of(name)].shape, *rest)
        scales[name] = (torch.randn(shape, generator=generator) * 3 - 4).exp().clamp(min=MIN_SCALE)
    return Calibration(scales, granularities, dict.fromkeys(scales, "o"), 8, "m", "d", groups=groups)


def back(calibration, config):
    return from_act_scales(*to_act_scales(calibration), config, model_digest="m", data_digest="d", observer="o")


def t(values, dtype=torch.float32):
    return torch.tensor(values, dtype=dtype)


def i(values):
    return torch.tensor(values, dtype=torch.int32)


def test_every_site_has_its_keys_in_forward_order():
    assert {architecture: list(kind.quamba_keys) for architecture, kind in ARCHITECTURES.items()} == {
        architecture: [site.name for site in kind.sites] for architecture, kind in ARCHITECTURES.items()
    }


# --- by hand

GROUPS_BY_HAND = Groups(
    torch.tensor([2, 0, 1, 3, 5, 4]),
    torch.tensor([8, 9, 11, 10, 0, 1, 2, 3, 4, 5, 6, 7, 12, 13, 14, 15, 20, 21, 22, 23, 16, 17, 18, 19]),
    torch.tensor([[1, 2], [2, 1]]),
    torch.tensor([[[1, 3], [2, 2]], [[3, 1], [1, 3]]]),
)
ALONE = {  # site -> scale
    "in_proj:input": 0.01, "z": 0.02, "x_conv_in": 0.03, "B_conv_in": 0.04, "C_conv_in": 0.05, "dt": 0.06,
    "out_proj:input": 0.07,
}  # fmt: skip


def calibration_by_hand():
    scales = {f"layers.0.{site}": t(scale) for site, scale in ALONE.items()}
    scales |= {
        "layers.0.x_conv_out": t([[[1.0, 2.0], [3.0, 4.0]], [[5.0, 6.0], [7.0, 8.0]]]),
        "layers.0.B_conv_out": t([0.1, 0.2]),
        "layers.0.C_conv_out": t([0.3, 0.4]),
        "layers.0.ssm_state": torch.arange(1.0, 17.0).view(2, 2, 2, 2),
        "lm_head:input": t(0.08),
    }
    scales = {name: scales[name] for name in sites_of(MAMBA2)}
    granularities = {name: granularity_in_groups(site) for name, site in sites_of(MAMBA2).items()}
    return Calibration(scales, granularities, dict.fromkeys(scales, "o"), 8, "m", "d", groups={0: GROUPS_BY_HAND})


def check_by_hand():
    act_scales, reorder_params = to_act_scales(calibration_by_hand())
    assert same(
        act_scales,
        [
            {
                "in_proj:input": t(0.01),
                "z_act:input": t(0.02),
                "z_act:output": t(0.02),
                "x_conv_in:input": t(0.03),
                "x_conv_in:output": t(0.03),
                "B_conv_in:input": t(0.04),
                "B_conv_in:output": t(0.04),
                "C_conv_in:input": t(0.05),
                "C_conv_in:output": t(0.05),
                "dt_act:input": t(0.06),
                "dt_act:output": t(0.06),
                "x_conv_out:input": [
                    [(i(1), i([1, 3]), t([1.0, 2.0])), (i(2), i([2, 2]), t([3.0, 4.0]))],
                    [(i(2), i([3, 1]), t([5.0, 6.0])), (i(1), i([1, 3]), t([7.0, 8.0]))],
                ],
                "B_conv_out:input": t([0.1, 0.2]),
                "C_conv_out:input": t([0.3, 0.4]),
                "ssm_state_act:input": [
                    [(i(1), i(3), t([[1.0, 2.0], [3.0, 4.0]])), (i(2), i(2), t([[5.0, 6.0], [7.0, 8.0]]))],
                    [(i(2), i(1), t([[9.0, 10.0], [11.0, 12.0]])), (i(1), i(3), t([[13.0, 14.0], [15.0, 16.0]]))],
                ],
                "out_proj:input": t(0.07),
            },
            {"lm_head:input": t(0.08)},
        ],
    )
    assert same(
        reorder_params,
        {
            "head_groups": [i([[1, 2], [2, 1]])],
            "channel_group": [i([[[1, 3], [2, 2]], [[3, 1], [1, 3]]])],
            "head_index": [GROUPS_BY_HAND.head_index],
            "channel_index": [GROUPS_BY_HAND.channel_index],
        },
    )


def test_groups_by_hand():
    check_by_hand()
    assert back(calibration_by_hand(), MAMBA2).digest == calibration_by_hand().digest


def test_a_mamba_model_by_hand():
    config = replace(MAMBA, n_layers=1)
    sites = list(sites_of(config))
    scales = {name: t(0.5 + n) for n, name in enumerate(sites)}
    given = Calibration(scales, dict.fromkeys(sites, "tensor"), dict.fromkeys(sites, "o"), 8, "m", "d")
    act_scales, reorder_params = to_act_scales(given)
    assert reorder_params is None
    assert same(
        act_scales,
        [
            {
                "in_proj:input": t(0.5),
                "in_proj:output": t(1.5),
                "x_proj:input": t(2.5),
                "x_proj:output": t(3.5),
                "dt_proj:output": t(4.5),
                "ssm_state_act:input": t(5.5),
                "out_proj:input": t(6.5),
            },
            {"lm_head:input": t(7.5)},
        ],
    )


# Faults that writing and reading might share, so that no round trip would see them.


def c_as_b(patch):
    table = ARCHITECTURES["mamba2"].quamba_keys
    patch.setitem(table, "B_conv_out", ("C_conv_out:input",))
    patch.setitem(table, "C_conv_out", ("B_conv_out:input",))


def sizes_swapped(patch):
    right = quamba._as_tuples
    patch.setattr(
        quamba,
        "_as_tuples",
        lambda *of: [[(dims, heads, scales) for heads, dims, scales in runs] for runs in right(*of)],
    )


def head_groups_reversed(patch):
    right = quamba._as_tuples
    patch.setattr(quamba, "_as_tuples", lambda *of: [runs[::-1] for runs in right(*of)])


def ssd_groups_reversed(patch):
    right = quamba._as_tuples
    patch.setattr(quamba, "_as_tuples", lambda *of: right(*of)[::-1])


def order_inverted(patch):
    right = quamba.reorder_params_of

    def wrong(groups):
        params = right(groups)
        return params | {"channel_index": [index.argsort() for index in params["channel_index"]]}

    patch.setattr(quamba, "reorder_params_of", wrong)


@pytest.mark.parametrize("fault", [c_as_b, sizes_swapped, head_groups_reversed, ssd_groups_reversed, order_inverted])
def test_a_planted_fault_shows(fault, monkeypatch):
    fault(monkeypatch)
    with pytest.raises(AssertionError):
        check_by_hand()


def test_swapped_sizes_do_not_come_back(monkeypatch):
    sizes_swapped(monkeypatch)
    with pytest.raises(BadArtefact, match=r"layer 0, x_conv_out:input, SSD group 0, head group 0: h_gsize is \[1, 3\]"):
        back(calibration_by_hand(), MAMBA2)


# --- as Quamba's own code reads it


def ranges_of(tuples):
    """Ends of the runs of heads and of channels, and scales, stacked as its convolution takes them."""
    by_ssd_group = [list(zip(*runs, strict=True)) for runs in tuples]
    heads = torch.stack([torch.stack(sizes).cumsum(0) for sizes, _, _ in by_ssd_group])
    dims = torch.stack([torch.stack(sizes).cumsum(1) for _, sizes, _ in by_ssd_group])
    return heads, dims, torch.stack([torch.stack(scales) for _, _, scales in by_ssd_group])


def scale_walked_to(channel, heads, dims, scales, config):
    """As each thread of its kernel finds it."""
    ssd_group, rest = divmod(channel, config.d_inner // config.n_groups)
    head, dim = divmod(rest, config.head_dim)
    run = next(r for r, end in enumerate(heads[ssd_group]) if head < end)
    part = next(p for p, end in enumerate(dims[ssd_group, run]) if dim < end)
    return scales[ssd_group, run, part]


def check_walk(seed):
    given = made(MAMBA2, {0: random_groups(seed)}, seed)
    entry = to_act_scales(given)[0][0]
    heads, dims, scales = ranges_of(entry["x_conv_out:input"])
    grids = {site: site_grid(f"layers.0.{site}", given, MAMBA2, 8, True).scale for site in ("x_conv_out", "ssm_state")}
    states = torch.stack([torch.stack([of for _, _, of in runs]) for runs in entry["ssm_state_act:input"]])
    per_state = grids["ssm_state"].flatten(0, 1)
    for channel in range(MAMBA2.d_inner):
        assert scale_walked_to(channel, heads, dims, scales, MAMBA2) == grids["x_conv_out"][channel]
        assert torch.equal(scale_walked_to(channel, heads, dims, states, MAMBA2), per_state[channel])


@settings(deadline=None)
@given(st.integers(0, 2**32))
def test_its_kernel_finds_the_scale_that_the_integer_model_here_uses(seed):
    check_walk(seed)


@pytest.mark.parametrize("fault", [head_groups_reversed, ssd_groups_reversed])
def test_the_walk_sees_a_planted_fault(fault, monkeypatch):
    fault(monkeypatch)
    with pytest.raises(AssertionError):
        check_walk(1)


def reordered_as_there(model, reorder_params):
    """z, x, dt, convolution, heads, norm and out_proj by the two indices, each as its reorder_mamba puts them."""
    c = model.config
    for layer, block in enumerate(model.blocks):
        heads, channels = reorder_params["head_index"][layer], reorder_params["channel_index"][layer]
        mixer, e, bc = block.mixer, c.d_inner, 2 * c.n_groups * c.d_state
        rows = torch.cat([channels, e + channels, 2 * e + torch.arange(bc), 2 * e + bc + heads])
        taps = torch.cat([channels, e + torch.arange(bc)])
        for tensor, index in (
            (mixer.in_proj.weight, rows),
            (mixer.conv1d.weight, taps),
            (mixer.conv1d.bias, taps),
            (mixer.A_log, heads),
            (mixer.D, heads),
            (mixer.dt_bias, heads),
            (mixer.norm.weight, channels),
            (mixer.out_proj.weight.T, channels),
        ):
            tensor.copy_(tensor[index].clone())


@torch.no_grad()
def check_order():
    config = CONFIGS["mamba2"]
    groups = {layer: random_groups(layer, config) for layer in range(2)}
    here = build(config)
    for parameter in here.parameters():
        parameter.copy_(torch.arange(parameter.numel()).view_as(parameter))
    there = copy.deepcopy(here)
    reorder(here, groups)
    reordered_as_there(there, to_act_scales(made(config, groups))[1])
    for (name, one), other in zip(here.named_parameters(), there.parameters(), strict=True):
        assert torch.equal(one, other), name


def test_its_reordering_gives_the_model_that_is_calibrated_here():
    check_order()


def test_an_inverted_order_gives_another_model(monkeypatch):
    order_inverted(monkeypatch)
    with pytest.raises(AssertionError):
        check_order()


# --- there and back


@settings(deadline=None)
@given(st.integers(0, 2**32), st.booleans())
def test_groups_come_back_to_the_bit(seed, grouped):
    config = CONFIGS["mamba2"]
    # The two layers have other numbers of groups, as `adaptive` gives them.
    groups = {layer: random_groups(seed + layer, config) for layer in range(2)} if grouped else {}
    check_round_trip(made(config, groups, seed), config)


@settings(deadline=None)
@given(st.integers(0, 2**32))
def test_a_mamba_model_comes_back_to_the_bit(seed):
    check_round_trip(made(MAMBA, seed=seed), MAMBA)


def check_round_trip(given, config):
    file = to_act_scales(given)
    found = from_act_scales(*file, config, model_digest="m", data_digest="d", observer="o")
    assert found.digest == given.digest
    assert found.granularities == given.granularities
    assert list(found.scales) == list(given.scales)
    assert (found.act_bits, found.symmetric, found.observers) == (8, True, given.observers)
    assert (found.model_digest, found.data_digest) == ("m", "d")
    assert same(to_act_scales(found), file)


CASES = [("mamba", Quamba, "1x1"), ("mamba2", Quamba, "1x1"), ("mamba2", Quamba, "2x2")] + [
    ("mamba2", Quamba2, grouping) for grouping in ("1x1", "2x4", "head", "channel", "adaptive[base=2]")
]


@pytest.mark.parametrize(("architecture", "policy", "grouping"), CASES)
def test_what_is_calibrated_comes_back(architecture, policy, grouping):
    config = {
        "mamba": MAMBA,
        "mamba2": replace(CONFIGS["mamba2"], d_model=16, n_groups=2),  # 16 and 32 have Hadamard matrices
    }[architecture]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = build(config)
    sequences = torch.randint(50, (3, 9), generator=torch.Generator().manual_seed(0))
    plain, groups = prepare(model), {}
    if policy is Quamba2 or grouping != "1x1":
        groups = groups_of(config, GroupingSpec.parse(grouping), lambda: channel_statistics(plain, sequences))
    plan = policy().plan(config, ObserverSpec("percentile"), grouping)
    found = calibrate(arrange(model, groups, plain), sequences, {"k": Task(plan, 8, groups=groups)}, "m")["k"]
    again = back(found, config)
    assert again.digest == found.digest
    assert again.granularities == found.granularities
    assert same(to_act_scales(again), to_act_scales(found))


def test_layers_stand_by_their_number():
    config = CONFIGS["mamba2"]
    groups = {layer: random_groups(layer, config) for layer in (1, 0)}
    found = to_act_scales(made(config, groups))[1]["head_index"]
    assert same(found, [groups[0].head_index, groups[1].head_index])


def test_who_changes_what_is_written_changes_no_calibration():
    given = made(MAMBA2, {0: random_groups(0)})
    before = given.digest
    (entry, head), reorder_params = to_act_scales(given)
    for tensor in (entry["z_act:input"], entry[X][0][0][2], entry[S][0][0][2], head["lm_head:input"]):
        tensor.mul_(2)
    for of_layers in reorder_params.values():
        of_layers[0].zero_()
    assert given.digest == before
    assert torch.equal(given.groups[0].head_index, random_groups(0).head_index)  # no part of the digest


def test_an_order_without_groups_is_kept():
    """Channels sorted in their heads, heads in no groups: the original then writes no sizes of channels."""
    config = CONFIGS["mamba2"]
    act_scales, _ = to_act_scales(made(config))
    order = [random_groups(layer, config, numbers=(1, 1)) for layer in range(2)]
    reorder_params = {
        "head_groups": [i([[3], [3]])] * 2,
        "channel_group": [i([])] * 2,
        "head_index": [g.head_index for g in order],
        "channel_index": [g.channel_index for g in order],
    }
    found = from_act_scales(act_scales, reorder_params, config, model_digest="m")
    assert set(found.granularities.values()) == {"tensor"}
    assert [found.groups[layer].digest for layer in range(2)] == [g.digest for g in order]
    written, again = to_act_scales(found)
    assert same(written, act_scales)
    assert same(again["channel_index"], reorder_params["channel_index"])


@pytest.mark.parametrize(
    "as_it_came", [lambda x: x.double(), lambda x: x.view(1), lambda x: x.requires_grad_(), lambda x: x.bfloat16()]
)
def test_one_number_may_be_of_any_float_type_and_any_shape_that_holds_one(as_it_came):
    given = made(MAMBA2)
    given = replace(given, scales={name: scale.bfloat16().float() for name, scale in given.scales.items()})
    act_scales, _ = to_act_scales(given)
    changed = [{key: as_it_came(scale.clone()) for key, scale in entry.items()} for entry in act_scales]
    assert from_act_scales(changed, None, MAMBA2, model_digest="m").digest == given.digest


def test_what_quamba_does_not_read_is_not_looked_at():
    given = made(MAMBA2, {0: random_groups(0)})
    act_scales, reorder_params = to_act_scales(given)
    act_scales[0] |= {"ssd_out_act:input": None, "x_conv_out:output": t(-1.0), "out_proj:output": t(torch.nan)}
    act_scales[-1]["lm_head:output"] = "?"
    found = from_act_scales(act_scales, reorder_params | {"more": 1}, MAMBA2, model_digest="m")
    assert found.digest == given.digest


def test_the_smallest_scale_of_the_grid_is_the_smallest_here():
    given = made(MAMBA2)
    smallest = torch.tensor(MIN_SCALE)
    given = replace(given, scales=dict(given.scales) | {"lm_head:input": smallest})
    assert back(given, MAMBA2).digest == given.digest
    below = replace(given, scales=dict(given.scales) | {"lm_head:input": smallest.nextafter(t(0.0))})
    with pytest.raises(BadArtefact, match="lm_head:input: a scale must be"):
        back(below, MAMBA2)


# --- what does not fit


@pytest.mark.parametrize(
    ("architecture", "grouped", "changes", "says"),
    [
        ("mamba2", False, {"act_bits": 4}, "Quamba's activations have 8 bits, these scales are for 4"),
        ("mamba", False, {"symmetric": False}, "Quamba's grid is symmetric"),
        ("mamba", False, {"layers.1.in_proj:output": "split"}, "layers.1.in_proj:output has a scale per split"),
        ("mamba", False, {"layers.0.ssm_state": "channel"}, "layers.0.ssm_state has a scale per channel, and Quamba "
         "reads one number there: calibrate with --grouping 1x1"),
        ("mamba2", False, {"layers.1.z": "channel"}, "layers.1.z has a scale per channel, and Quamba reads one number"),
        ("mamba2", False, {"layers.0.ssm_state": "channel"}, "--policy quamba2 --grouping channel"),
        ("mamba2", False, {"layers.0.B_conv_out": "ssd_group"}, "layers.0.B_conv_out has a scale per ssd_group"),
        ("mamba2", True, {"layers.1.C_conv_out": "tensor"}, "layers.1.C_conv_out has one scale, and Quamba reads one "
         "per SSD group there"),
        ("mamba2", True, {"layers.1.ssm_state": "tensor"}, "layers.1.ssm_state has one scale, and Quamba reads one per "
         "group of heads"),
        ("mamba2", False, {"layers.0.dt": UNQUANTIZED}, "layers.0.dt stays float in this calibration"),
        ("mamba", False, {"lm_head:input": UNQUANTIZED}, "lm_head:input stays float in this calibration"),
        ("mamba2", False, {"groups": {1: random_groups(0)}}, "Quamba reorders every layer or none"),
        ("mamba2", True, {"groups": {}}, "Quamba reorders every layer or none"),
    ],
)  # fmt: skip
def test_what_quamba_has_no_place_for_is_one_line(architecture, grouped, changes, says):
    config = CONFIGS[architecture]
    given = made(config, {layer: random_groups(layer, config) for layer in range(2)} if grouped else {})
    sites = {name: value for name, value in changes.items() if name in given.scales}
    fields = {name: value for name, value in changes.items() if name not in sites}
    given = replace(given, granularities=dict(given.granularities) | sites, **fields)
    with pytest.raises(BadParameter, match=re.escape(says)) as raised:
        to_act_scales(given)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("name", ["layers.0.ssm_state", "layers.1.in_proj:input", "lm_head:input"])
@pytest.mark.parametrize("architecture", CONFIGS)
def test_a_site_without_a_scale_is_one_line(architecture, name):
    given = made(CONFIGS[architecture])
    scales = {site: scale for site, scale in given.scales.items() if site != name}
    with pytest.raises(BadParameter, match=f"no scale for {name}"):
        to_act_scales(replace(given, scales=scales))


def put(where, value):
    """A change to act_scales and reorder_params: at this path of keys, this value, or none at all."""

    def change(parts):
        *path, last = where
        at = parts
        for step in path:
            at = at[step]
        if value is None:
            del at[last]
        else:
            at[last] = value(at[last]) if callable(value) else value

    return change


A, R = "act_scales", "reorder_params"
X, S = "x_conv_out:input", "ssm_state_act:input"
LAYERS_3 = [i([[1, 2], [2, 1]])] * 3


@pytest.mark.parametrize(
    ("change", "says"),
    [
        # act_scales as a whole
        (put([A], {}), "act_scales must be a list of 3 dicts"),
        (put([A, 1], t(1.0)), "act_scales must be a list of 3 dicts"),
        (put([A, 2], None), "of the model's 2 layers and lm_head (got 2 dicts)"),
        # single numbers
        (put([A, 1, "dt_act:output"], None), "layer 1, dt_act:output: missing"),
        (put([A, 1, X], None), "layer 1, x_conv_out:input: missing"),
        (put([A, 2, "lm_head:input"], None), "lm_head:input: missing"),
        (put([A, 1, "z_act:input"], 0.5), "layer 1, z_act:input must be a float tensor (got float)"),
        (put([A, 1, "z_act:input"], i(1)), "layer 1, z_act:input must be a float tensor (got a tensor of torch.int32"),
        (put([A, 1, "z_act:input"], t([1.0, 2.0])), "layer 1, z_act:input must have shape () (got (2,))"),
        (put([A, 1, "z_act:input"], t(0.0)), "layer 1, z_act:input: a scale must be finite and at least 1e-06 (got 0)"),
        (put([A, 1, "z_act:input"], t(-1.0)), "layer 1, z_act:input: a scale must be finite and at least 1e-06"),
        (put([A, 1, "z_act:input"], t(torch.nan)), "(got nan)"),
        (put([A, 1, "z_act:input"], t(torch.inf)), "(got inf)"),
        (put([A, 1, "z_act:input"], t(1e300, torch.float64)), "(got inf)"),  # no float32
        (put([A, 1, "z_act:output"], t(9.0)), "layer 1, z_act:output must equal z_act:input"),
        (put([A, 0, "B_conv_out:input"], t(1.0)), "layer 0, B_conv_out:input must have shape (2,) (got ())"),
        (put([A, 0, "C_conv_out:input"], t([1.0, torch.nan])), "(got nan, 1 of 2 are such)"),
        # tuples
        (put([A, 1, X], t(1.0)), "layer 1, x_conv_out:input is not in groups, and layer 0, x_conv_out:input is"),
        (put([A, 0, S], t(1.0)), "layer 0, ssm_state_act:input is not in groups"),
        (put([A, 0, X], t(1.0)), "layer 0, B_conv_out:input must have shape () (got (2,))"),
        (put([A, 1, X, 1], None), "layer 1, x_conv_out:input must have 2 SSD groups (got 1)"),
        (put([A, 1, X, 1], t(1.0)), "layer 1, x_conv_out:input, SSD group 1 must have 2 head groups"),
        (put([A, 1, S, 0, 1], None), "layer 1, ssm_state_act:input, SSD group 0 must have 2 head groups"),
        (put([A, 1, X, 0, 1], t(1.0)), "SSD group 0, head group 1 must be a tuple (h_gsize, ch_gsize, scales)"),
        (put([A, 1, X, 0, 1], lambda run: run[:2]), "SSD group 0, head group 1 must be a tuple"),
        (put([A, 1, X, 0, 1], lambda run: (2, *run[1:])), "head group 1: h_gsize must be an integer tensor (got int)"),
        (put([A, 1, X, 0, 1], lambda run: (run[0] + 1, *run[1:])), "and head_groups of reorder_params says"),
        (put([A, 1, S, 0, 1], lambda run: (run[0] + 1, *run[1:])), "and head_groups of reorder_params says"),
        (put([A, 1, X, 0, 1], lambda run: (run[0], run[1] + 1, run[2])), "channel_group of reorder_params says"),
        (put([A, 1, X, 0, 1], lambda run: (run[0], run[1][:1], run[2])), "channel_group of reorder_params says"),
        (put([A, 1, X, 0, 1], lambda run: (*run[:2], run[2][:1])), "scales must have shape (2,) (got (1,))"),
        (put([A, 1, S, 0, 1], lambda run: (*run[:2], run[2].T[:1])), "scales must have shape (2, 2) (got (1, 2))"),
        (put([A, 1, S, 0, 1], lambda run: (*run[:2], -run[2])), "SSD group 0, head group 1: scales: a scale must be"),
        # reorder_params
        (put([R], None), "layer 0, x_conv_out:input is in groups: reorder_params must come with act_scales"),
        (put([R], [1]), "reorder_params must be a dict of lists over layers (got list)"),
        (put([R], t([1.0, 2.0])), "reorder_params must be a dict of lists over layers (got a tensor"),
        (put([R], {}), "layer 0, x_conv_out:input is in groups: reorder_params must come with act_scales"),
        (put([R, "head_index"], None), "reorder_params: head_index is missing"),
        (put([R, "head_groups"], LAYERS_3), "reorder_params, head_groups must be a list over the model's 2 layers"),
        (put([R, "head_groups"], t(1.0)), "reorder_params, head_groups must be a list over the model's 2 layers (got"),
        (put([R, "head_groups", 1], i([1, 2])), "layer 1, head_groups must have shape (2, n) (got (2,))"),
        (put([R, "head_groups", 1], i([[1, 2]])), "layer 1, head_groups must have shape (2, n) (got (1, 2))"),
        (put([R, "head_groups", 1], [[1, 2], [2, 1]]), "layer 1, head_groups must be an integer tensor (got list)"),
        (put([R, "head_groups", 1], t([[1, 2], [2, 1]])), "layer 1, head_groups must be an integer tensor"),
        (put([R, "head_groups", 1], i([[1, 2], [2, 2]])), "layer 1, head_groups: sizes must be 1 or more and add up to "
         "the 3 heads of an SSD group (got [2, 2])"),
        (put([R, "head_groups", 1], i([[1, 2], [3, 0]])), "layer 1, head_groups: sizes must be 1 or more"),
        (put([R, "channel_group", 1], lambda sizes: sizes[:, :1]), "layer 1, channel_group must have shape (2, 2, n)"),
        (put([R, "channel_group", 1], lambda sizes: sizes + 1), "layer 1, channel_group: sizes must be 1 or more and "
         "add up to the 4 channels of a head"),
        (put([R, "head_index", 1], torch.tensor([3, 0, 1, 2, 5, 4])), "layer 1, head_index must be a permutation"),
        (put([R, "head_index", 1], torch.tensor([0, 0, 1, 3, 5, 4])), "layer 1, head_index must be a permutation"),
        (put([R, "head_index", 1], torch.arange(5)), "layer 1, head_index must be a permutation of the 6 heads"),
        (put([R, "channel_index", 1], torch.arange(24).flip(0)), "layer 1, channel_index must be a permutation"),
        (put([R, "channel_index", 1], torch.zeros(24).long()), "layer 1, channel_index must be a permutation of the"),
        (put([R, "channel_index", 1], torch.arange(23)), "layer 1, channel_index must be a permutation"),
    ],
)  # fmt: skip
def test_what_is_wrong_from_outside_is_one_line(change, says):
    config = CONFIGS["mamba2"]
    given = made(config, {layer: random_groups(layer, config, numbers=(2, 2)) for layer in range(2)})
    act_scales, reorder_params = to_act_scales(given)
    parts = {A: act_scales, R: reorder_params}
    change(parts)
    with pytest.raises(BadArtefact, match=re.escape(says)) as raised:
        from_act_scales(parts.get(A), parts.get(R), config, model_digest="m")
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(("of", "into"), [("mamba", "mamba2"), ("mamba2", "mamba")])
def test_scales_of_the_other_architecture_are_told_by_their_keys(of, into):
    act_scales, _ = to_act_scales(made(CONFIGS[of]))
    with pytest.raises(BadArtefact, match=f"of a {of} model, and this one is {into}$"):
        from_act_scales(act_scales, None, CONFIGS[into], model_digest="m")


def test_a_mamba_model_has_nothing_to_reorder():
    act_scales, _ = to_act_scales(made(MAMBA))
    _, reorder_params = to_act_scales(calibration_by_hand())
    with pytest.raises(BadArtefact, match="a Mamba model has no heads to reorder"):
        from_act_scales(act_scales, reorder_params, MAMBA, model_digest="m")
    assert from_act_scales(act_scales, {}, MAMBA, model_digest="m").groups == {}
