"""Which implementation of an operation runs, by name, and a record of what ran.

"auto" takes the first implementation, in order of registration, that serves the device, can run and
is wanted there. One asked for by name runs or raises: nothing here falls back.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch


class UnavailableError(ValueError):
    """No implementation of that name, or one that cannot run here."""


@dataclass(frozen=True, slots=True)
class _Implementation:
    run: Callable[..., Any]
    devices: tuple[str, ...]
    dtypes: tuple[torch.dtype, ...] | None
    why_not: Callable[[], str | None]
    auto: Callable[[], bool]

    def obstacle(self, device: str, dtype: torch.dtype | None) -> str | None:
        if device not in self.devices:
            return f"runs on {' or '.join(self.devices)}, not on {device}"
        if dtype is not None and self.dtypes is not None and dtype not in self.dtypes:
            return f"computes in {' or '.join(str(t) for t in self.dtypes)}, not in {dtype}"
        return self.why_not()


_known: dict[str, dict[str, _Implementation]] = {}
_ran: dict[str, set[str]] = {}


def register(
    op: str,
    name: str,
    run: Callable[..., Any],
    *,
    devices: Iterable[str] = ("cpu",),
    dtypes: Iterable[torch.dtype] | None = None,
    why_not: Callable[[], str | None] = lambda: None,
    auto: Callable[[], bool] = lambda: True,
) -> None:
    """Enter `run` as an implementation of `op`; earlier entries are preferred.

    dtypes   in which it computes; None: any
    why_not  reason why it cannot run on this machine, or None; called at every dispatch, so cached
    auto     whether "auto" may take it on this machine; called at every dispatch, so cached
    """
    entries = _known.setdefault(op, {})
    if name in entries or name == "auto":
        raise ValueError(f"{op}: implementation {name!r} cannot be registered twice, or as 'auto'")
    entries[name] = _Implementation(run, tuple(devices), None if dtypes is None else tuple(dtypes), why_not, auto)


def implementations(op: str) -> list[str]:
    """Names known for `op`, preferred first, whether or not they can run here."""
    return list(_known.get(op, {}))


def resolve(op: str, impl: str, device: torch.device, dtype: torch.dtype | None = None) -> Callable[..., Any]:
    """The implementation to call now; its name is entered in `chosen()`.

    dtype  what is computed in, where that decides
    """
    entries = _known.get(op, {})
    if impl == "auto":
        name = next((n for n, e in entries.items() if e.obstacle(device.type, dtype) is None and e.auto()), None)
        if name is None:
            reasons = "; ".join(f"{n}: {e.obstacle(device.type, dtype) or 'only by name'}" for n, e in entries.items())
            what = device.type if dtype is None else f"{device.type} and {dtype}"
            raise UnavailableError(f"{op}: no implementation for {what} ({reasons})")
    elif impl in entries:
        name = impl
        reason = entries[name].obstacle(device.type, dtype)
        if reason is not None:
            raise UnavailableError(f"{op}: implementation {impl!r} is unavailable: {reason}")
    else:
        names = ", ".join(["auto", *entries])
        raise UnavailableError(f"{op}: no implementation named {impl!r}. Known: {names}")
    _ran.setdefault(op, set()).add(name)
    return entries[name].run


@contextmanager
def around(op: str, wrapper: Callable[..., Any]) -> Iterator[None]:
    """For tests and self-tests: every implementation of `op` becomes wrapper(implementation, *arguments)."""
    whole = _known[op]
    try:
        _known[op] = {name: replace(e, run=partial(wrapper, e.run)) for name, e in whole.items()}
        yield
    finally:
        _known[op] = whole


def chosen() -> dict[str, str]:
    """Operation -> the implementation that has run in this process; several are joined by "+"."""
    return {op: "+".join(sorted(names)) for op, names in sorted(_ran.items())}
