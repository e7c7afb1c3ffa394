"""The one error that the scripts turn into one line and exit code 2."""

import contextlib

import torch

from collapse import CollapseError


class InputError(CollapseError):
    """Something the user gave can't be used: a setting, a file, a folder. The message says what, where, how to mend it.

    It is a ValueError, and only it (with its base, the library's CollapseError) ends a script in one line. Any other
    exception is a fault of ours and keeps its traceback.
    """


@contextlib.contextmanager
def memory_errors(advice: str):
    """A machine that is too small is the user's to mend: InputError with `advice` in place of torch's errors."""
    try:
        yield
    except torch.cuda.OutOfMemoryError:
        raise InputError(f"out of GPU memory; {advice}") from None
    except RuntimeError as error:
        if "can't allocate memory" not in str(error):  # so torch reports it on CPUs
            raise
        raise InputError(f"out of memory; {advice}") from None
    except MemoryError:
        raise InputError(f"out of memory; {advice}") from None
