"""Result files, read with care: what is asked for is there and has its shape, or one line says which file is damaged.

Readings (papers/<paper>/readings.py) ask a `Result` for its values by name. A file that was cut off, edited by
hand or made by another program is bad input, not a bug of ours: it raises `ResultError`, which figures.py turns
into one line and exit code 2. Any other exception while reading is a bug and keeps its traceback.
"""

import json
import re
from pathlib import Path

import numpy as np

LARGEST = 1e200  # no experiment measures more (diverged runs come to 1e134); what draws it would overflow


class ResultError(ValueError):
    """A result file that can't be used; the message names the file and what is wrong with it."""


class Result:
    """The content of one result file, or of one record in it.

    `where` is the place within the file, for messages. A number that is null in the file is NaN: JSON has no other
    way to write it, and a diverged run has such numbers.
    """

    def __init__(self, content: dict, path: str | Path = "result", where: str = ""):
        self.content = content
        self.path = path
        self.where = where
        self.sizes = {}  # name of an axis -> (its length, the value that had it first)

    def refuse(self, why: str) -> ResultError:
        """The error to raise; `why` says what is wrong."""
        return ResultError(f"{self.path}: {why}; delete it and run its experiment again")

    def place(self, key: str) -> str:
        return f"{self.where}{key}"

    def has(self, key: str) -> bool:
        return self.content.get(key) is not None

    def value(self, key: str, kind: type | tuple):
        """The value of a key, of this Python type."""
        if key not in self.content:
            raise self.refuse(f"{self.place(key)} is missing")
        value = self.content[key]
        wrong_kind = not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool)
        if wrong_kind:
            raise self.refuse(f"{self.place(key)} holds {shortened(value)}")
        return value

    def number(self, key: str) -> float | int:
        number = self.value(key, (int, float))
        if abs(number) > LARGEST:
            raise self.refuse(f"{self.place(key)} holds {shortened(number)}")
        return number

    def text(self, key: str) -> str:
        return self.value(key, str)

    def record(self, key: str) -> "Result":
        """A dictionary, as a result of its own."""
        return Result(self.value(key, dict), self.path, f"{self.place(key)}.")

    def records(self, key: str, least: int = 0) -> list["Result"]:
        """A list of dictionaries, at least `least` of them."""
        rows = self.value(key, list)
        if len(rows) < least:
            raise self.refuse(f"{self.place(key)} is empty")
        found = []
        for index, row in enumerate(rows):
            if not isinstance(row, dict):
                raise self.refuse(f"{self.place(key)}[{index}] holds {shortened(row)}")
            found.append(Result(row, self.path, f"{self.place(key)}[{index}]."))
        return found

    def array(self, key: str, *shape: str | int) -> np.ndarray:
        """An array of floats with one entry of `shape` for each axis.

        An axis is a length or a name; axes of the same name have the same length throughout this record. None of
        them is empty.
        """
        if not self.has(key):
            raise self.refuse(f"{self.place(key)} is {'null' if key in self.content else 'missing'}")
        try:
            values = np.array(self.content[key], dtype=float)
        except (TypeError, ValueError, OverflowError):  # words, rows of different lengths, numbers without end
            raise self.refuse(f"{self.place(key)} is no array of numbers") from None
        if (np.abs(values) > LARGEST).any():
            raise self.refuse(f"{self.place(key)} holds {values[np.abs(values) > LARGEST][0]:g}")
        if values.ndim != len(shape) or values.size == 0:
            raise self.refuse(
                f"{self.place(key)} has the shape {list(values.shape)}, expected {', '.join(map(str, shape))}"
            )
        for axis, length in zip(shape, values.shape, strict=True):
            self.check_axis(key, axis, length)
        return values

    def check_axis(self, key: str, axis: str | int, length: int) -> None:
        if isinstance(axis, int):
            if length != axis:
                raise self.refuse(f"{self.place(key)} has {length} entries, expected {axis}")
            return
        expected, first = self.sizes.setdefault(axis, (length, key))
        if length != expected:
            raise self.refuse(f"{self.place(key)} has {length} {axis}, {self.place(first)} has {expected}")

    def numbers(self, key: str, length: str = "") -> list:
        """A list of numbers as they stand in the file: whole numbers stay whole."""
        self.array(key, length or key)
        return list(self.content[key])

    def optional_array(self, key: str, *shape: str | int) -> np.ndarray | None:
        """The array, or None where a result is older than this measurement."""
        return self.array(key, *shape) if self.has(key) else None


