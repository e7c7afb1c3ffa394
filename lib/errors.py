"""The one error that the scripts turn into one line and exit code 2."""

from collapse import CollapseError


class InputError(CollapseError):
    """Something the user gave can't be used: a setting, a file, a folder. The message says what, where, how to mend it.

    It is a ValueError, and only it (with its base, the library's CollapseError) ends a script in one line. Any other
    exception is a fault of ours and keeps its traceback.
    """
