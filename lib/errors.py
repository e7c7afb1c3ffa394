"""The one error that the scripts turn into one line and exit code 2."""

import contextlib
from pathlib import Path

import torch

from collapse import CollapseError


class InputError(CollapseError):
    """Something the user gave can't be used: a setting, a file, a folder. The message says what, where, how to mend it.

    It is a ValueError, and only it (with its base, the library's CollapseError) ends a script in one line. Any other
    exception is a fault of ours and keeps its traceback.
    """


def is_there(path: Path) -> bool:
    """Whether the file exists. InputError where that can't be told: a name too long, a folder without rights."""
    try:
        return path.exists()
    except OSError as error:
        raise InputError(f"can't read {path}: {error.strerror or error}") from None


# So torch reports on CPUs what doesn't fit into memory, or couldn't be counted if it did
TOO_LARGE = ("can't allocate memory", "Storage size calculation overflowed")


@contextlib.contextmanager
def memory_errors(advice: str):
    """A machine that is too small is the user's to mend: InputError with `advice` in place of torch's errors."""
    try:
        yield
    except torch.cuda.OutOfMemoryError:
        raise InputError(f"out of GPU memory; {advice}") from None
    except RuntimeError as error:
        is_too_large = any(words in str(error) for words in TOO_LARGE)
        if not is_too_large:
            raise
        raise InputError(f"out of memory; {advice}") from None
    except MemoryError:
        raise InputError(f"out of memory; {advice}") from None
