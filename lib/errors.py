"""Errors that are the user's to mend: one line, exit code 2. Any other exception is a bug and keeps its traceback."""

try:
    from collapse.errors import CollapseError
except ImportError:  # to go at the merge, which brings collapse.errors
    CollapseError = ValueError


class InputError(CollapseError):
    """A setting, a file or data that can't be used. The message says what is wrong, where, and how to mend it."""
