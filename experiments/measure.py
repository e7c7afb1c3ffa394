"""The collapse of a network of one's own, and the smaller one inside: `subnetworks.py measure`, `extract --model`."""

import importlib
import math
import os
import sys
import warnings
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from collapse import (
    CollapseError,
    CollapseReport,
    collapse_report,
    extract_subnetwork,
    neuron_groups,
    plot_report,
    save_network,
)
from collapse.plots import plot_history
from collapse.report import cut
from experiments.checkpoints import load_weights
from experiments.extraction import count_parameters
from experiments.trained import trained_network
from lib.errors import InputError
from lib.results import ROOT
from lib.settings import Seed

PICTURE = ROOT / "figures" / "your_network.png"

# ======================================================================================
# The network and its example
# ======================================================================================


def make_network(model: str, seed: int, device: torch.device) -> nn.Module:
    """The network that MODULE:FUNCTION makes, called without arguments. Raises InputError for whatever that raises."""
    module, colon, function = model.partition(":")
    if not colon or not function:
        raise InputError(
            f"--model {model}: expected MODULE:FUNCTION, a module (your file without .py, or torchvision.models) and "
            "what makes the network in it when it is called without arguments, as torchvision.models:resnet18"
        )
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())  # for networks of one's own
    torch.manual_seed(seed)
    try:
        network = getattr(importlib.import_module(module.removesuffix(".py")), function)()
    except Exception as error:  # whatever that code raises
        why = " ".join(str(error).split())[:200] or type(error).__name__
        raise InputError(f"can't make --model {model}: {why}") from None
    if not isinstance(network, nn.Module) or next(network.parameters(), None) is None:
        kind = type(network).__name__
        raise InputError(f"can't make --model {model}: it returns {kind}, no nn.Module with parameters")
    return network.to(device)


def one_input(text: str, device: torch.device) -> Tensor:
    """Zeros for `3,224,224` (a float example, of which two make a batch) or `1,128:int` (tokens, batch first)."""
    sizes, _, kind = text.partition(":")
    shape = [int(size) if size.isdecimal() else 0 for size in sizes.split(",")]
    if not 0 < min(shape) <= math.prod(shape) < 2**31 or kind not in ("", "float", "int"):
        raise InputError(
            f"--input {text}: expected positive numbers with commas, as 3,224,224, or 1,128:int for tokens"
        )
    if kind == "int":
        return torch.zeros(shape, dtype=torch.long, device=device)
    return torch.zeros(2, *shape, device=device)


def example_of(inputs: tuple[str, ...], device: torch.device) -> Tensor | tuple[Tensor, ...]:
    """A network's example: one tensor, or a tuple of several."""
    made = tuple(one_input(text, device) for text in inputs)
    return made[0] if len(made) == 1 else made


# ======================================================================================
# Measure
# ======================================================================================


class Measured(NamedTuple):
    """A network measured: its report, and what the simpler network would need."""

    label: str
    report: CollapseReport
    parameters: int
    needed: int | None  # parameters of the extracted network; None where it can't be made
    why_not: str | None


def measure_network(
    label: str, network: nn.Module, example, vanishing: float, redundant: float, rank: bool
) -> Measured:
    """Count and extract: what is needed is counted in the extracted network itself."""
    groups = neuron_groups(network, example)
    report = collapse_report(groups, vanishing=vanishing, redundant=redundant, rank=rank)
    needed, why_not = None, None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # nothing to extract: then it needs all
            smaller = extract_subnetwork(network, example, vanishing, redundant)
        needed = count_parameters(smaller)
        kept = {row["name"]: row["kept"] for row in smaller.extraction}
        for row in report:
            row["kept"] = kept[row["name"]]
    except CollapseError as error:
        why_not = str(error)
    return Measured(label, report, count_parameters(network), needed, why_not)


def print_measured(one: Measured) -> None:
    print(f"\n{one.label}\n{one.report}")
    if one.needed is None:
        print(cut(f"{one.parameters:,} parameters; no simpler network: {one.why_not}"))
    else:
        share = one.needed / one.parameters
        print(f"{one.parameters:,} parameters, of which the simpler network needs {one.needed:,} ({share:.1%})")


