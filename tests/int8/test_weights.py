"""Weights on the grid, by hand."""

from __future__ import annotations

import pytest
import torch

from quambench.int8.weights import quantize_rows, quantize_splits, quantize_tensor

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


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_round_trips_are_within_half_a_step_of_their_own_scale(bits):
    w = torch.randn(6, 10, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    w[2] *= 100  # an outlier row: only its own run may suffer
    for found in (quantize_tensor(w, bits), quantize_rows(w, bits), quantize_splits(w, (2, 1, 3), bits)):
        # The largest magnitude is q_max steps, to the rounding of the scale to float32.
        steps = 0.5 + 2 ** (bits - 1) * torch.finfo(torch.float32).eps
        assert ((w - found.q.double() * found.scale.double()).abs() <= steps * found.scale).all()
    quiet = quantize_splits(w, (2, 1, 3), bits).scale.flatten()
    assert quiet[0] == quiet[1] == quantize_tensor(w[:2], bits).scale
    assert quiet[3] == quiet[5] == quantize_tensor(w[3:], bits).scale


def test_splits_of_a_vector_are_scales_per_entry():
    found = quantize_splits(torch.tensor([127.0, 1.0, -254.0]), (2, 1))
    assert found.scale.tolist() == [1.0, 1.0, 2.0]
    assert found.dequantize().tolist() == [127.0, 1.0, -254.0]


def test_a_row_of_zeros_has_a_legal_scale():
    found = quantize_rows(torch.tensor([[0.0, 0.0], [1.0, 2.0]]))
    assert (found.scale > 0).all()
    assert found.q[0].tolist() == [0, 0]


def test_the_digest_follows_every_integer():
    a = quantize_tensor(W)
    changed = a.q.clone()
    changed[2, 1] += 1
    assert a.digest == quantize_tensor(W * 1.0).digest
    assert a.digest != type(a)(changed, a.scale).digest
