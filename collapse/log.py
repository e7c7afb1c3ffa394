"""Follow collapse in a training loop of one's own: two lines, a file, a picture."""

import contextlib
import json
import math
import os
import tempfile
from pathlib import Path

from torch import nn

from collapse.errors import CollapseError
from collapse.neurons import neuron_groups
from collapse.plots import plot_history
from collapse.report import collapse_report


class CollapseLog:
    """How many neurons are independent, layer by layer, at moments of a training.

        log = CollapseLog(model, example)
        for epoch in range(100):
            ...
            log.record(epoch)
        log.plot("collapse.png")

    The network is followed once, when the log is made, and afterwards only counted: half a second a record for a
    ResNet-50 on one core. It changes nothing of the training. The model must stay the same object; its parameters may
    move to another device.

    `rows`: a dict per layer and record: step, name, width, vanishing, redundant, independent, fraction, ...
    (`collapse_report` without the rank), in the order they were recorded. Raises CollapseError for what
    `collapse_report` refuses, NaN anywhere too.
    """

    def __init__(self, model: nn.Module, example, vanishing: float = 0.1, redundant: float = 0.1):
        self.groups = neuron_groups(model, example)
        self.vanishing = vanishing
        self.redundant = redundant
        self.rows_at: dict[int | float, list[dict]] = {}

    @property
    def rows(self) -> list[dict]:
        return [row for rows in self.rows_at.values() for row in rows]

    def record(self, step: int | float) -> None:
        """Count now, after so many steps or epochs; the same step again replaces what was recorded for it.

        `step`: a finite number; those of NumPy and tensors of one entry are taken as Python's. Raises CollapseError.
        """
        step = plain_number(step)
        report = collapse_report(self.groups, vanishing=self.vanishing, redundant=self.redundant, rank=False)
        self.rows_at.pop(step, None)
        self.rows_at[step] = [{"step": step, **row} for row in report]

    def save(self, path: str | Path) -> None:
        """Write all rows as JSON, {"vanishing", "redundant", "rows"}; an older file is replaced as a whole."""
        content = {"vanishing": self.vanishing, "redundant": self.redundant, "rows": self.rows}
        write_atomically(Path(path), json.dumps(content) + "\n")

    def plot(self, path: str | Path) -> None:
        """Draw the fraction of independent neurons by layer and step (.png, .pdf, .svg; needs matplotlib)."""
        steps = sorted(self.rows_at)
        names = [group.name for group in self.groups]
        fraction = {(row["step"], row["name"]): row["fraction"] for row in self.rows}
        table = [[fraction[step, name] for name in names] for step in steps]
        plot_history(names, steps, table, path, "step")


def plain_number(step) -> int | float:
    """A step as a number that JSON can hold and that can be sorted; raises CollapseError for what isn't one."""
    number = step
    if hasattr(step, "item"):  # of NumPy or PyTorch
        with contextlib.suppress(RuntimeError, ValueError):  # of several entries
            number = step.item()
    if isinstance(number, bool) or not isinstance(number, int | float) or not math.isfinite(number):
        raise CollapseError(f"a step must be a finite number, for the log to sort and save it, not {step!r}")
    return number


def write_atomically(path: Path, text: str) -> None:
    """Write a file such that others see the old one or the new one; nothing is left where that fails.

    Of its own, as this library is installed without the rest of the project. Raises CollapseError.
    """
    temporary = None
    try:
        with tempfile.NamedTemporaryFile("w", dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
            temporary = Path(file.name)
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.chmod(0o644)  # temporary files are for their owner alone
        os.replace(temporary, path)
    except OSError as error:
        if temporary is not None:
            temporary.unlink(missing_ok=True)
        raise CollapseError(f"can't write {path}: {error.strerror or error}") from None
