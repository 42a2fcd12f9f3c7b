"""Which weights get which scale."""

from __future__ import annotations

import pytest
import torch

from quambench.core.errors import BadParameter
from quambench.grids.precision import Bits
from quambench.int8 import w4
from quambench.int8.gptq import gptq
from quambench.int8.recipe import WeightQuantizer, WeightRecipe
from quambench.int8.weights import quantize_rows, quantize_splits, quantize_tensor
from quambench.observers import ObserverSpec

W = (
    torch.randn(6, 130, generator=torch.Generator().manual_seed(0)).double()
    * torch.tensor([1, 9, 1, 1, 5, 1.0])[:, None]
)
SPLITS = (2, 4)


def equal(a, b):
    return torch.equal(a.q, b.q) and torch.equal(a.scale.expand(a.q.shape), b.scale.expand(b.q.shape))


@pytest.mark.parametrize(
    ("granularity", "usual", "expected"),
    [
        ("quamba", False, lambda: quantize_tensor(W)),
        ("quamba", True, lambda: quantize_splits(W, SPLITS)),
        ("tensor", True, lambda: quantize_tensor(W)),
        ("split", False, lambda: quantize_splits(W, SPLITS)),
        ("channel", True, lambda: quantize_rows(W)),
    ],
)
def test_granularities(granularity, usual, expected):
    quantizer = WeightQuantizer(WeightRecipe(granularity=granularity))
    assert equal(quantizer.projection("w", W, SPLITS, usual), expected())
    assert equal(quantizer.narrow(W, SPLITS, usual), expected())


def test_the_observer_clips_and_biases_keep_their_largest():
    recipe = WeightRecipe(observer=ObserverSpec.parse("percentile[alpha=0.9]"), granularity="channel")
    quantizer = WeightQuantizer(recipe)
    found = quantizer.projection("w", W)
    expected = W.abs().quantile(0.9, dim=1, keepdim=True) / 127
    # numpy and torch order the interpolation otherwise, in float64: one rounding to float32 apart.
    assert ((found.scale - expected).abs() <= torch.finfo(torch.float32).eps * expected).all()
    assert found.q.min() == -128  # clipped
    assert equal(quantizer.other(W[0]), quantize_tensor(W[0]))


def test_groups_are_for_projections_and_the_rest_keeps_eight_bits():
    quantizer = WeightQuantizer(WeightRecipe(granularity="group"), bits=Bits(4, 8))
    found = quantizer.projection("w", W)
    grouped = w4.round_to_nearest(W)
    assert equal(found, w4.to_int8(grouped))
    assert found.n_bytes == grouped.n_bytes + 6 * 4  # and one float32 scale a row, which the runtime keeps too
    assert equal(quantizer.narrow(W, SPLITS), quantize_tensor(W, 8))
    assert equal(quantizer.rows(W), quantize_rows(W, 8))


def test_a_groups_observer_searches_the_grid_that_groups_have():
    """The 4-bit grid of `mse` ends 7 steps away, a group's 7.5: the step must come out as searched."""
    recipe = WeightRecipe(observer=ObserverSpec("mse"), granularity="group")
    quantizer = WeightQuantizer(recipe, bits=Bits(4, 8))
    watcher = ObserverSpec("mse").build(4)
    watcher.update(W[None, :, :128])
    steps = 2 * quantizer._group_ends(W)[:, 0] / 15
    assert torch.allclose(steps, watcher.grid_end() / 7, rtol=4 * torch.finfo(torch.float64).eps, atol=0)


def test_gptq_takes_the_hessian_of_its_weight():
    x = torch.randn(300, 130, generator=torch.Generator().manual_seed(1)).double()
    hessians = {"layers.0.w": x.T @ x}
    quantizer = WeightQuantizer(WeightRecipe.parse("gptq"), bits=Bits(4, 8), hessians=hessians)
    assert equal(quantizer.projection("layers.0.w", W), w4.to_int8(gptq(W, hessians["layers.0.w"])))
    with pytest.raises(BadParameter, match=r"gptq needs the Hessian of layers\.1\.w"):
        quantizer.projection("layers.1.w", W)


@pytest.mark.parametrize(
    ("made", "says"),
    [
        (lambda: WeightRecipe(granularity="head"), "weights must be per quamba, tensor"),
        (lambda: WeightRecipe(granularity="channel", gptq=True), "take granularity group"),
        (lambda: WeightRecipe(granularity="group", gptq=True, observer=ObserverSpec("mse")), "not mse"),
        (
            lambda: WeightQuantizer(WeightRecipe(granularity="group"), bits=Bits(8, 8)),
            "weights in groups are of 4 bits",
        ),
    ],
)
def test_what_does_not_fit_is_one_line(made, says):
    with pytest.raises(BadParameter) as caught:
        made()
    assert says in str(caught.value)
