"""Whether exponents tell who merges or vanishes: `subnetworks.py exponent` and `vanishing`."""

import dataclasses
import time
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from collapse import NeuronGroup, collapse_exponent, nearest_pairs, neuron_groups, normalized_distances
from core import Run, train
from experiments.closed_forms import closed_forms
from experiments.trained import RUNS, check_early, load_images, runs_of, sgd_of, step_batches, trained_network
from lib.batches import Images
from lib.progress import progress
from lib.settings import Count, Seed

NETWORK = {  # narrow, and noisy enough that neurons merge within minutes
    "learning_rate": 0.05,
    "batch_size": 32,
    "steps": 24_000,
    "width": 8,
    "eval_every": 1000,
    "milestones": tuple(range(2000, 24_001, 2000)),
}
NOISY = NETWORK | {  # label noise strong enough that neurons vanish, the first of them at step 13,000
    "label_noise": 0.6,
    "batch_size": 128,
    "steps": 20_000,
    "milestones": tuple(range(2000, 20_001, 2000)),
}
THRESHOLDS = {"pairs": 0.1, "neurons": 0.1**2}  # the paper's, of what `closeness` measures
PARTS = ("exponent", "curvature", "noise", "decay")


def per_thousand(rates: Tensor) -> Tensor:
    """Rates per 1,000 steps, with the digits that a result needs."""
    return (1000 * rates).round(decimals=4)


def closeness(groups: list[NeuronGroup], index: Tensor) -> Tensor:
    """[groups, sets]: pairs' normalised distances, or neurons' squared norms relative to the largest of the group."""
    if index.ndim == 2:
        distances = torch.stack([normalized_distances(group.vectors()) for group in groups])
        return distances[:, index[:, 0], index[:, 1]]
    squares = torch.stack([group.vectors().square().sum(1) for group in groups])
    relative = squares / squares.amax(1, keepdim=True)
    return relative[:, index]


class Followed(NamedTuple):
    """The sets of a network at step `early`, and what has become of them by later steps."""

    sets: dict[str, Tensor]  # name of a group -> [sets, 2] pairs or [sets] neurons
    distance: Tensor  # [2, sets of all groups]: closeness at the first and last moment
    arrived: Tensor  # [moments, groups]: how many of all pairs or neurons are within the threshold


def follow_sets(history: list[list[NeuronGroup]], kind: str, pairs: int) -> Followed:
    """`history`: the groups of the same network at each moment."""
    sets, distances, arrived = {}, [], []
    for groups in zip(*history, strict=True):
        size = groups[0].size
        if kind == "neurons":
            index = every = torch.arange(size)
        else:
            every = torch.triu_indices(size, size, 1).T
            index = nearest_pairs(groups[0], pairs)
        sets[groups[0].name] = index
        distances.append(closeness(groups, index)[[0, -1]])
        arrived.append((closeness(groups, every) < THRESHOLDS[kind]).sum(1))
    return Followed(sets, torch.cat(distances, 1), torch.stack(arrived, 1))


class Start(NamedTuple):
    """Where exponents begin: a network at step `early`, its sets and their future, and the batches that come next."""

    model: nn.Module
    followed: Followed
    moments: list[int]  # the steps at which the sets are followed: `early`, and all milestones after it
    images: Images
    run: Run
    early: int

    @property
    def sets(self) -> dict[str, Tensor]:
        return self.followed.sets


def start_of_run(kind: str, run: Run, early: int, pairs: int, layers: int, images: Images, path: Path) -> Start:
    """Train a run to its end, and go back to step `early`; see `forecast`."""
    device = images.train.device
    train(run, images, path, device)
    moments = [early, *(step for step in run.milestones if step > early)]
    example = images.normalized(images.test[:2])
    history = []
    for step in moments:
        groups = neuron_groups(trained_network(path, step, device)[1], example)
        history.append(groups[-layers:])
    model = trained_network(path, early, device)[1]
    return Start(model, follow_sets(history, kind, pairs), moments, images, run, early)


def future_of(start: Start, kind: str) -> dict:
    """What a result says of the sets of one run, whatever predicts it."""
    return {
        "groups": {name: len(index) for name, index in start.sets.items()},
        "index": torch.cat(list(start.sets.values())),
        "threshold": THRESHOLDS[kind],
        "distance": start.followed.distance.round(decimals=4),  # at step `early` and at the end
        "steps": start.moments,
    }


def follow_exponents(start: Start, steps: int, title: str) -> dict[str, Tensor]:
    """What `collapse_exponent` returns of the next `steps` steps of SGD; `start.model` has taken them then."""
    batches = step_batches(start.images, start.run, start.early, start.early + steps)
    shown = tqdm(batches, title, steps, **progress)
    return collapse_exponent(start.model, start.sets, shown, sgd_of(start.model, start.run))


