"""Weights on the grid, by hand."""

from __future__ import annotations

import torch

from quambench.quant.weights import quantize_rows, quantize_splits, quantize_tensor

W = torch.tensor([[127.0, -3.0], [-254.0, 1.0], [0.5, 0.25]], dtype=torch.float64)


def test_one_scale_per_tensor():
    found = quantize_tensor(W)
    assert found.scale.item() == 2.0
    # 63.5 and -1.5 are ties: to even.
    assert found.q.tolist() == [[64, -2], [-127, 0], [0, 0]]


def test_one_scale_per_row_by_magnitude():
    found = quantize_rows(W)
    assert found.scale.flatten().tolist() == [1.0, 2.0, torch.tensor(0.5 / 127).item()]
    assert found.q.tolist() == [[127, -3], [-127, 0], [127, 64]]  # 0.25 is 63.5 steps: to even


def test_a_row_without_positive_entries_keeps_its_sign():
    found = quantize_rows(torch.tensor([[-4.0, -2.0]]))
    assert (found.scale > 0).all()
    assert (found.dequantize() < 0).all()


def test_splits_are_their_parts_quantized_alone():
    found = quantize_splits(W, (1, 2))
    first, rest = quantize_tensor(W[:1]), quantize_tensor(W[1:])
    assert torch.equal(found.q, torch.cat([first.q, rest.q]))
    assert found.scale.flatten().tolist() == [first.scale.item(), rest.scale.item(), rest.scale.item()]


def test_the_digest_follows_every_integer():
    a = quantize_tensor(W)
    changed = a.q.clone()
    changed[2, 1] += 1
    assert a.digest == quantize_tensor(W * 1.0).digest
    assert a.digest != type(a)(changed, a.scale).digest
