"""The one exception that this library raises for bad input."""


class CollapseError(ValueError):
    """Input the library can't use; the message is one line that says what, where, and how to mend it."""
