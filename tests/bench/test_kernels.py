"""What is timed is what a run would do: both sides of a row compute the same thing, and rows are named once."""

from collections import Counter

import pytest
import torch

from quambench.bench import kernels
from quambench.bench.bars import working_bytes
from quambench.bench.interleave import interleaved
from quambench.bench.kernels import SHAPES, Rates, Row, Shape, rows

SMALL = {"small-mamba": Shape("small-mamba", 24, 48, 4), "small": Shape("small", 32, 64, 8, groups=2, heads=8)}


@pytest.fixture(params=SMALL)
def small(request, monkeypatch):
    monkeypatch.setattr(kernels, "SHAPES", SMALL)
    monkeypatch.setattr(kernels, "PREFILL", 9)
    return list(rows([request.param]))


def test_every_operation_of_every_shape_has_a_row():
    names = [row.name for row in rows()]
    assert max(Counter(names).values()) == 1
    for shape in SHAPES:
        scan = "selective_scan" if shape == "mamba-130m" else "ssd"
        for op in ("int8_linear", "int8_causal_conv1d", f"int8_{scan}", scan, "hadamard_quantize",
                   "rms_norm_quantize", "int8_embedding"):  # fmt: skip
            for at in ("prefill 512", "decode 1"):
                assert any(n.startswith(op) and n.endswith(f"{shape}, {at}") for n in names), (op, shape, at)
    assert any("16x16 by walking, mamba2-8b" in name for name in names)


def test_both_sides_compute_one_thing(small):
    for row in small:
        results = [first(call()) for call in row.make()]
        assert results[0].numel() == results[1].numel(), row.name
        if not row.name.startswith("int8_linear"):
            assert not torch.equal(results[0].float(), torch.zeros_like(results[0].float())), row.name
        if "by walking" in row.name or "by table" in row.name:
            assert torch.equal(*results), row.name  # scales are equal, so results are
        if row.name.startswith(("int8_selective_scan", "int8_ssd", "int8_embedding", "selective_scan", "ssd")):
            # Sums in other orders differ by 1e-6 of the largest, another function by as much as it is large.
            got, want = results
            torch.testing.assert_close(got, want.view(got.shape), rtol=1e-3, atol=1e-3 * want.abs().max().item())


def first(result):
    return result[0] if isinstance(result, tuple) else result


def test_shares_of_what_decides():
    rates = Rates(copied=10e9, multiplied=100e9)
    moved, multiplied, neither = (Row("r", "", lambda: None, **kind) for kind in ({"moved": 10**6},
                                                                               {"multiplied": 10**8}, {}))  # fmt: skip
    assert rates.share(moved, 1e-3) == pytest.approx(0.1)
    assert rates.share(multiplied, 2e-3) == pytest.approx(0.5)
    assert rates.share(neither, 1.0) is None


def test_rows_can_be_timed(small):
    for row in small[:2]:
        found = interleaved(*row.make(), rounds=6)
        assert 0 < found.low <= found.value <= found.high


def test_working_memory_is_seen():
    """64 MiB that a call takes and leaves; twice that where it takes two at once."""
    if working_bytes(lambda: None) is None:
        pytest.skip("this system does not tell how far a process grows")
    one = working_bytes(lambda: torch.ones(16 << 20).sum())
    two = working_bytes(lambda: (torch.ones(16 << 20) + 1).sum())
    assert 60 <= one / 2**20 < 96
    assert 120 <= two / 2**20 < 160
