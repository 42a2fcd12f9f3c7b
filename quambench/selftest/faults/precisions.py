"""Faults in precisions: weights alone, activations alone, and mixes by layer."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import replace
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from quambench.grids.precision import Bits, Precision
from quambench.int8 import w4
from quambench.int8.block import QuantizedBlock
from quambench.int8.ops import QuantizedLinear
from quambench.int8.recipe import WeightQuantizer
from quambench.int8.weights import quantize_rows
from quambench.selftest.faults.base import ONE, OTHER, fault
from quambench.selftest.faults.planting import planted, wrapped

# --- mixes ----------------------------------------------------------------------------------------------

OF_FIVE = "percentile/mix[w8a8,w4a16,w8a16,w4a8,w8a8]/weights=group"
OF_FOUR = "percentile/mix[w8a8,w4a16,w8a16,w4a8]/weights=group"
ENDS = "percentile/mix[w8a8,w8a16*2,w8a8]"


@fault("a mix read one layer off", "", "layers.0.in_proj.weight", case=OF_FOUR, architectures=OTHER)
def _() -> AbstractContextManager[Any]:
    def next_one(original: Callable[..., Bits], self: Precision, layer: int | None) -> Bits:
        return original(self, layer if layer is None or not self.layers else (layer + 1) % len(self.layers))

    return wrapped(Precision, "of", next_one)


@fault("a mix's first layer speaks for all", "", "layers.1.in_proj.weight", case=OF_FIVE, architectures=ONE)
def _() -> AbstractContextManager[Any]:
    return wrapped(Precision, "of", lambda original, self, layer: original(self, layer and 0))


@fault("a mix's embedding gets the recipe's bits", "", "embedding.weight", case=OF_FIVE, architectures=ONE)
def _() -> AbstractContextManager[Any]:
    return wrapped(WeightQuantizer, "rows", lambda original, self, weight, bits=None: original(self, weight))


@fault("layers of a mix that are float get grids", "", "layers.1.in_proj:input", case=ENDS, architectures=OTHER)
def _() -> AbstractContextManager[Any]:
    return planted(Precision, "has_grid", lambda self, site: True)


# --- weights alone --------------------------------------------------------------------------------------

W4A16 = "percentile/w4a16/weights=group"


@fault("w4a16 with weights of 8 bits", "", "layers.0.in_proj.weight", case=W4A16, architectures=ONE)
def _() -> AbstractContextManager[Any]:
    return planted(WeightQuantizer, "projection", lambda self, name, weight, *more: quantize_rows(weight))


@fault("w4a16 with W4A8's second scale", "", "layers.0.in_proj.weight", case=W4A16, architectures=OTHER)
def _() -> AbstractContextManager[Any]:
    def twice(original: Any, self: WeightQuantizer, *args: Any) -> Any:
        found = original(self, *args)
        return w4.to_int8(found) if isinstance(found, w4.GroupedWeight) else found

    return wrapped(WeightQuantizer, "projection", twice)


@fault("w4a16 rounds what is in no group", "", "layers.0.conv1d.weight", case=W4A16, architectures=ONE)
def _() -> AbstractContextManager[Any]:
    return planted(WeightQuantizer, "_other_bits", 8)


@fault("w4a16 carries a state of integers", "", "layers.0.ssm_state", case=W4A16, architectures=OTHER)
def _() -> AbstractContextManager[Any]:
    def rounded(original: Callable[..., Tensor], self: QuantizedBlock, ssm: Tensor, tap: Any) -> Tensor:
        step = ssm.abs().amax() / 127
        return original(self, (ssm / step).round() * step, tap)

    return wrapped(QuantizedBlock, "store_state", rounded)


@fault(
    "w8a16 rounds activations all the same", "", "layers.0.in_proj:input", case="percentile/w8a16", architectures=OTHER
)
def _() -> AbstractContextManager[Any]:
    @contextmanager
    def plant() -> Iterator[None]:
        with ExitStack() as stack:
            stack.enter_context(planted(Precision, "has_grid", lambda self, site: True))
            stack.enter_context(planted(Precision, "grid_bits", 8))
            yield

    return plant()


# --- activations alone ----------------------------------------------------------------------------------

W16A8 = "percentile/w16a8"


@fault("w16a8 rounds weights all the same", "", "layers.0.in_proj.weight", case=W16A8, architectures=ONE)
def _() -> AbstractContextManager[Any]:
    def of_eight(original: Any, self: WeightQuantizer, *args: Any, **more: Any) -> Any:
        return original(replace(self, bits=Bits(8, self.bits.acts)), *args, **more)

    return wrapped(WeightQuantizer, "narrow", of_eight)


@fault("float weights meet integers without their scale", "", "layers.0.z", case=W16A8, architectures=OTHER)
def _() -> AbstractContextManager[Any]:
    def unscaled(original: Any, self: QuantizedLinear, x_q: Tensor) -> Tensor:
        return original(self, x_q) if self.floats is None else F.linear(x_q.float() / 64, self.floats, self.bias)

    return wrapped(QuantizedLinear, "forward", unscaled)
