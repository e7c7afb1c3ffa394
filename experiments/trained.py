"""Networks that `core.train` has trained, and the steps that they would go on with."""

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

import experiments.perceptron  # noqa: F401  (a network of core.MODELS from here on)
from core import Run, build_model, epoch_of
from lib.batches import Images
from lib.data import load_dataset
from lib.errors import InputError
from lib.results import ROOT
from lib.run_folder import RunFolder, load_state

RUNS = ROOT / "runs"
DATA = ROOT / "data"


def load_images(run: Run, data: str | None, device: torch.device) -> Images:
    """The data set of a run; `data`: the folder it lies in, None for the one beside the scripts."""
    return Images(load_dataset(run.dataset, data or DATA), run.dataset, device)


def run_of(network: dict, seed: int) -> Run:
    """The training that the setting `network`, fields of a Run, describes. InputError for what is no field of it."""
    known = [name for name in Run.__dataclass_fields__ if name != "seed"]
    for name in network:
        if name not in known:
            advice = "--seed sets it" if name == "seed" else f"there are {', '.join(known)}"
            raise InputError(f"network: no setting {name!r}; {advice}")
    return Run(**network, seed=seed)


def runs_of(network: dict, first_seed: int, seeds: int) -> list[Run]:
    """The trainings of so many seeds, all checked before the first of them begins."""
    return [run_of(network, seed) for seed in range(first_seed, first_seed + seeds)]


def read_run(folder: Path) -> Run:
    """The settings in a run directory; what later versions added is passed over."""
    settings = RunFolder(folder).read_settings()
    fields = {}
    for name in Run.__dataclass_fields__:
        if name in settings:
            value = settings[name]
            fields[name] = tuple(value) if isinstance(value, list) else value
    return Run(**fields)


def check_early(run: Run, early: int) -> None:
    """Raises InputError, before anything is trained, unless the run keeps its weights of step `early`."""
    if early > run.steps:
        raise InputError(f"early: expected a step of the {run.steps} that the network is trained, not {early}")
    if early not in run.milestones:
        kept = ", ".join(map(str, run.milestones)) or "none"
        raise InputError(f"early: expected one of the network's milestones ({kept}), not {early}")


def trained_network(folder: Path, step: int | None, device) -> tuple[Run, nn.Module]:
    """Settings and network of a run directory: its weights of that step, or those at its end (or where it is).

    Raises InputError for a folder that is no run directory, and where these weights are missing.
    """
    try:
        run = read_run(folder)
        weights_file = RunFolder(folder).weights_file(run.steps if step is None else step)
        if step is None and not weights_file.exists():  # it hasn't come to its end
            weights = load_state(folder / "checkpoint.pt", device)["model"]
        else:
            weights = load_state(weights_file, device)
        last_layer = list(weights.values())[-1]
        model = build_model(run.model, len(last_layer), run.width).to(device)
        model.load_state_dict(weights)
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RuntimeError) as error:
        why = str(error)[:200]
        raise InputError(f"{folder} is no run directory with weights of that step ({why})") from None
    return run, model


def step_batches(images: Images, run: Run, first: int, last: int) -> Iterator[tuple[Tensor, Tensor]]:
    """The very batches of these training steps: (images [B, 3, 32, 32], labels [B])."""
    size = run.batch_size
    steps_per_epoch = len(images.train) // size
    epoch = None
    for step in range(first, last):
        if step // steps_per_epoch != epoch:
            epoch = step // steps_per_epoch
            examples = epoch_of(run, images, epoch)
        start = step % steps_per_epoch * size
        batch = slice(start, start + size)
        yield images.normalized(images.batch(examples.crops[batch])), examples.labels[batch]


def sgd_of(model: nn.Module, run: Run) -> torch.optim.SGD:
    """The optimizer of a run, without the momentum it had. Raises InputError for a run that SGD didn't train."""
    if run.optimizer != "sgd":
        raise InputError(f"{run.name} was trained by {run.optimizer}: exponents and fine-tuning are those of SGD")
    return torch.optim.SGD(model.parameters(), run.learning_rate, run.momentum, weight_decay=run.weight_decay)
