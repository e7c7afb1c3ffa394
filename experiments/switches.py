"""Do exponents tell what a change of settings does before it is made? `subnetworks.py switch`."""

import copy
import dataclasses
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from collapse import NeuronGroup, collapse_exponent, neuron_groups
from core import Run, train
from experiments.forecasts import NOISY, per_thousand
from experiments.trained import RUNS, check_early, load_images, runs_of, sgd_of, step_batches, trained_network
from lib.batches import Images
from lib.errors import InputError
from lib.progress import progress
from lib.settings import Count, Seed

CHANGES = {"learning_rate": (0.1, 0.025), "batch_size": (32,), "label_noise": (0.2,)}  # of 0.05, 128 and 0.6
CHANGEABLE = ("learning_rate", "batch_size", "label_noise", "weight_decay", "momentum")
OTHER_DRAWS = 1000  # added to a seed: the exponents see other batches than the run that is switched


def changed_runs(run: Run, changes: dict) -> list[tuple[str, Run]]:
    """(what is changed, the run with it) of each value in `changes`. InputError for what can't be switched."""
    found = []
    for name, values in changes.items():
        if name not in CHANGEABLE:
            raise InputError(f"changes: {name!r} can't be switched; choose from {', '.join(CHANGEABLE)}")
        if not isinstance(values, tuple | list):
            raise InputError(f"changes: expected several values of {name}, as ({values!r},), not {values!r}")
        for value in values:
            found.append((name, dataclasses.replace(run, **{name: value})))
    if not found:
        raise InputError("changes: nothing is switched")
    return found


def with_other_draws(run: Run) -> Run:
    """The run with batches of other seeds."""
    return dataclasses.replace(run, seed=run.seed + OTHER_DRAWS)


def groups_of(model: nn.Module, images: Images, layers: int) -> list[NeuronGroup]:
    return neuron_groups(model, images.normalized(images.test[:2]))[-layers:]


def log_sizes(groups: list[NeuronGroup]) -> Tensor:
    """[neurons of all groups]: log norm of each neuron's parameters."""
    return torch.cat([group.vectors().norm(dim=1).log() for group in groups])


def train_on(model: nn.Module, run: Run, images: Images, first: int, steps: int, layers: int, title: str) -> Tensor:
    """[neurons]: slopes of log sizes per 1,000 steps while `model` is trained on by the run's SGD from step `first`.

    Without the first fifth, in which the momentum, which starts from zero, comes to its own.
    """
    groups = groups_of(model, images, layers)
    optimizer = sgd_of(model, run)
    settled = steps // 5
    batches = tqdm(step_batches(images, run, first, first + steps), title, steps, **progress)
    for k, (x, labels) in enumerate(batches):
        if k == settled:
            begin = log_sizes(groups)
        optimizer.zero_grad()
        F.cross_entropy(model(x), labels).backward()
        optimizer.step()
    return per_thousand((log_sizes(groups) - begin) / (steps - settled))


def exponents_at(model: nn.Module, run: Run, images: Images, first: int, steps: int, layers: int, title: str) -> Tensor:
    """[neurons]: exponents of the vanishing sets per 1,000 steps at these very weights, which stay as they are."""
    sets = {group.name: torch.arange(group.size) for group in groups_of(model, images, layers)}
    batches = tqdm(step_batches(images, with_other_draws(run), first, first + steps), title, steps, **progress)
    found = collapse_exponent(model, sets, batches, sgd_of(model, run), frozen=True)
    after_settling = found["growth"][steps // 5 :]
    return per_thousand(after_settling.mean(0))


def switch(
    network: dict = NOISY,
    changes: dict = CHANGES,
    early: Count = 6000,
    window: Count = 1000,
    ahead: Count = 300,
    layers: Count = 15,
    seeds: Count = 2,
    data: str | None = None,
    folder: str | None = None,
    seed: Seed = 0,
    device: str | torch.device = "cpu",
) -> dict:
    """What a change of settings does to the neurons of a network, told before it is made.

    From the weights at step `early` SGD goes on for `window` steps as before, which gives the slopes of all log sizes
    before the switch. There the network stops, and for each of `changes` (setting -> new values) the exponents of all
    vanishing sets are taken at the new setting over `ahead` batches, weights fixed. Then it is switched: the slopes of
    `window` more steps. A row per change and network; `unchanged` are the same where nothing is changed. Rates are per
    1,000 steps.
    """
    device = torch.device(device)
    runs = runs_of(network, seed, seeds)
    check_early(runs[0], early)
    for run in runs:  # refused before anything is trained
        changed_runs(run, changes)
        with_other_draws(run)
    images = load_images(runs[0], data, device)
    now = early + window
    rows, unchanged = [], []
    for run in runs:
        path = Path(folder or RUNS / "subnetworks") / run.name
        train(run, images, path, device, until=early)
        model = trained_network(path, early, device)[1]
        before = train_on(model, run, images, early, window, layers, f"seed {run.seed}, before")
        for name, changed in [("nothing", run), *changed_runs(run, changes)]:
            title = f"seed {run.seed}, {name} changed"
            its_model = copy.deepcopy(model)
            predicted = exponents_at(its_model, changed, images, now, ahead, layers, f"{title}, exponents")
            after = train_on(its_model, changed, images, now, window, layers, f"{title}, trained on")
            row = {"seed": run.seed, "predicted": predicted, "before": before, "after": after}
            if name == "nothing":
                unchanged.append(row)
            else:
                rows.append({"changed": name, "value": getattr(changed, name), **row})
    groups = {group.name: group.size for group in groups_of(model, images, layers)}
    return {"data_hash": images.content_hash, "groups": groups, "rows": rows, "unchanged": unchanged}
