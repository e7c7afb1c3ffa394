"""Ctrl-C without a traceback, from a script's first line on. Import it before anything slow.

Importing torch takes seconds. Until the script's work begins, Ctrl-C ends the process at once: there is nothing to save
yet, and a KeyboardInterrupt inside an import would print a traceback.
"""

import contextlib
import os
import signal
import sys
import threading

CTRL_C = 130  # the exit code that shells use: 128 + the number of the signal


def leave_at_once(number, frame):
    os._exit(128 + number)


@contextlib.contextmanager
def keyboard_interrupts():
    """Within its block Ctrl-C raises KeyboardInterrupt, as in any Python program; outside it leaves at once.

    So a script's work stands in such a block, and whoever opens it catches KeyboardInterrupt.
    """
    leaves_at_once = in_main_thread() and signal.getsignal(signal.SIGINT) is leave_at_once
    if not leaves_at_once:  # somebody else has decided
        yield
        return
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, leave_at_once)


def in_main_thread() -> bool:
    """Only the main thread may set signal handlers."""
    return threading.current_thread() is threading.main_thread()


class StopSignals:
    """Within its block SIGTERM and Ctrl-C don't stop the work: they are noted, and the work asks `received`.

    So a training can finish its step and save. Outside the main thread it notes nothing.
    """

    WATCHED = (signal.SIGTERM, signal.SIGINT)

    def __init__(self):
        self.received: int | None = None  # the number of the first signal
        self.previous_handlers = {}

    def __enter__(self):
        if in_main_thread():
            for number in self.WATCHED:
                self.previous_handlers[number] = signal.signal(number, self.note)
        return self

    def __exit__(self, *error):
        for number, handler in self.previous_handlers.items():
            signal.signal(number, handler)

    def note(self, number, frame):
        if self.received is None:
            self.received = number


# Only where nobody else has decided: a library that imports a script keeps its own handler.
if in_main_thread() and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    started_as_script = hasattr(sys.modules["__main__"], "__file__")  # not in a Python prompt or a notebook
    if started_as_script:
        signal.signal(signal.SIGINT, leave_at_once)
