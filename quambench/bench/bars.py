"""Bars for whole models: ratios of what they cost to what they should cost, where smaller is better, with limits."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from quambench.bench.interleave import Call, Ratio, interleaved
from quambench.bench.kernels import SHAPES, conv_by_table, conv_eager
from quambench.bench.models import Pair, n_bytes, pair, transformers_model
from quambench.core.memory import give_back

# Limits of the issue that asked for kernels; where it says "times as fast", the reciprocal.
OVER_TRANSFORMERS = {"mamba-130m": 1 / 2.5, "mamba2-130m": 1 / 1.8}
OVER_PRODUCTS = {"mamba-130m": 1.7, "mamba2-130m": 1.5}
INT8_OVER_FLOAT = 1 / 2
BYTES_OVER_FLOAT = 0.35
TABLE_OVER_ONE_SCALE = 1.05
CONV_OVER_EAGER = 1 / 3
TRANSFORMERS_ROUNDS = 21  # of three to five seconds each


@dataclass(frozen=True, slots=True)
class Bar:
    """A ratio and its limit; the upper end of the ratio's interval has to be below it.

    ratio  None where it could not be measured; `why` says why
    """

    name: str
    of: str
    ratio: Ratio | None
    limit: float | None
    why: str = ""

    @property
    def met(self) -> bool | None:
        """Whether the interval lies under the limit; None without a limit, or a measurement."""
        return None if self.limit is None or self.ratio is None else self.ratio.high <= self.limit


@dataclass(frozen=True, slots=True)
class Memory:
    """The bytes that a model keeps, and those that a forward of 512 tokens takes beside them at its peak (None:
    unknown).
    """

    name: str
    kept: int
    working: int | None


def conv_bars() -> Iterator[Bar]:
    """Yield the bars of the convolution, at Mamba2's width."""
    shape = SHAPES["mamba2-130m"]
    ratio = interleaved(*conv_by_table(shape, 512), rounds=101)
    yield Bar("int8_causal_conv1d, a scale per channel", "one scale", ratio, TABLE_OVER_ONE_SCALE)
    ratio = interleaved(*conv_eager(shape, 512))
    yield Bar("int8_causal_conv1d", "eager PyTorch", ratio, CONV_OVER_EAGER)


def model_bars(name: str) -> Iterator[Bar | Memory]:
    """Yield the bars of a model in models.CONFIGS, one at a time, as they are measured."""
    made = pair(name)
    floating, quantized = made.floating, made.quantized
    yield from _against_transformers(name, made)
    ratio = interleaved(made.prefill(floating), made.products())
    yield Bar(f"{name}: float prefill", "its bare products", ratio, OVER_PRODUCTS[name])
    ratio = interleaved(made.prefill(quantized), made.prefill(floating))
    yield Bar(f"{name}: INT8 prefill", "float prefill", ratio, INT8_OVER_FLOAT)
    ratio = interleaved(made.prefill(quantized), made.products(integer=True))
    yield Bar(f"{name}: INT8 prefill", "its bare INT8 products", ratio, None)
    ratio = interleaved(made.step(quantized), made.step(floating))
    yield Bar(f"{name}: INT8 step", "float step", ratio, INT8_OVER_FLOAT)
    ratio = interleaved(made.step(quantized), made.products(integer=True, rows=1))
    yield Bar(f"{name}: INT8 step", "its bare INT8 products", ratio, None)
    kept = [n_bytes(floating), n_bytes(quantized)]
    share = kept[1] / kept[0]
    yield Bar(f"{name}: INT8 bytes", "float bytes", Ratio(share, share, share, 0.0, 0.0, 1), BYTES_OVER_FLOAT)
    yield Memory(f"{name}, float32", kept[0], working_bytes(made.prefill(floating)))
    yield Memory(f"{name}, INT8", kept[1], working_bytes(made.prefill(quantized)))


def _against_transformers(name: str, made: Pair) -> Iterator[Bar]:
    theirs = transformers_model(made.config)
    ratio = theirs and interleaved(made.prefill(made.floating), made.prefill(theirs), rounds=TRANSFORMERS_ROUNDS)
    why = "" if theirs else "transformers is not installed"
    yield Bar(f"{name}: float prefill", "transformers", ratio, OVER_TRANSFORMERS[name], why)


def working_bytes(call: Call) -> int | None:
    """Return how far the process grows while a call runs; None where the system does not tell (only Linux does).

    The first run is not measured: it allocates what stays.
    """
    call()
    gc.collect()
    give_back()
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak starts anew here
        before = _kilobytes("VmRSS")
        call()
        return (_kilobytes("VmHWM") - before) * 1024
    except (OSError, StopIteration):
        return None


def _kilobytes(field: str) -> int:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return int(next(line for line in lines if line.startswith(f"{field}:")).split()[1])
