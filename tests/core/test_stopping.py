"""Ctrl-C, TERM and HUP end every command alike: what is finished is kept, one line is said, no traceback."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading

import pytest

from quambench.core.stopping import SIGNALS, Stopped, as_interrupts, at_once, code_of, held_back

pytestmark = pytest.mark.usefixtures("own_signals")

# What runs in the background has inherited that Ctrl-C and HUP are ignored.
OWN = """
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)
for number in (signal.SIGTERM, signal.SIGHUP):
    signal.signal(number, signal.SIG_DFL)
"""
RAISED = """
import os, signal, sys, time
from quambench.core.stopping import {block}, code_of
try:
    with {block}():
        print("ready", flush=True)
        time.sleep(30)
except KeyboardInterrupt as stopped:
    print("kept", flush=True)
    sys.exit(code_of(stopped))
"""


def ended(block: str, number: int) -> tuple[int, str, str]:
    process = subprocess.Popen(
        [sys.executable, "-c", OWN + RAISED.format(block=block)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "ready\n"
    process.send_signal(number)
    out, err = process.communicate()
    return process.returncode, out, err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_each_signal_is_an_interruption_with_the_code_that_a_shell_gives_it(number):
    assert ended("as_interrupts", number) == (128 + number, "kept\n", "")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_while_it_starts_there_is_nothing_to_keep(number):
    code, out, err = ended("at_once", number)
    assert (code, out) == (128 + number, "")
    assert err == "\nquambench: interrupted while it was starting\n"


def test_handlers_of_others_stay_and_ours_go():
    theirs = signal.signal(signal.SIGTERM, lambda *_: None)
    try:
        before = signal.getsignal(signal.SIGTERM)
        with as_interrupts():
            assert signal.getsignal(signal.SIGTERM) is before
            assert signal.getsignal(signal.SIGHUP) is not signal.SIG_DFL
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_DFL
        assert signal.getsignal(signal.SIGTERM) is before
    finally:
        signal.signal(signal.SIGTERM, theirs)


def test_what_nohup_ignores_stays_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with at_once(), as_interrupts():
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_second_signal_does_not_interrupt_the_end():
    with pytest.raises(Stopped) as caught, as_interrupts():
        try:
            os.kill(os.getpid(), signal.SIGTERM)
        finally:
            for number in SIGNALS:
                os.kill(os.getpid(), number)
    assert code_of(caught.value) == 143
    assert code_of(KeyboardInterrupt()) == 130


DONE = """
import os, signal, sys
from quambench.core.stopping import as_interrupts
with as_interrupts() as done:
    done()
    os.kill(os.getpid(), {number})
    print("shown", flush=True)
print("after", flush=True)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_what_comes_when_the_work_is_done_ends_the_process_behind_it(number):
    made = subprocess.run([sys.executable, "-c", OWN + DONE.format(number=int(number))], capture_output=True, text=True)
    assert (made.returncode, made.stdout, made.stderr) == (-number, "shown\n", "")


def test_ctrl_c_when_the_work_is_done_costs_nothing():
    made = subprocess.run([sys.executable, "-c", OWN + DONE.format(number=2)], capture_output=True, text=True)
    assert (made.returncode, made.stdout, made.stderr) == (0, "shown\nafter\n", "")


def test_a_handler_of_somebody_elses_stays_when_the_work_is_done():
    before = signal.signal(signal.SIGINT, theirs := lambda number, frame: None)
    try:
        with as_interrupts() as done:
            done()
            assert signal.getsignal(signal.SIGINT) is theirs
    finally:
        signal.signal(signal.SIGINT, before)


def test_in_another_thread_nothing_is_set():
    seen = []

    def elsewhere():
        with as_interrupts(), at_once():
            seen.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert seen == [signal.SIG_DFL]


@pytest.mark.parametrize(
    ("sent", "raised"), [([signal.SIGINT], KeyboardInterrupt), ([*SIGNALS, signal.SIGINT], Stopped)]
)
def test_what_is_held_back_ends_and_then_the_first_signal_is_heard(sent, raised):
    done = []
    with as_interrupts(), pytest.raises(raised), held_back():
        for number in sent:
            signal.raise_signal(number)
        done.append(True)
    assert done


def test_an_error_is_not_hidden_by_what_was_held_back():
    with as_interrupts(), pytest.raises(ZeroDivisionError), held_back():
        _ = 1 / 0
