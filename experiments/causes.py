"""Why neurons merge: exponents with less noise, none, and without weight decay: `subnetworks.py causes`."""

import copy
import dataclasses
import itertools
import json
import time
from pathlib import Path

import torch
from torch import Tensor, nn
from tqdm import tqdm

from collapse import collapse_exponent, nearest_pairs, neuron_groups
from core import Run, train
from experiments.forecasts import NETWORK, PARTS, per_thousand
from experiments.trained import RUNS, check_early, load_images, run_of, sgd_of, step_batches, trained_network
from lib.batches import Images
from lib.errors import InputError
from lib.progress import progress
from lib.results import write_json
from lib.settings import Count, NotNegative, Seed


def batches_for(run: Run, images: Images, steps: int, title: str):
    """The first batches of a run; where one is the whole training set, the crops of one epoch, always the same."""
    if run.batch_size == len(images.train):
        whole = next(step_batches(images, run, 0, 1))
        batches = itertools.repeat(whole, steps)
    else:
        batches = step_batches(images, run, 0, steps)
    return tqdm(batches, title, steps, **progress)


def rates_of(
    start: nn.Module, sets: dict[str, Tensor], runs: list[Run], images: Images, steps: int, chunk: int
) -> dict:
    """Exponents and their parts, per 1,000 steps: means over the pairs, one a run; `by_pair`: means over the runs."""
    found = []
    for number, run in enumerate(runs):
        title = f"batch {run.batch_size}, decay {run.weight_decay:g}, {number + 1} of {len(runs)}"
        model = copy.deepcopy(start)
        batches = batches_for(run, images, steps, title)
        found.append(collapse_exponent(model, sets, batches, sgd_of(model, run), chunk=chunk))
    rates = {key: torch.stack([one[key] for one in found]) for key in PARTS}
    row = {key: per_thousand(values.mean(1)) for key, values in rates.items()}
    row["by_pair"] = per_thousand(rates["exponent"].mean(0))
    return row


def causes(
    network: dict = NETWORK,
    early: Count = 6000,
    pairs: Count = 100,
    layers: Count = 2,
    batch_sizes: tuple[Count, ...] = (32, 512, 50_000),
    weight_decays: tuple[NotNegative, ...] = (0.0, 5e-4),
    steps: Count = 150,
    replicas: tuple[Count, ...] = (32, 8, 1),
    chunk: Count = 250,
    data: str | None = None,
    folder: str | None = None,
    seed: Seed = 0,
    device: str | torch.device = "cpu",
) -> dict:
    """Exponents where training goes on with more or less noise, down to none, with and without weight decay.

    From the weights of `exponent`'s first network at step `early`, momentum from zero, `steps` steps with each batch
    size and weight decay; `replicas` draw different batches. A batch of the whole training set is the same at each
    step (the crops of one epoch): no noise at all. The nearest `pairs` pairs of each of the last `layers` groups.
    What is finished stays in the run's folder. Rates are per 1,000 steps: [replicas] means over the pairs, and
    `by_pair` the exponents' means over replicas.
    """
    if len(batch_sizes) != len(replicas):
        raise InputError(f"replicas: expected one for each of the {len(batch_sizes)} batch sizes, not {len(replicas)}")
    device = torch.device(device)
    run = run_of(network, seed)
    run_of(network, seed + max(replicas) - 1)  # refuses a seed that is too large for the last of them
    check_early(run, early)
    images = load_images(run, data, device)
    path = Path(folder or RUNS / "subnetworks") / run.name
    train(run, images, path, device)
    start = trained_network(path, early, device)[1]
    groups = neuron_groups(start, images.normalized(images.test[:2]))[-layers:]
    sets = {group.name: nearest_pairs(group, pairs) for group in groups}
    rows = []
    for (size, count), decay in itertools.product(zip(batch_sizes, replicas, strict=True), weight_decays):
        about = {
            "batch_size": min(size, len(images.train)),
            "weight_decay": decay,
            "steps": steps,
            "replicas": count,
            "early": early,
            "pairs": pairs,
            "layers": layers,
        }
        kept = path / ("causes_" + "_".join(f"{key}={value}" for key, value in about.items()) + ".json")
        if not kept.exists():
            begin = time.perf_counter()
            changed = {"batch_size": about["batch_size"], "weight_decay": decay}
            runs = [dataclasses.replace(run, **changed, seed=seed + k) for k in range(count)]
            rates = rates_of(start, sets, runs, images, steps, chunk)
            write_json(kept, about | rates | {"seconds": time.perf_counter() - begin})
        rows.append(json.loads(kept.read_text()))
    return {"data_hash": images.content_hash, "run": dataclasses.asdict(run), "rows": rows}
