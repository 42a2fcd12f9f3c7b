"""Which implementation of an operation runs, by name, and a record of what ran.

"auto" takes the first implementation, in order of registration, that serves the device, can run and
is wanted there. One asked for by name runs or raises: nothing here falls back.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor


class UnavailableError(ValueError):
    """No implementation of that name, or one that cannot run here."""


@dataclass(frozen=True, slots=True)
class _Implementation:
    run: Callable[..., Tensor]
    devices: tuple[str, ...]
    why_not: Callable[[], str | None]
    auto: Callable[[], bool]

    def obstacle(self, device: str) -> str | None:
        if device not in self.devices:
            return f"runs on {' or '.join(self.devices)}, not on {device}"
        return self.why_not()


_known: dict[str, dict[str, _Implementation]] = {}
_ran: dict[str, set[str]] = {}


def register(
    op: str,
    name: str,
    run: Callable[..., Tensor],
    *,
    devices: Iterable[str] = ("cpu",),
    why_not: Callable[[], str | None] = lambda: None,
    auto: Callable[[], bool] = lambda: True,
) -> None:
    """Enter `run` as an implementation of `op`; earlier entries are preferred.

    why_not  reason why it cannot run on this machine, or None; called at every dispatch, so cached
    auto     whether "auto" may take it on this machine; called at every dispatch, so cached
    """
    entries = _known.setdefault(op, {})
    if name in entries or name == "auto":
        raise ValueError(f"{op}: implementation {name!r} cannot be registered twice, or as 'auto'")
    entries[name] = _Implementation(run, tuple(devices), why_not, auto)


def implementations(op: str) -> list[str]:
    """Names known for `op`, preferred first, whether or not they can run here."""
    return list(_known.get(op, {}))


def resolve(op: str, impl: str, device: torch.device) -> Callable[..., Tensor]:
    """The implementation to call now; its name is entered in `chosen()`."""
    entries = _known.get(op, {})
    if impl == "auto":
        name = next((n for n, e in entries.items() if e.obstacle(device.type) is None and e.auto()), None)
        if name is None:
            reasons = "; ".join(f"{n}: {e.obstacle(device.type) or 'only by name'}" for n, e in entries.items())
            raise UnavailableError(f"{op}: no implementation for {device.type} ({reasons})")
    elif impl in entries:
        name = impl
        reason = entries[name].obstacle(device.type)
        if reason is not None:
            raise UnavailableError(f"{op}: implementation {impl!r} is unavailable: {reason}")
    else:
        names = ", ".join(["auto", *entries])
        raise UnavailableError(f"{op}: no implementation named {impl!r}. Known: {names}")
    _ran.setdefault(op, set()).add(name)
    return entries[name].run


def chosen() -> dict[str, str]:
    """Operation -> the implementation that has run in this process; several are joined by "+"."""
    return {op: "+".join(sorted(names)) for op, names in sorted(_ran.items())}
