"""Ctrl-C, TERM and HUP: all three end a run in the same way. Finished results are kept, and one line is printed."""

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
ENDING = (signal.SIGINT, *SIGNALS)
INTERRUPTED = 128 + signal.SIGINT


class Stopped(KeyboardInterrupt):
    """A TERM or HUP signal that ends a run. Python itself raises KeyboardInterrupt for Ctrl-C alone."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


def code_of(error: KeyboardInterrupt) -> int:
    """Return the exit code as a shell has it: 130 after Ctrl-C, 143 after TERM, 129 after HUP."""
    return 128 + error.number if isinstance(error, Stopped) else INTERRUPTED


@contextmanager
def as_interrupts() -> Iterator[Callable[[], None]]:
    """Let TERM and HUP raise in the block as Ctrl-C does, in the main thread and only where no other handler is set.

    Yields a function to call when the work is done. From then on no signal raises inside of others' code that only
    prints or cleans up; TERM and HUP end the process after the block.
    """
    late: list[int] = []

    def stop(number: int, frame: FrameType | None) -> NoReturn:
        for other in SIGNALS:  # a second signal finds a run that is ending already
            signal.signal(other, signal.SIG_IGN)
        raise Stopped(number)

    def note(number: int, frame: FrameType | None) -> None:
        late.append(number)

    with ExitStack() as stack:
        stack.enter_context(_handled(dict.fromkeys(SIGNALS, stop), only=(signal.SIG_DFL,)))
        noted = dict.fromkeys(ENDING, note)
        yield lambda: stack.enter_context(_handled(noted, only=(stop, signal.default_int_handler)))
    for number in late:
        if number != signal.SIGINT:
            signal.raise_signal(number)


@contextmanager
def held_back() -> Iterator[None]:
    """Let the block finish whatever signal comes: the first of them is delivered when the block has ended.

    For a few milliseconds of work that leaves two records of one thing different when it is broken off.
    """
    came: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        came.append(number)

    with _handled(dict.fromkeys(ENDING, note)):
        yield
    if came:
        signal.raise_signal(came[0])


@contextmanager
def at_once() -> Iterator[None]:
    """End the process at once at a signal during the block: imports that take seconds and may swallow an exception."""

    def leave(number: int, frame: FrameType | None) -> NoReturn:
        os.write(sys.__stderr__.fileno() if sys.__stderr__ else 2, b"\nquambench: interrupted while it was starting\n")
        os._exit(128 + number)

    with _handled(dict.fromkeys(ENDING, leave)):
        yield


@contextmanager
def _handled(handlers: dict[int, Callable[..., Any]], only: tuple[Any, ...] = ()) -> Iterator[None]:
    """Set these handlers for the block.

    only  replace a signal's handler only where it is one of these; () replaces any
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before: dict[int, Any] = {}
    for number, handler in handlers.items():
        found = signal.getsignal(number)
        if found is signal.SIG_IGN or found is None or (only and found not in only):
            continue  # for example under nohup
        before[number] = signal.signal(number, handler)
    try:
        yield
    finally:
        for number, found in before.items():
            signal.signal(number, found)
