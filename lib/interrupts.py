"""Ctrl-C without a traceback, from a script's first line on. Import it before anything slow.

Importing torch takes seconds. Until the script's main function runs, Ctrl-C ends the process at once: there is nothing
to save yet, and a KeyboardInterrupt inside an import would print a traceback.
"""

import os
import signal
import sys
import threading

CTRL_C = 130  # exit codes that shells use: 128 + the number of the signal
TERMINATED = 143


def leave_at_once(number, frame):
    os._exit(128 + number)


def raise_keyboard_interrupt() -> None:
    """From now on Ctrl-C raises KeyboardInterrupt again: a script's main function calls this when it begins."""
    if in_main_thread() and signal.getsignal(signal.SIGINT) is leave_at_once:
        signal.signal(signal.SIGINT, signal.default_int_handler)


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
