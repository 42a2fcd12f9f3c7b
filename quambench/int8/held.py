"""Frozen values of tensors, grids and weights, as parts of a torch module: they move with it and are in its state."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any, Generic, Self, TypeVar, cast

from torch import Tensor, nn

from quambench.int8.site_grid import SiteGrid

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

V = TypeVar("V")


class Part(nn.Module):
    """A module whose buffers and parts are found as plain attributes are.

    torch looks them up by a function in Python. A decoding step asks for thousands: of 24 narrow layers that function
    was a fifth of the time.
    """

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        if name in self._buffers or name in self._modules:
            self.__dict__[name] = value

    def register_buffer(self, name: str, tensor: Tensor | None, persistent: bool = True) -> None:
        super().register_buffer(name, tensor, persistent)
        self.__dict__[name] = tensor

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        applied: Self = super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self.__dict__.update(self._buffers)
        return applied


class Held(Part, Generic[V]):
    """A frozen dataclass whose tensors are this module's buffers, by the names of its fields.

    value  the dataclass, of the tensors as they are now
    kept   whether they are part of `state_dict()`; what derives from others is not
    """

    def __init__(self, value: V, kept: bool = True) -> None:
        super().__init__()
        self.value = value
        for name, content in content_of(value).items():
            if isinstance(content, Tensor):
                self.register_buffer(name, content, persistent=kept)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        super()._apply(fn, recurse)
        self.value = cast(V, replace(cast("DataclassInstance", self.value), **self._buffers))
        return self


def on_cpu(value: V) -> V:
    """The value with its tensors there; itself where they are."""
    away = {n: t.cpu() for n, t in content_of(value).items() if isinstance(t, Tensor) and t.device.type != "cpu"}
    return cast(V, replace(cast("DataclassInstance", value), **away)) if away else value


def content_of(value: object) -> dict[str, Any]:
    """Return the fields of a dataclass by name; no type says of a protocol that dataclasses alone keep it."""
    return {field.name: getattr(value, field.name) for field in fields(cast("DataclassInstance", value))}


class Grids(Part):
    """Grids by the name of the site."""

    def __init__(self, grids: Mapping[str, SiteGrid]) -> None:
        super().__init__()
        self._held = {site: Held(grid) for site, grid in grids.items()}
        self._parts = nn.ModuleDict(self._held)  # what moves them

    def __getitem__(self, site: str) -> SiteGrid:
        return self._held[site].value

    def values(self) -> Iterable[SiteGrid]:
        """Every site's, in forward order."""
        return [held.value for held in self._held.values()]
