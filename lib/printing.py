"""Printing that never stops the work: a closed pipe, a full disk or a terminal of ASCII only lose words."""

import os
import sys


class PatientStream:
    """A text stream whose writes can't fail. After the first failure what is written goes nowhere."""

    def __init__(self, stream):
        self.stream = stream
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # letters that the terminal lacks become question marks

    def write(self, text: str) -> int:
        try:
            self.stream.write(text)
            if text.endswith("\n"):  # a log that is followed must not lag behind
                self.stream.flush()
        except (OSError, ValueError):  # a closed pipe or a full disk; a closed stream
            self.give_up()
        return len(text)

    def flush(self) -> None:
        try:
            self.stream.flush()
        except (OSError, ValueError):
            self.give_up()

    def give_up(self) -> None:
        """Let the file descriptor lead nowhere, so that Python's last flush at exit doesn't fail either."""
        try:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self.stream.fileno())
            os.close(nowhere)
        except (OSError, ValueError):
            pass

    def __getattr__(self, name):
        return getattr(self.stream, name)


def print_patiently() -> None:
    """From now on nothing that this process prints can stop it."""
    if sys.stdout is not None and not isinstance(sys.stdout, PatientStream):
        sys.stdout = PatientStream(sys.stdout)
    if sys.stderr is not None and not isinstance(sys.stderr, PatientStream):
        sys.stderr = PatientStream(sys.stderr)
