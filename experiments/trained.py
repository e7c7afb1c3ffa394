"""Networks that `core.train` has trained, and the steps that they would go on with."""

import json
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

import core
from collapse import CollapseError
from training import Images, Run, load_state


def read_run(folder: Path) -> Run:
    """The settings in a run directory."""
    settings = json.loads((folder / "settings.json").read_text())
    fields = {key: tuple(value) if isinstance(value, list) else value for key, value in settings.items()}
    return Run(**fields)


def trained_network(folder: Path, step: int | None, device) -> tuple[Run, nn.Module]:
    """Settings and network of a run directory: its weights of that step, or those at its end (or where it is).

    Raises CollapseError for a folder that is no run directory, and where these weights are missing.
    """
    try:
        run = read_run(folder)
        found = {int(path.stem.split("_")[1]): path for path in folder.glob("weights_*.pt")}
        if found:
            weights = load_state(found[run.steps if step is None else step], device)
        else:
            weights = load_state(folder / "checkpoint.pt", device)["model"]
        last_layer = list(weights.values())[-1]
        model = getattr(core, run.model)(len(last_layer), run.width).to(device)
        model.load_state_dict(weights)
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RuntimeError) as error:
        why = str(error)[:200]
        raise CollapseError(f"{folder} is no run directory with weights of that step ({why})") from None
    return run, model


def step_batches(images: Images, run: Run, first: int, last: int) -> Iterator[tuple[Tensor, Tensor]]:
    """The very batches of these training steps: (images [B, 3, 32, 32], labels [B])."""
    size = run.batch_size
    steps_per_epoch = len(images.train) // size
    epoch = None
    for step in range(first, last):
        if step // steps_per_epoch != epoch:
            epoch = step // steps_per_epoch
            crops, labels = images.epoch(run, epoch)
        start = step % steps_per_epoch * size
        batch = slice(start, start + size)
        yield images.normalized(images.batch(crops[batch])), labels[batch]


def sgd_of(model: nn.Module, run: Run) -> torch.optim.SGD:
    """The optimizer of a run, without the momentum it had."""
    return torch.optim.SGD(model.parameters(), run.learning_rate, run.momentum, weight_decay=run.weight_decay)