def shortened(value) -> str:
    """What a message shows of a value."""
    words = repr(value)
    return words if len(words) < 40 else f"{words[:37]}..."


def load_result(path: Path, quick: bool) -> Result:
    """The result in a file; raises ResultError if it isn't of that name, or quick where full ones are asked for."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ResultError(f"{path}: can't be read: {error.strerror or error}") from None
    except ValueError as error:  # no JSON, or no UTF-8
        raise ResultError(f"{path}: {error}; delete it and run its experiment again") from None
    if not isinstance(content, dict):
        raise ResultError(f"{path}: no result: it holds {shortened(content)}; delete it and run its experiment again")
    result = Result(content, path)
    experiment = content.get(
        "experiment"
    )  # earlier versions left width and data out of it: a start of the name will do
    of_that_name = path.stem == experiment or path.stem.startswith(f"{experiment}_")
    if not isinstance(experiment, str) or not of_that_name:
        raise result.refuse(f"no result of that experiment: it says {shortened(experiment)}")
    result.record("settings")
    is_quick = result.value("quick", bool)
    if is_quick and not quick:
        raise result.refuse("a quick result among full ones")
    if quick and not is_quick:
        raise result.refuse("a full result among quick ones")
    return result


def counted(number: int, noun: str) -> str:
    """1 seed, 5 seeds."""
    if number == 1:
        return f"1 {noun}"
    return f"{number} {noun}s"


SCRIPTS = {  # what makes a result: the start of its name -> script
    "quartic": "toy_models.py",
    "neuron": "toy_models.py",
    "pair": "toy_models.py",
    "diagonal": "teacher_student.py",
    "minibatch": "teacher_student.py",
    "pruning": "chaotic_sgd.py",
    "delay": "chaotic_sgd.py",
    "divergence": "chaotic_sgd.py",
    "subspace": "chaotic_sgd.py",
    "invariance": "toy_models.py",
    "sparse": "sparse_features.py",
    "beyond": "subnetworks.py",
    "vgg": "vgg_cifar10.py",
    "resnet": "resnet_cifar100.py",
}


def start_of_command(name: str) -> tuple[str, str]:
    """(command without its experiment, experiment) of a result."""
    first, _, rest = name.partition("_")
    script = SCRIPTS.get(first, f"{first}*.py")
    if first in ("vgg", "resnet"):
        experiment, _, differs = rest.partition("_")
        return f"torchrun --nproc_per_node=8 {script}", experiment + deep_options(differs)
    if rest.startswith("deep_"):
        return f"python {script}", f"deep --model {rest.removeprefix('deep_')}"
    if first in ("sparse", "beyond"):
        return f"python {script}", rest
    return f"python {script}", name


def deep_options(differs: str) -> str:
    """The options that a deep result's name tells of: fashion_mnist_width16_controls."""
    dataset, width, controls = re.fullmatch(r"(.*?)_?(?:width(\d+))?(?:_?(controls))?", differs).groups()
    options = ""
    if controls:
        options += " --controls"
    if dataset:
        options += f" --dataset {dataset}"
    if width:
        options += f" --width {width}"
    return options


def command_of(name: str) -> str:
    """The command that makes a result, to be pasted; options of its own are for the reader of the docs to choose."""
    return " ".join(start_of_command(name))
