"""By which rules kernels are judged.

Floats: the error against float64 is at most twice that of the plain float32 expression on the same
numbers, or what a few roundings leave. Integers that float arithmetic precedes: equal to those of the
float64 value, or one step away where that value lies within the float32 error of a rounding tie.
"""

from __future__ import annotations

import pytest
import torch
from quambench_kernels import dispatch
from quambench_kernels.dispatch import implementations
from torch import Tensor

EPS32 = torch.finfo(torch.float32).eps


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """`impl` runs over the implementations of the module's OP that a CPU can run, "auto" among them."""
    if "impl" in metafunc.fixturenames and hasattr(metafunc.module, "OP"):
        metafunc.parametrize("impl", ["auto", *_on_cpu(metafunc.module.OP)])


def _on_cpu(op: str) -> list[object]:
    entries = ((name, dispatch._known[op][name]) for name in implementations(op))
    found = []
    for name, entry in entries:
        reason = entry.why_not() if "cpu" in entry.devices else None
        if "cpu" in entry.devices and name != "triton":  # Triton's interpreter has tests of its own
            found.append(pytest.param(name, marks=pytest.mark.skip(reason=reason)) if reason else name)
    return found


class Judge:
    """The rules, and inputs that are hard on kernels."""

    @staticmethod
    def as_accurate(got: Tensor, plain: Tensor, exact: Tensor, magnitude: Tensor | None = None) -> None:
        """got float32 against exact float64, by the error of the plain float32 expression.

        In a few values that error may be small by luck, so no less is allowed than 16 roundings of
        random sign leave of the terms that a value sums, half an EPS32 each: 2 EPS32.

        magnitude  exact, with all terms positive; by default its own magnitude
        """
        assert got.dtype == torch.float32
        assert got.shape == exact.shape
        error, usual = _rms(got.double() - exact), _rms(plain.double() - exact)
        allowed = 2 * max(usual, 2 * EPS32 * _rms(exact if magnitude is None else magnitude))
        assert error <= allowed, f"error {error:.3g}, the plain expression's is {usual:.3g}"

    @staticmethod
    def rounded(q: Tensor, plain: Tensor, exact: Tensor, scale: Tensor, q_max: int = 127, most: float = 0.01) -> int:
        """q int8 against exact float64 before rounding; returns how many are one step off, at most a share of all.

        How far float32 may be off is measured: twice the plain expression's largest error in this
        input, or one rounding of each value; then the quotient is rounded once more.
        """
        assert q.dtype == torch.int8
        assert q.shape == exact.shape
        quotient = exact / scale.double()
        expected = quotient.round().clamp(-q_max - 1, q_max)
        off = (q.double() - expected).abs()
        error = 2 * (plain.double() - exact).abs().max() if exact.numel() else torch.zeros(())
        slack = torch.maximum(error, EPS32 * exact.abs()) / scale.double() + EPS32 * quotient.abs()
        to_tie = ((quotient - quotient.floor()) - 0.5).abs()
        wrong = (off > 0) & ((off > 1) | (to_tie > slack))
        assert not wrong.any(), f"{int(wrong.sum())} integers differ away from a tie, by up to {int(off[wrong].max())}"
        count = int((off > 0).sum())
        assert count <= max(1, most * q.numel()), f"{count} of {q.numel()} integers differ"
        return count

    @staticmethod
    def ints(generator: torch.Generator, *shape: int) -> Tensor:
        """int8 of every value, the ends among them."""
        q = torch.randint(-128, 128, shape, dtype=torch.int8, generator=generator)
        if q.numel() > 2:
            q.view(-1)[:2] = torch.tensor([-128, 127], dtype=torch.int8)
        return q

    @staticmethod
    def scales(generator: torch.Generator, *shape: int, about: float = 0.01) -> Tensor:
        """float32, spread over a factor of four."""
        return about * 4 ** (torch.rand(shape, generator=generator) - 0.5)

    @staticmethod
    def inside(x: Tensor, by: int = 3) -> Tensor:
        """The same values as a slice of a wider tensor: the last axis dense, the others not."""
        wide = torch.full((*x.shape[:-1], x.shape[-1] + 2 * by), 77, dtype=x.dtype)
        wide[..., by : by + x.shape[-1]] = x
        return wide[..., by : by + x.shape[-1]]


def _rms(x: Tensor) -> float:
    return x.double().square().mean().sqrt().item() if x.numel() else 0.0


@pytest.fixture(scope="session")
def judge() -> type[Judge]:
    return Judge


@pytest.fixture
def half_away(monkeypatch: pytest.MonkeyPatch):
    """Plants rounding of ties away from zero in an operation: the reference, with that rounding, runs in its place."""

    def plant(op: str, module: object, ref: object) -> object:
        def rounded(x: Tensor, scale: Tensor, q_max: int) -> Tensor:
            quotient = x / scale.to(x.dtype)
            away = quotient.sign() * (quotient.abs() + 0.5).floor()
            return away.clamp(-q_max - 1, q_max).to(torch.int8)

        monkeypatch.setattr(module, "quantize_ref", rounded)
        return dispatch.around(op, lambda run, *args: ref(*args))

    return plant
