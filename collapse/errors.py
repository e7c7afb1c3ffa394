"""What this library raises for bad input."""


class CollapseError(ValueError):
    """Input the library can't use; the message is one line that says what, where, and how to mend it."""


class RunError(CollapseError):
    """A network doesn't take its example: `layer` is the one that failed ("": none was running), `why` its words."""

    def __init__(self, words: str, layer: str, why: str):
        super().__init__(words)
        self.layer = layer
        self.why = why
