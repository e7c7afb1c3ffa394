"""Trained networks: their weights, the batches they were trained on, their optimizer. Behind subnetworks.py."""

import json
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

import core
from training import Images, Run, load_state

# ======================================================================================
# Trained networks
# ======================================================================================


def trained_network(folder: Path, step: int | None, device) -> tuple[Run, nn.Module]:
    """Settings and network of a run directory: its weights of that step, or those at its end (or where it is)."""
    try:
        settings = json.loads((folder / "settings.json").read_text())
        run = Run(**{key: tuple(value) if isinstance(value, list) else value for key, value in settings.items()})
        found = {int(path.stem.split("_")[1]): path for path in folder.glob("weights_*.pt")}
        path = found[run.steps if step is None else step] if found else folder / "checkpoint.pt"
        weights = load_state(path, device)
        weights = weights["model"] if path.name == "checkpoint.pt" else weights
        model = getattr(core, run.model)(next(reversed(weights.values())).shape[0], run.width).to(device)
        model.load_state_dict(weights)
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RuntimeError) as error:
        raise ValueError(f"{folder} is no run directory with weights of that step ({str(error)[:200]})") from None
    return run, model


def step_batches(images: Images, run: Run, first: int, last: int) -> Iterator[tuple[Tensor, Tensor]]:
    """The very batches of these training steps: (images [B, 3, 32, 32], labels [B])."""
    epoch, size = -1, run.batch_size
    for step in range(first, last):
        if step // (len(images.train) // size) != epoch:
            epoch = step // (len(images.train) // size)
            crops, labels = images.epoch(run, epoch)
        start = step % (len(images.train) // size) * size
        yield images.normalized(images.batch(crops[start : start + size])), labels[start : start + size]


def sgd_of(model: nn.Module, run: Run) -> torch.optim.SGD:
    """The optimizer of a run, without the momentum it had."""
    return torch.optim.SGD(model.parameters(), run.learning_rate, run.momentum, weight_decay=run.weight_decay)