def predicted_and_watched(found: dict[str, Tensor], window: int) -> dict[str, Tensor]:
    """The mean exponents over a window of the first steps, and the slopes of the log distances over the same ones.

    Without the first fifth, in which the momentum, which starts from zero, comes to its own.
    """
    first = window // 5
    logs = found["log_distance"]
    return {
        "predicted": per_thousand(found["growth"][first:window].mean(0)),
        "same": per_thousand((logs[window] - logs[first]) / (window - first)),
    }


def forecast_of_run(kind: str, start: Start, window: int, title: str) -> tuple[dict, dict]:
    """(what was measured of one run, its exponents by part); see `forecast`."""
    found = follow_exponents(start, 2 * window, title)
    logs = found["log_distance"]
    measured = {
        "settings": dataclasses.asdict(start.run),
        **future_of(start, kind),
        "merged": start.followed.arrived,
        **predicted_and_watched(found, window),
        "next": per_thousand((logs[-1] - logs[window]) / (window - 1)),
    }
    return measured, {key: per_thousand(found[key]) for key in PARTS}


def forecast(
    kind: str,
    network: dict,
    early: int,
    window: int,
    pairs: int,
    layers: int,
    seeds: int,
    data: str | None,
    folder: str | None,
    seed: int,
    device: torch.device,
) -> tuple[dict, Start]:
    """What `exponent` and `vanishing` measure in each seed's network, for `kind` pairs or neurons.

    Each network is trained to the end. From its weights at step `early` SGD goes on for two windows (with the run's
    batches, in float32, momentum from zero) with the exponents of the nearest `pairs`, or of all neurons, in each of
    the last `layers` groups: those of the first window predict the slope in the same and in the next one, and who has
    arrived (at the paper's thresholds) at the end of the run itself. All rates are per 1,000 steps.
    Returns the result, and where the exponents of the first network began.
    """
    trainings = runs_of(network, seed, seeds)
    check_early(trainings[0], early)
    images = load_images(trainings[0], data, device)
    runs = []
    for k, run in enumerate(trainings):
        path = Path(folder or RUNS / "subnetworks") / run.name
        its_start = start_of_run(kind, run, early, pairs, layers, images, path)
        measured, its_parts = forecast_of_run(kind, its_start, window, f"exponents of {kind}, {k + 1} of {seeds}")
        runs.append(measured)
        if k == 0:
            parts = its_parts
            start = its_start
    return {"data_hash": images.content_hash, "runs": runs, "parts": parts}, start


def exponent(
    network: dict = NETWORK,
    early: Count = 6000,
    window: Count = 1000,
    pairs: Count = 250,
    layers: Count = 4,
    seeds: Count = 2,
    steps: Count = 4000,
    pair_steps: Count = 10_000,
    data: str | None = None,
    folder: str | None = None,
    seed: Seed = 0,
    device: str | torch.device = "cpu",
) -> dict:
    """Predicted and measured slopes of the log distance of pairs in a training network; who merges later; why.

    The closed forms (`closed_forms`), what `forecast` measures of the nearest pairs, and the processor time of a
    gradient step, and of one with the exponents of 100 pairs.
    """
    device = torch.device(device)
    found, start = forecast("pairs", network, early, window, pairs, layers, seeds, data, folder, seed, device)
    return {"closed": closed_forms(steps, pair_steps, seed), **found, "cost": step_times(start)}


def vanishing(
    network: dict = NOISY,
    early: Count = 6000,
    window: Count = 1000,
    layers: Count = 15,
    seeds: Count = 2,
    data: str | None = None,
    folder: str | None = None,
    seed: Seed = 0,
    device: str | torch.device = "cpu",
) -> dict:
    """Who vanishes: what `forecast` measures of all neurons, long before the first has gone, under label noise.

    A vanishing set is linearised at zero, where the neurons of a layer obey the same equation: what differs is the
    direction that each has, and how long it takes to turn.
    """
    device = torch.device(device)
    return forecast("neurons", network, early, window, 1, layers, seeds, data, folder, seed, device)[0]


def step_times(start: Start) -> dict:
    """Median seconds of a gradient, and of one with exponents of the nearest 100 pairs of the last group.

    Of the processor, which another program doesn't disturb; on a GPU of the clock on the wall.
    """
    on_gpu = start.images.train.is_cuda

    def now() -> float:
        if on_gpu:
            torch.cuda.synchronize()
            return time.perf_counter()
        return time.process_time()

    last = list(start.sets)[-1]
    sets = {last: start.sets[last][:100]}
    spent = {"gradient": [], "exponent": []}
    for _ in range(5):
        batches = list(step_batches(start.images, start.run, start.early, start.early + 10))
        sgd = sgd_of(start.model, start.run)
        begin = now()
        for x, labels in batches:
            sgd.zero_grad()
            F.cross_entropy(start.model(x), labels).backward()
        middle = now()
        collapse_exponent(start.model, sets, batches, sgd, frozen=True)
        end = now()
        spent["gradient"].append((middle - begin) / len(batches))
        spent["exponent"].append((end - middle) / len(batches))
    medians = {key: sorted(times)[2] for key, times in spent.items()}
    return medians | {"pairs": len(sets[last])}
