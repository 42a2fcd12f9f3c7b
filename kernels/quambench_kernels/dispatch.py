"""Dispatch: which implementation of an operation runs, by name, and a record of what ran.

"auto" takes the first implementation, in order of registration, that serves the device, can run and
is wanted there. One asked for by name runs or raises: nothing here falls back. $QUAMBENCH_KERNELS,
"ssd=triton,causal_conv1d=reference", names what "auto" is to take wherever that serves device and dtype.
"""

from __future__ import annotations

import os
import pkgutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from importlib import import_module
from typing import Any

import torch

ASKED = "QUAMBENCH_KERNELS"


class UnavailableError(ValueError):
    """An implementation that does not exist, or that cannot run here."""


@dataclass(frozen=True, slots=True)
class _Implementation:
    run: Callable[..., Any]
    devices: tuple[str, ...]
    dtypes: tuple[torch.dtype, ...] | None
    why_not: Callable[[], str | None]
    auto: Callable[[], bool]
    sizes: range | None

    def obstacle(self, device: str, dtype: torch.dtype | None) -> str | None:
        return self.serves_not(device, dtype) or self.why_not()

    def serves_not(self, device: str, dtype: torch.dtype | None) -> str | None:
        if device not in self.devices:
            return f"runs on {' or '.join(self.devices)}, not on {device}"
        if dtype is not None and self.dtypes is not None and dtype not in self.dtypes:
            return f"computes in {' or '.join(str(t) for t in self.dtypes)}, not in {dtype}"
        return None


_known: dict[str, dict[str, _Implementation]] = {}
_ran: dict[str, set[str]] = {}
# Results of `_find`, with the entries they came from: an operation is called thousands of times a second.
_able: dict[tuple[Any, ...], tuple[dict[str, _Implementation], list[tuple[str, _Implementation]]]] = {}


def register(
    op: str,
    name: str,
    run: Callable[..., Any],
    *,
    devices: Iterable[str] = ("cpu",),
    dtypes: Iterable[torch.dtype] | None = None,
    why_not: Callable[[], str | None] = lambda: None,
    auto: Callable[[], bool] = lambda: True,
    sizes: range | None = None,
) -> None:
    """Enter `run` as an implementation of `op`; earlier entries are preferred.

    dtypes   in which it computes; None: any
    why_not  reason why it cannot run on this machine, or None; asked once
    auto     whether "auto" may take it on this machine; asked once
    sizes    for which "auto" takes it, where the operation says a size; None: for all
    """
    entries = _known.setdefault(op, {})
    if name in entries or name == "auto":
        raise ValueError(f"{op}: implementation {name!r} cannot be registered twice, or as 'auto'")
    entries[name] = _Implementation(
        run, tuple(devices), None if dtypes is None else tuple(dtypes), why_not, auto, sizes
    )
    _able.clear()


def implementations(op: str) -> list[str]:
    """Return the names known for `op`, preferred first, whether or not they can run here."""
    return list(_known.get(op, {}))


def operations() -> list[str]:
    """Return the names of all operations that have been registered so far."""
    return list(_known)


def obstacle(op: str, impl: str, device: torch.device, dtype: torch.dtype | None = None) -> str | None:
    """Return why an implementation cannot run here, or None. raises UnavailableError where it is not known"""
    entry = _known.get(op, {}).get(impl)
    if entry is None:
        raise UnavailableError(f"{op}: no implementation named {impl!r}. Known: {', '.join(_known.get(op, {}))}")
    return entry.obstacle(device.type, dtype)


def resolve(
    op: str, impl: str, device: torch.device, dtype: torch.dtype | None = None, size: int | None = None
) -> Callable[..., Any]:
    """Return the implementation to call now, and enter its name in `chosen()`.

    dtype  what is computed in, where that decides
    size   how much there is to do, where that decides
    raises UnavailableError
    """
    key = (op, impl, device.type, dtype)
    entries = _known.get(op, {})
    able = _able.get(key)
    if able is None or able[0] is not entries:
        able = _able[key] = entries, _find(op, impl, device.type, dtype)
    for name, entry in able[1]:
        if size is None or entry.sizes is None or impl != "auto" or size in entry.sizes:
            ran(op, name)
            return entry.run
    raise UnavailableError(f"{op}: no implementation for {device.type} and size {size}")


def _find(op: str, impl: str, device: str, dtype: torch.dtype | None) -> list[tuple[str, _Implementation]]:
    """Return the implementations that can run and are wanted, preferred first. raises UnavailableError"""
    entries = _known.get(op, {})
    asked = _asked().get(op, "auto") if impl == "auto" else "auto"
    if asked != "auto" and (asked not in entries or not entries[asked].serves_not(device, dtype)):
        ((name, entry),) = _find(op, asked, device, dtype)
        return [(name, replace(entry, sizes=None))]
    if impl == "auto":
        found = [(n, e) for n, e in entries.items() if e.obstacle(device, dtype) is None and e.auto()]
        if not found:
            reasons = "; ".join(f"{n}: {e.obstacle(device, dtype) or 'only by name'}" for n, e in entries.items())
            what = device if dtype is None else f"{device} and {dtype}"
            raise UnavailableError(f"{op}: no implementation for {what} ({reasons})")
        return found
    if impl not in entries:
        raise UnavailableError(f"{op}: no implementation named {impl!r}. Known: {', '.join(['auto', *entries])}")
    reason = entries[impl].obstacle(device, dtype)
    if reason is not None:
        raise UnavailableError(f"{op}: implementation {impl!r} is unavailable: {reason}")
    return [(impl, entries[impl])]


def _asked() -> dict[str, str]:
    """Return operation -> implementation, of $QUAMBENCH_KERNELS. raises UnavailableError"""
    pairs = [part.partition("=") for part in os.environ.get(ASKED, "").split(",") if part.strip()]
    if not all(op and sign and name for op, sign, name in pairs):
        raise UnavailableError(f"${ASKED} must read operation=implementation,... (got {os.environ[ASKED]!r})")
    return {op.strip(): name.strip() for op, _, name in pairs}


def check_asked() -> None:
    """Check that all that $QUAMBENCH_KERNELS names exists. raises UnavailableError"""
    asked = _asked()
    if asked:
        for package in pkgutil.iter_modules(import_module(__package__).__path__):
            if package.ispkg:
                import_module(f"{__package__}.{package.name}")  # which registers what it has
    for op, name in asked.items():
        if op not in _known:
            raise UnavailableError(f"${ASKED} names no operation: {op!r}. Known: {', '.join(sorted(_known))}")
        if name not in ("auto", *_known[op]):
            raise UnavailableError(
                f"${ASKED} names no implementation of {op}: {name!r}. Known: {', '.join(_known[op])}"
            )


def ran(op: str, name: str) -> None:
    """Enter an implementation that runs in `chosen()`."""
    _ran.setdefault(op, set()).add(name)


@contextmanager
def around(op: str, wrapper: Callable[..., Any], only: str = "") -> Iterator[None]:
    """Replace every implementation of `op`, or the one named, by wrapper(implementation, *arguments); for tests.

    Kernels that do int8_linear's product and its finish at once are left out: the two then run one after the other.
    """
    whole = _known[op]
    try:
        _known[op] = {
            name: replace(e, run=partial(wrapper, e.run)) if only in ("", name) else e for name, e in whole.items()
        }
        yield
    finally:
        _known[op] = whole


def chosen() -> dict[str, str]:
    """Return operation -> the implementation that has run in this process; several are joined by "+"."""
    return {op: "+".join(sorted(names)) for op, names in sorted(_ran.items())}
