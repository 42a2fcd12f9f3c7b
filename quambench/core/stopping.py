"""Ctrl-C, TERM and HUP: all three end a run in the same way, with what is finished kept and one line said."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from types import FrameType
from typing import Any, NoReturn

SIGNALS = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name))
INTERRUPTED = 128 + signal.SIGINT


class Stopped(KeyboardInterrupt):
    """A signal that ends a run, where Python raises KeyboardInterrupt for Ctrl-C alone."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


def code_of(error: KeyboardInterrupt) -> int:
    """The exit code, as a shell has it: 130 after Ctrl-C, 143 after TERM, 129 after HUP."""
    return 128 + error.number if isinstance(error, Stopped) else INTERRUPTED


@contextmanager
def as_interrupts() -> Iterator[Callable[[], None]]:
    """TERM and HUP raise in this block, as Ctrl-C does; in the main thread alone, where no other handler is set.

    What is yielded is to be called when the work is done. From then on no signal raises, in code of others that only
    prints or cleans up; TERM and HUP end the process behind the block.
    """
    late: list[int] = []

    def stop(number: int, frame: FrameType | None) -> NoReturn:
        for other in SIGNALS:  # the second one finds a run that is ending already
            signal.signal(other, signal.SIG_IGN)
        raise Stopped(number)

    def note(number: int, frame: FrameType | None) -> None:
        late.append(number)

    with ExitStack() as stack:
        stack.enter_context(_handled({number: stop for number in SIGNALS}, only=(signal.SIG_DFL,)))
        noted = {number: note for number in (signal.SIGINT, *SIGNALS)}
        yield lambda: stack.enter_context(_handled(noted, only=(stop, signal.default_int_handler)))
    for number in late:
        if number != signal.SIGINT:
            signal.raise_signal(number)


@contextmanager
def at_once() -> Iterator[None]:
    """In this block nothing is worth a word: imports that take seconds, inside of which an exception may be lost."""

    def leave(number: int, frame: FrameType | None) -> NoReturn:
        os.write(sys.__stderr__.fileno() if sys.__stderr__ else 2, b"\nquambench: interrupted while it was starting\n")
        os._exit(128 + number)

    with _handled({number: leave for number in (signal.SIGINT, *SIGNALS)}):
        yield


@contextmanager
def _handled(handlers: dict[int, Callable[..., Any]], only: tuple[Any, ...] = ()) -> Iterator[None]:
    """only: leave signals alone that have another handler than these"""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before: dict[int, Any] = {}
    for number, handler in handlers.items():
        found = signal.getsignal(number)
        if found is signal.SIG_IGN or found is None or (only and found not in only):
            continue  # nohup, for one
        before[number] = signal.signal(number, handler)
    try:
        yield
    finally:
        for number, found in before.items():
            signal.signal(number, found)
