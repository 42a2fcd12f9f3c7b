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


class Held(nn.Module, Generic[V]):
    """A frozen dataclass whose tensors are this module's buffers, by the names of its fields.

    kept  whether they are part of `state_dict()`; what derives from others is not
    """

    def __init__(self, value: V, kept: bool = True) -> None:
        super().__init__()
        self._kind, self._rest = type(value), dict[str, Any]()
        self._value: V | None = None
        for name, content in _content(value).items():
            if isinstance(content, Tensor):
                self.register_buffer(name, content, persistent=kept)
            else:
                self._rest[name] = content

    @property
    def value(self) -> V:
        """The value, of the tensors as they are now."""
        if self._value is None:
            self._value = self._kind(**self._buffers, **self._rest)
        return self._value

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        self._value = None
        applied: Self = super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return applied


def on_cpu(value: V) -> V:
    """The value with its tensors there; itself where they are."""
    away = {n: t.cpu() for n, t in _content(value).items() if isinstance(t, Tensor) and t.device.type != "cpu"}
    return cast(V, replace(cast("DataclassInstance", value), **away)) if away else value


def _content(value: object) -> dict[str, Any]:
    """The fields of a dataclass; no type says of a protocol that dataclasses alone keep it."""
    return {field.name: getattr(value, field.name) for field in fields(cast("DataclassInstance", value))}


class Grids(nn.Module):
    """Grids by the name of the site."""

    def __init__(self, grids: Mapping[str, SiteGrid]) -> None:
        super().__init__()
        self._held = nn.ModuleDict({site: Held(grid) for site, grid in grids.items()})
        self._of: Mapping[str, Held[SiteGrid]] = dict(self._held.items())  # type: ignore[arg-type]

    def __getitem__(self, site: str) -> SiteGrid:
        return self._of[site].value

    def values(self) -> Iterable[SiteGrid]:
        """Every site's, in forward order."""
        return [held.value for held in self._of.values()]
