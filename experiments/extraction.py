"""What the extracted networks of trained ones keep of accuracy and cost: `subnetworks.py extract`."""

import copy
import dataclasses
import tempfile
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from collapse import NeuronGroup, extract_subnetwork, neuron_groups
from core import Run, evaluate, train, vgg16
from experiments.trained import RUNS, load_images, run_of, sgd_of, step_batches, trained_network
from lib.batches import Images
from lib.errors import InputError
from lib.run_folder import RunFolder
from lib.teams import ALONE

# ======================================================================================
# Networks with planted collapse: the function must stay exactly
# ======================================================================================


def small_mlp() -> nn.Sequential:
    return nn.Sequential(nn.Linear(40, 64), nn.Tanh(), nn.Linear(64, 64), nn.GELU(), nn.Linear(64, 10))


def torchvision_model(name: str) -> nn.Module:
    import torchvision  # here, because it takes seconds to import

    return getattr(torchvision.models, name)()


class Known(NamedTuple):
    """A network to plant collapse in, and the shape of its examples."""

    build: Callable[[], nn.Module]
    shape: tuple[int, ...]


KNOWN = {
    "MLP": Known(small_mlp, (40,)),
    "VGG-16": Known(vgg16, (3, 32, 32)),
    "vgg11_bn": Known(partial(torchvision_model, "vgg11_bn"), (3, 32, 32)),
    "resnet18": Known(partial(torchvision_model, "resnet18"), (3, 64, 64)),
}


def remove_neurons(group: NeuronGroup, gone: Tensor) -> None:
    """Put these neurons of a network to zero in all that is theirs: incoming, norms, running statistics, outgoing."""
    for slot in group.slots:
        tensor = slot.tensor.detach()
        rows = slot.read(tensor).clone()
        rows[gone] = 0.0
        slot.write(tensor, rows)


def plant_collapse(model: nn.Module, example: Tensor, seed: int = 0) -> int:
    """Put a network onto invariant sets: in each group a quarter of the neurons vanish, a quarter copy others.

    Changes `model` and returns how many neurons it has lost so. To try things on.
    """
    generator = torch.Generator().manual_seed(seed)
    lost = 0
    for group in neuron_groups(model, example):
        quarter = group.size // 4
        order = torch.randperm(group.size, generator=generator)
        gone, copies, originals = order[: 3 * quarter].view(3, quarter)
        for slot in group.slots:  # running statistics, too
            tensor = slot.tensor.detach()
            rows = slot.read(tensor).clone()
            rows[copies] = rows[originals]
            slot.write(tensor, rows)
        remove_neurons(group, gone)
        lost += 2 * quarter
    return lost


def planted_row(name: str, seed: int, draw: torch.Generator) -> dict:
    """Plant collapse in a known network and extract it: what was removed, how the output changed, how long it took."""
    known = KNOWN[name]
    model = known.build()
    x = torch.randn(4, *known.shape, generator=draw)
    lost = plant_collapse(model, x, seed)
    start = time.process_time()
    smaller = extract_subnetwork(model, x, 1e-6, 1e-6)
    seconds = time.process_time() - start
    with torch.no_grad():
        before = model.eval()(x)
        after = smaller.eval()(x)
    return {
        "name": name,
        "seconds": seconds,
        "planted": lost,
        "removed": sum(group["width"] - group["kept"] for group in smaller.extraction),
        "change": (before - after).abs().max().item(),
        "scale": before.abs().max().item(),
        "parameters": [count_parameters(model), count_parameters(smaller)],
    }


# ======================================================================================
# Trained networks
# ======================================================================================


def count_parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def cost(model: nn.Module, images: Tensor) -> dict:
    """Parameters, FLOPs (two per multiply-add) and milliseconds per image (least of five rounds), in eval mode."""
    times = []
    with torch.no_grad():
        model.eval()
        with FlopCounterMode(display=False) as counter:
            model(images[:1])
        for _ in range(5):
            start = time.perf_counter()
            model(images).sum().item()
            times.append(time.perf_counter() - start)
    return {
        "parameters": count_parameters(model),
        "flops": counter.get_total_flops(),
        "ms": 1000 * min(times) / len(images),
    }


def accuracy(model: nn.Module, images: Images) -> float:
    return evaluate(model, images, ALONE, "float32")[1]


def tuned_accuracy(model: nn.Module, run: Run, images: Images, steps: int, learning_rate: float) -> float | None:
    """Accuracy after so many further steps of the run's own SGD, at another rate, on its next batches.

    None for a run that another optimizer trained.
    """
    if run.optimizer != "sgd":
        return None
    model = copy.deepcopy(model).train()
    optimizer = sgd_of(model, dataclasses.replace(run, learning_rate=learning_rate))
    for x, labels in step_batches(images, run, run.steps, run.steps + steps):
        optimizer.zero_grad()
        F.cross_entropy(model(x), labels).backward()
        optimizer.step()
    return accuracy(model, images)