def check_picture(path: Path) -> None:
    """Make the picture's folder. InputError, before anything is measured, where that fails or a folder is given."""
    if path.is_dir():
        raise InputError(f"--picture {path} is a folder; give a file in it")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"can't write --picture {path}: {error.strerror or error}") from None


def draw(measured: list[Measured], path: Path) -> None:
    """By layer; of several checkpoints by layer and checkpoint."""
    if len(measured) == 1:
        plot_report(measured[0].report, path)
    else:
        names = [row["name"] for row in measured[0].report]
        fractions = [[row["fraction"] for row in one.report] for one in measured]
        plot_history(names, [Path(one.label).stem for one in measured], fractions, path, "checkpoint")
    print(f"\npicture: {path}")


def measure(
    model: str = "torchvision.models:resnet18",
    weights: tuple = (),
    input: tuple = ("3,224,224",),
    run: str | None = None,
    vanishing: float = 0.1,
    redundant: tuple = (0.1,),
    rank: bool = True,
    picture: str | None = None,
    seed: Seed = 0,
    device: str | torch.device = "cpu",
) -> dict:
    """The collapse report of MODULE:FUNCTION, of each file of weights for it, or of a run directory; see `--help`."""
    if len(redundant) != 1:
        raise InputError(f"measure takes one --redundant, not {len(redundant)}")
    picture_file = PICTURE if picture is None else Path(picture).expanduser()
    check_picture(picture_file)
    device = torch.device(device)
    example = example_of(input, device)
    measured = []
    if run:
        network = trained_network(Path(run), None, device)[1]
        example = torch.zeros(2, 3, 32, 32, device=device)
        measured.append(measure_network(Path(run).name, network, example, vanishing, redundant[0], rank))
    else:
        network = make_network(model, seed, device)
        for path in weights or (None,):
            label = f"{model}, untrained"
            if path is not None:
                load_weights(network, path)
                label = str(path)
            measured.append(measure_network(label, network, example, vanishing, redundant[0], rank))
    for one in measured:
        print_measured(one)
    draw(measured, picture_file)
    first = measured[0]
    found = {
        "report": list(measured[-1].report),
        "covered": measured[-1].report.covered,
        "skipped": [f"{entry.name}: {entry.reason}" for entry in measured[-1].report.skipped],
        "parameters": first.parameters,
        "needed": measured[-1].needed,
    }
    if len(measured) > 1:
        found["checkpoints"] = [
            {"label": one.label, "needed": one.needed, "report": list(one.report)} for one in measured
        ]
    return found


# ======================================================================================
# Extract
# ======================================================================================


def extract_own(
    model: str,
    weights: tuple,
    input: tuple,
    vanishing: float,
    redundant: tuple,
    save: str,
    seed: int,
    device: torch.device,
) -> None:
    """Extract the smaller network of one's own, print what was done, and save it."""
    if len(redundant) != 1 or len(weights) > 1:
        raise InputError("extract --model takes one --redundant and one file of --weights")
    network = make_network(model, seed, device)
    for path in weights:
        load_weights(network, path)
    smaller = extract_subnetwork(network, example_of(input, device), vanishing, redundant[0])
    print(extraction_table(smaller.extraction))
    before, after = count_parameters(network), count_parameters(smaller)
    print(f"{before:,} parameters became {after:,} ({after / before:.1%})")
    try:
        save_network(smaller, save)
    except (OSError, RuntimeError) as error:
        why = " ".join(str(error).split())[:100]
        raise InputError(f"can't write --save {save}: {why}") from None
    module, _, function = model.partition(":")
    print(f"saved; load it: from collapse import load_network; load_network({save!r}, {module}.{function}())")


def extraction_table(rows: list[dict]) -> str:
    """What was done to each group, for people: at most 100 columns."""
    columns = {"width": 7, "vanished": 9, "constant": 9, "merged": 7, "kept": 7}
    titles = [f"{title:>{room}}" for title, room in columns.items()]
    lines = [" ".join([f"{'neurons of':40}", *titles])]
    for row in rows:
        name = row["name"]
        if len(name) > 40:
            name = ".." + name[-38:]
        cells = [f"{row[key]:{room},}" for key, room in columns.items()]
        lines.append(" ".join([f"{name:40}", *cells]))
        if row["left"]:
            what = "left whole" if row["kept"] == row["width"] else "not all taken"
            lines.append(cut(f"  {what}: {row['left']}"))
    return "\n".join(lines)
