"""How faults are planted: patches on behaviour at the seams of the architecture."""

from __future__ import annotations

import ast
import inspect
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import replace
from types import ModuleType
from typing import Any
from unittest.mock import patch

from torch import Tensor

from quambench.calibration.scales import Calibration
from quambench.grids import hadamard
from quambench.grids.granularity import GRANULARITIES, Layout
from quambench.int8 import fuse, weights
from quambench.int8.model import QuantizedModel
from quambench.models.backbone import LanguageModel
from quambench.observers import Batch, ObserverSpec
from quambench.observers import percentile as quantiles
from quambench.observers.percentile import Percentile
from quambench.policy import Plan, Policy
from quambench.run import runner


def planted(owner: Any, name: str, spoilt: Any) -> AbstractContextManager[Any]:
    """Have `spoilt` in place of what `owner`, a class or a module, calls by this name.

    A function, class or constant of the module itself is spoilt for every module that imports it, as it would be if its
    source were. What the module only imports is spoilt there alone: one of its callers calls the wrong thing.
    """

    @contextmanager
    def plant() -> Iterator[None]:
        with ExitStack() as stack:
            for each in _those_who_call(owner, name):
                stack.enter_context(patch.object(each, name, spoilt))
            yield

    return plant()


def _those_who_call(owner: Any, name: str) -> list[Any]:
    original = getattr(owner, name)
    is_named = isinstance(original, type) or hasattr(original, "__qualname__")
    if not isinstance(owner, ModuleType) or (is_named and original.__module__ != owner.__name__):
        return [owner]
    ours = [m for module, m in sys.modules.items() if module.split(".")[0] in ("quambench", "quambench_kernels")]
    holders = [m for m in ours if vars(m).get(name) is original]
    return [m for m in holders if is_named or m is owner or _imports(m, owner, name)]


def _imports(module: ModuleType, owner: ModuleType, name: str) -> bool:
    """Whether a module has a constant from there: another's own 1 is the same object."""
    statements = ast.walk(ast.parse(inspect.getsource(module)))
    return any(
        f"{owner.__name__}.".startswith(f"{one.module}.") and any(alias.name == name for alias in one.names)
        for one in statements
        if isinstance(one, ast.ImportFrom)
    )


def wrapped(owner: Any, name: str, spoil: Callable[..., Any]) -> AbstractContextManager[Any]:
    original = getattr(owner, name)
    return planted(owner, name, lambda *args, **kw: spoil(original, *args, **kw))


def after(module: Any, name: str, spoil: Callable[[LanguageModel], Any]) -> AbstractContextManager[Any]:
    original = getattr(module, name)

    def both(model: LanguageModel) -> None:
        original(model)
        spoil(model)

    return planted(module, name, both)


def after_init(spoil: Callable[[QuantizedModel], None]) -> AbstractContextManager[Any]:
    original = QuantizedModel.__init__

    def both(self: QuantizedModel, *args: Any, **kw: Any) -> None:
        original(self, *args, **kw)
        spoil(self)

    return planted(QuantizedModel, "__init__", both)


def as_if(**changes: Any) -> AbstractContextManager[Any]:
    """The INT8 runtime reads another config than the model's."""

    def misread(model: QuantizedModel) -> None:
        for block in model.blocks:
            block.config = replace(block.config, **changes)

    return after_init(misread)


def at_eight_bits(owner: Any) -> AbstractContextManager[Any]:
    """Weights come at 8 bits to whoever asks `owner`, whatever was asked."""

    @contextmanager
    def plant() -> Iterator[None]:
        with ExitStack() as stack:
            for name in ("quantize_tensor", "quantize_rows"):
                whole = getattr(weights, name)
                stack.enter_context(planted(owner, name, lambda w, bits=8, *more, whole=whole: whole(w, 8, *more)))
            splits = weights.quantize_splits
            stack.enter_context(
                planted(owner, "quantize_splits", lambda w, sizes, bits=8, *more: splits(w, sizes, 8, *more))
            )
            yield

    return plant()


def quantile(spoilt: Callable[[Batch, float, Any], Tensor]) -> AbstractContextManager[Any]:
    original = quantiles.upper_quantile
    return planted(quantiles, "upper_quantile", lambda batch, alpha: spoilt(batch, alpha, original))


def batch_of(x: Tensor | Batch, signed: bool = False) -> Batch:
    batch = x if isinstance(x, Batch) else Batch(x)
    if signed:
        batch.__dict__["magnitude"] = batch.x
    return batch


def relaid(name: str, lay_out: Any = None, expand: Any = None) -> AbstractContextManager[Any]:
    """A granularity with lay_out(right layout, x) or expand(right layout, scale) in place of its own."""
    make = GRANULARITIES[name]

    def spoilt(site: str, config: Any) -> Layout:
        right = make(site, config)
        return Layout(
            (lambda x: lay_out(right, x)) if lay_out else right.lay_out,
            (lambda scale: expand(right, scale)) if expand else right.expand,
            right.join,
        )

    return patch.dict(GRANULARITIES._entries, {name: spoilt})


def planned(policy: type[Policy], change: Callable[[Plan, ObserverSpec], Plan]) -> AbstractContextManager[Any]:
    """Change what a policy plans."""
    original = policy.plan

    def plan(self: Policy, config: Any, observer: ObserverSpec, *more: Any) -> Plan:
        return change(original(self, config, observer, *more), observer)

    return planted(policy, "plan", plan)


def update(spoilt: Callable[[Any, Any, Tensor, int], None]) -> AbstractContextManager[Any]:
    """spoilt(original, observer, batch, calls before) for percentiles; weights, a single batch, take the maximum."""
    original = Percentile.update

    def update(self: Any, x: Any) -> None:
        calls = getattr(self, "calls", 0)
        self.calls = calls + 1
        spoilt(original, self, x, calls)

    return planted(Percentile, "update", update)


def scales(change: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> AbstractContextManager[Any]:
    """Change what `calibrate` returns."""

    def spoilt(original: Callable[..., Mapping[Any, Calibration]], *args: Any, **kw: Any) -> Mapping[Any, Calibration]:
        return {k: replace(c, scales=change(dict(c.scales))) for k, c in original(*args, **kw).items()}

    return wrapped(runner, "calibrate", spoilt)


def spoilt_batch(value: float) -> AbstractContextManager[Any]:
    calls = 0

    def lay_out(right: Layout, x: Tensor) -> tuple[Tensor, ...]:
        nonlocal calls
        calls += 1
        (out,) = right.lay_out(x.clone())
        if calls == 40:
            out.flatten()[0] = value
        return (out,)

    return relaid("tensor", lay_out=lay_out)


def without_gain(norms: Callable[[LanguageModel], list[Any]]) -> AbstractContextManager[Any]:
    original = fuse.fuse_gains

    def forgetful(model: LanguageModel) -> None:
        for norm in norms(model):
            norm.weight.fill_(1.0)
        original(model)

    return planted(fuse, "fuse_gains", forgetful)


def unrotate(weight: Tensor) -> Tensor:
    return weight @ hadamard.hadamard_matrix(weight.shape[-1], weight.dtype)


def split_by_two(original: Any) -> Any:
    def split(self: Tensor, size: Any, dim: int = 0) -> Any:
        return original(self, 2 if size == 1 and dim == 0 else size, dim)

    return split