class Trained(NamedTuple):
    """A finished run."""

    name: str
    run: Run
    model: nn.Module


def finished_runs(folders: list[Path], device: torch.device) -> list[Trained]:
    """The networks at the end of all finished runs below these folders. InputError if there are none."""
    found = []
    for folder in folders:
        for settings in sorted(folder.rglob("settings.json")):
            folder_of_run = RunFolder(settings.parent)
            steps = folder_of_run.read_settings().get("steps")
            if folder_of_run.weights_file(steps).exists():
                found.append(Trained(settings.parent.name, *trained_network(settings.parent, None, device)))
    if not found:
        raise InputError(
            f"no finished run below {', '.join(map(str, folders))}; train some:"
            " vgg_cifar10.py lr --width 8 --batch-size 128 --steps 20000 --eval-every 1000 --seeds 2"
        )
    return found


def each_training_once(networks: list[Trained]) -> list[Trained]:
    """Without branches after a drop, and of the same training with more and less milestones one."""
    kept, seen = [], set()
    for network in networks:
        training = dataclasses.replace(network.run, milestones=())
        if network.run.start == "" and training not in seen:
            seen.add(training)
            kept.append(network)
    return kept


PAPERS_REDUNDANT = 0.1  # where the rival is tried
DRAWS = 5  # of random neurons


def accuracy_with_random_removed(model: nn.Module, images: Images, extraction: list[dict], seed: int) -> dict:
    """What an extraction is held against: as many neurons of each group removed at random. Mean of `DRAWS`."""
    removed = {row["name"]: row["width"] - row["kept"] for row in extraction}
    draw = torch.Generator().manual_seed(seed)
    found = []
    for _ in range(DRAWS):
        smaller = copy.deepcopy(model)
        for group in neuron_groups(smaller, images.normalized(images.test[:2])):
            order = torch.randperm(group.size, generator=draw)
            remove_neurons(group, order[: removed[group.name]])
        found.append(accuracy(smaller, images))
    return {"accuracy": sum(found) / DRAWS, "draws": found}


def extraction_rows(
    network: Trained, images: Images, vanishing: float, redundant: tuple, finetune: int, learning_rate: float
) -> list[dict]:
    """A row per threshold: accuracy, tuned accuracy and cost, before and after extraction.

    At the paper's threshold also the accuracy with as many random neurons removed.
    """
    run, whole = network.run, network.model
    x = images.normalized(images.test[:500])
    before = {"accuracy": accuracy(whole, images)}
    before["tuned"] = tuned_accuracy(whole, run, images, finetune, learning_rate)
    before |= cost(whole, x)
    rows = []
    for limit in redundant:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what is unchanged is counted as such below
            smaller = extract_subnetwork(whole, x[:2], vanishing, limit)
        after = {"accuracy": accuracy(smaller, images)} | cost(smaller, x)
        with torch.no_grad():
            outputs = whole.eval()(x)
            after["change"] = (outputs - smaller(x)).abs().max().item()
            after["scale"] = outputs.std().item()
        after["tuned"] = tuned_accuracy(smaller, run, images, finetune, learning_rate)
        after["groups"] = smaller.extraction
        about = {key: getattr(run, key) for key in ("learning_rate", "label_noise", "seed", "steps")}
        row = {"name": network.name, **about, "redundant": limit, "before": before, "after": after}
        if limit == PAPERS_REDUNDANT:
            row["random"] = accuracy_with_random_removed(whole, images, smaller.extraction, run.seed)
        rows.append(row)
    return rows


def extract_trained(
    runs: tuple,
    redundant: tuple,
    vanishing: float,
    finetune: int,
    learning_rate: float,
    network: dict | None,
    planted: tuple,
    data: str | None,
    seed: int,
    device: torch.device,
) -> dict:
    """What the extracted networks of finished runs keep of accuracy and cost, at several thresholds."""
    if finetune < 0 or not set(planted) <= KNOWN.keys():
        raise InputError(f"finetune must not be negative; planted are of {', '.join(KNOWN)}")
    if runs and network is not None:
        raise InputError("extract takes --runs, or a network to train (as --quick does), not both")
    with tempfile.TemporaryDirectory() as folder:
        folders = [Path(one) for one in runs] or [RUNS / "vgg_cifar10"]
        if network is not None:
            run = run_of(network, seed)
            train(run, load_images(run, data, device), Path(folder) / run.name, device)
            folders = [Path(folder)]
        networks = each_training_once(finished_runs(folders, device))
    draw = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    exact = [planted_row(name, seed, draw) for name in planted]
    rows, images = [], {}
    for one in networks:
        if one.run.dataset not in images:
            images[one.run.dataset] = load_images(one.run, data, device)
        rows += extraction_rows(one, images[one.run.dataset], vanishing, redundant, finetune, learning_rate)
    return {"planted": exact, "networks": rows}
