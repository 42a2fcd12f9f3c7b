"""Observers from outside: `module:Class`, or an entry point of the group `quambench.observers`.

The class is a subclass of Observer, or has Quamba's own interface; `adapted` puts the latter behind
Observer's.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass, field, make_dataclass
from functools import cache
from typing import Any, ClassVar

import torch
from torch import Tensor

from quambench.core.errors import BadParameter, NonFinite, SiteUnseen
from quambench.core.plugins import Kind, calling, one_line
from quambench.grids.grid import MIN_SCALE, q_max
from quambench.observers.base import OBSERVERS, Observer
from quambench.observers.batch import Batch

OBSERVER = Kind("observer")
INTERFACE = ("update", "get_quantization_parameters")


def find_outside(name: str) -> type[Observer]:
    """Return the class behind `module:Class` or behind an installed entry point.

    raises UnknownName, BadParameter: each says in one line what is wrong
    """
    found = _class_named(name)
    made: type[Observer] = found if Observer in found.__mro__ else adapted(found)
    if made.observe is Observer.observe and made.take is Observer.take:
        raise BadParameter(f"{name} must give observe, or take and threshold, as every Observer does")
    OBSERVER.used(name, found)
    return made


def _class_named(name: str) -> type:
    found: Any = OBSERVER.find(name, OBSERVERS, OBSERVERS.home, "Class")
    if not inspect.isclass(found):
        raise BadParameter(f"{name} must be a class (got {type(found).__name__})")
    return found


@dataclass
class Adapter(Observer):
    """An object with Quamba's interface, `update(w)` and `get_quantization_parameters()`, as an observer.

    It makes one scale per tensor. A subclass per class from outside (`adapted`) has that class's parameters
    as its fields. Source of the interface: Quamba (c474646), quamba/observer.py.
    """

    order_matters: ClassVar[bool] = True
    outside: ClassVar[type]

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, parameter in _settable(self.outside).items():
            setattr(self, name, _whole(getattr(self, name), parameter.default))
        self.inner = self._fresh()

    def _fresh(self) -> Any:
        """Return an object that has seen nothing. raises BadParameter"""
        signature = inspect.signature(self.outside).parameters
        fixed = {"n_bits": self.bits, "bits": self.bits, "sym": True, "clip_ratio": self.clip_ratio}
        arguments = {name: value for name, value in fixed.items() if name in signature}
        for name, parameter in _settable(self.outside).items():
            value = getattr(self, name)
            if value is not None:
                arguments[name] = bool(value) if isinstance(parameter.default, bool) else value
            elif parameter.default is parameter.empty:
                raise BadParameter(f"{_name(self.outside)} needs a value for {name}: write [{name}=number]")
        try:
            return self.outside(**arguments)
        except Exception as error:  # its complaints are about the parameters, so the user reads them
            raise BadParameter(f"{_name(self.outside)} cannot be made: {one_line(error)}") from error

    def take(self, batch: Batch) -> None:
        """Hand the object a copy of the values, (n_obs, group) float32, signed and contiguous, which it may change.

        raises BadParameter at a granularity with more than one scale
        """
        if batch.x.ndim != 2:
            shape = tuple(batch.x.shape[1:-1])
            raise BadParameter(f"{_name(self.outside)} makes one scale per tensor (got a layout of {shape} scales)")
        with calling(f"{_name(self.outside)}.update"):
            self.inner.update(batch.x.clone(memory_format=torch.contiguous_format))

    def grid_end(self) -> Tensor:
        return self.scale().double() * q_max(self.bits)

    def scale(self) -> Tensor:
        """Return () float32, the object's own scale, but at least the grid's MIN_SCALE.

        raises SiteUnseen; NonFinite; BadParameter when the scale is not one positive number or the
        zero point not 0
        """
        if self.n_batches == 0:
            raise SiteUnseen("the observer saw no data")
        asked = f"{_name(self.outside)}.get_quantization_parameters()"
        with calling(asked):
            found = self.inner.get_quantization_parameters()
        try:
            scale, base = (torch.as_tensor(part).detach().cpu() for part in found)
        except (TypeError, ValueError, RuntimeError) as error:
            raise BadParameter(f"{asked} must return (scales, base), two numbers: {one_line(error)}") from error
        if (base != 0).any():
            got = base[base != 0][0].item()
            raise BadParameter(f"{asked}: base must be 0, the runtime's grid being symmetric (got {got:g})")
        if scale.numel() != 1:
            raise BadParameter(f"{asked}: scales must be one number (got shape {tuple(scale.shape)})")
        scale = scale.reshape(()).float()
        if not scale.isfinite():
            raise NonFinite(f"{asked}: the scale is {scale.item()}")
        if scale <= 0:
            raise BadParameter(f"{asked}: the scale must be positive (got {scale.item():g})")
        if "clip_ratio" not in inspect.signature(self.outside).parameters:
            scale = scale * self.clip_ratio
        return scale.clamp(min=MIN_SCALE)

    def state_dict(self) -> dict[str, Tensor]:
        """Return the object's tensors and numbers.

        raises BadParameter when it remembers anything else, which could not be saved
        """
        state = {"n_batches": torch.tensor(self.n_batches)}
        for name, value in vars(self.inner).items():
            if isinstance(value, Tensor):
                state[f"tensor.{name}"] = value.detach().clone()
            elif isinstance(value, float):
                state[f"number.{name}"] = torch.tensor(value, dtype=torch.float64)
            elif isinstance(value, int):
                state[f"number.{name}"] = torch.tensor(value)
            elif not isinstance(value, str | None):
                kind = type(value).__name__
                raise BadParameter(f"{_name(self.outside)} keeps {name}, a {kind}; only tensors and numbers are saved")
        return state

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.n_batches = int(state["n_batches"])
        self.inner = self._fresh()
        for key, value in state.items():
            kind, _, name = key.partition(".")
            if kind in ("tensor", "number"):
                setattr(self.inner, name, value.clone() if kind == "tensor" else value.item())


@cache
def adapted(kind: type) -> type[Observer]:
    """Return the Adapter of a class with Quamba's interface, its numeric parameters as fields.

    raises BadParameter when a method is missing
    """
    lacking = [method for method in INTERFACE if not callable(getattr(kind, method, None))]
    if lacking:
        wanted = f"a subclass of quambench.observers.Observer, or have {' and '.join(INTERFACE)}"
        raise BadParameter(f"{_name(kind)} must be {wanted} (it lacks {' and '.join(lacking)})")
    parameters = [(n, float, field(default=_default(p), kw_only=True)) for n, p in _settable(kind).items()]
    about = {
        "__doc__": kind.__doc__,
        "__module__": kind.__module__,
        "outside": kind,
        "order_matters": getattr(kind, "order_matters", True),
    }
    return make_dataclass(kind.__name__, parameters, bases=(Adapter,), namespace=about)


def _settable(kind: type) -> dict[str, inspect.Parameter]:
    """Return the parameters that a spec may set: numbers that neither we fix nor Adapter uses the name of."""
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    fixed = {"n_bits", "bits", "sym", "clip_ratio", "amax", "n_batches", "inner", *dir(Adapter), "outside"}
    return {
        name: p
        for name, p in inspect.signature(kind).parameters.items()
        if name not in fixed and p.kind in named and (p.default is p.empty or isinstance(p.default, int | float | None))
    }


def _default(parameter: inspect.Parameter) -> float | None:
    """Return a parameter's default; None where there is none, and then nothing is passed."""
    return None if parameter.default is parameter.empty else parameter.default


def _whole(value: float | None, default: object) -> float | None:
    """Return a whole number of a spec as an int, unless the signature's default is a float: a spec's numbers are
    floats.
    """
    if value is None or isinstance(default, float) or not float(value).is_integer():
        return value
    return int(value)


def _name(kind: type) -> str:
    return f"{kind.__module__}:{kind.__qualname__}"
