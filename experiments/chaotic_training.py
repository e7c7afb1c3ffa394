"""SGD and CGD, which prunes the locally chaotic directions from each step, of many small networks in one tensor.

Herrmann, Granz & Landgraf, *Chaotic Dynamics are Intrinsic to Neural Network Training with SGD* (NeurIPS 2022).
"""

import hashlib
import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from experiments.curvature import CLASSES, Task, accuracies, curvature, eigh, initial, losses, project
from lib.data import load_dataset
from lib.errors import InputError
from lib.progress import progress
from lib.results import default_folder
from lib.run_folder import load_state, save_atomically

BIN = 100  # steps that make one point of a curve

RUNS = "runs/chaotic_sgd"  # pieces of work that are kept

# ======================================================================================
# The problem and a step of SGD
# ======================================================================================


class Sgd(NamedTuple):
    """What a step needs beside data and parameters."""

    task: Task
    batch_size: int
    learning_rate: float
    momentum: float


class Problem(NamedTuple):
    """Images [N, 257] (256 pixels, standardised, and a 1), labels [N], and the order [S, epochs, N] of each seed."""

    train_x: Tensor
    train_y: Tensor
    test_x: Tensor
    test_y: Tensor
    order: Tensor
    content: str  # a hash of images and labels, for the names of stored pieces

    def steps_per_epoch(self, batch_size: int) -> int:
        """The last batch may be smaller."""
        return -(-len(self.train_x) // batch_size)

    def batch(self, step: int, batch_size: int, networks: int) -> tuple[Tensor, Tensor]:
        """Images [networks, b, 257] and labels [networks, b] of a step; one seed's serve all networks, if it's one."""
        epoch, index = divmod(step, self.steps_per_epoch(batch_size))
        examples = self.order[:, epoch, index * batch_size : (index + 1) * batch_size]
        x = self.train_x[examples].expand(networks, -1, -1)
        y = self.train_y[examples].expand(networks, -1)
        return x, y

    def accuracies(self, theta: Tensor, task: Task) -> tuple[Tensor, Tensor]:
        """Of networks [S, P], on all train and on all test images: two of [S]."""
        train = accuracies(theta, self.train_x, self.train_y, task)
        test = accuracies(theta, self.test_x, self.test_y, task)
        return train, test


class State(NamedTuple):
    """Of S networks: parameters and momentum [S, P]."""

    theta: Tensor
    velocity: Tensor


def content_hash(*tensors: Tensor) -> str:
    """The same for equal shapes and numbers alone."""
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(str(tuple(tensor.shape)).encode())
        digest.update(tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def small_and_grey(images: Tensor) -> Tensor:
    """[N, 256] of images [N, C, H, W]: colours averaged, 16 x 16 by bilinear resizing without antialiasing."""
    grey = images.double().mean(1, keepdim=True)
    return F.interpolate(grey, size=16, mode="bilinear").flatten(1)


def setup(
    dataset: str, data: str | Path, sgd: Sgd, steps: int, seeds: list[int], device: str | torch.device
) -> tuple[Problem, State]:
    """The problem for `steps` steps, pixels standardised by train's mean and std, and the initial networks."""
    loaded = load_dataset(dataset, default_folder(data, "data"))
    if loaded.num_classes > CLASSES:
        raise InputError(f"{dataset} has {loaded.num_classes} classes; the paper's networks tell {CLASSES} apart")
    train = small_and_grey(loaded.train_images)
    test = small_and_grey(loaded.test_images)
    mean, std = train.mean(), train.std()
    train = F.pad((train - mean) / std, (0, 1), value=1.0)
    test = F.pad((test - mean) / std, (0, 1), value=1.0)

    epochs = steps // -(-len(train) // sgd.batch_size) + 1
    orders = []
    for seed in seeds:
        draw = torch.Generator().manual_seed(seed)
        orders.append(torch.stack([torch.randperm(len(train), generator=draw) for _ in range(epochs)]))
    tensors = (train, loaded.train_labels, test, loaded.test_labels)
    content = content_hash(loaded.train_images, loaded.train_labels, loaded.test_images, loaded.test_labels)
    problem = Problem(*(one.to(device) for one in (*tensors, torch.stack(orders))), content)
    theta = torch.stack([initial(seed, sgd.task) for seed in seeds]).to(device)
    return problem, State(theta, torch.zeros_like(theta))


class Gradient(NamedTuple):
    """Of S networks on their batches: loss [S], share of right answers [S], gradient [S, P]."""

    loss: Tensor
    accuracy: Tensor
    gradient: Tensor


def gradient_of(theta: Tensor, x: Tensor, y: Tensor, task: Task, step: int) -> Gradient:
    """Raises InputError where a loss is not finite."""
    leaf = theta.detach().requires_grad_()
    loss, accuracy = losses(leaf, x, y, task)
    (gradient,) = torch.autograd.grad(loss.sum(), leaf)  # the networks don't see each other
    if not torch.isfinite(loss).all():
        raise InputError(f"the loss is not finite at step {step}: lower the learning rate")
    return Gradient(loss.detach(), accuracy, gradient)


def sgd_step(state: State, gradient: Tensor, sgd: Sgd) -> State:
    """v' = momentum v + gradient, theta' = theta - learning_rate v'."""
    velocity = sgd.momentum * state.velocity + gradient
    return State(state.theta - sgd.learning_rate * velocity, velocity)


# ======================================================================================
# Pruning
# ======================================================================================


class Pruning(NamedTuple):
    """CGD's rule; see `keep_mask`. `noise`: normal noise of this size in place of the pruned components, or of each
    network's mean |g_i| if "mean".
    """

    prune: Literal["chaotic", "neg", "pos"]
    k: int | None = None
    rule: Literal["top_abs", "rand"] = "top_abs"
    noise: float | str | None = None


def keep_mask(eigenvalues: Tensor, lr: float, pruning: Pruning, generator: torch.Generator | None = None) -> Tensor:
    """Which eigen-directions of a Hessian with eigenvalues [n] stay in CGD's step: bool [n] (theorem 2.2, cgd.py).

    chaotic keeps |1 - lr w| <= 1, i.e. 0 <= w <= 2 / lr; neg keeps w > 0; pos keeps w < 0. With `k` at most
    k of the others go: the most chaotic, smallest or largest (`top_abs`), or drawn with replacement (`rand`).
    """
    w = eigenvalues
    stretch = (1 - lr * w).square()
    if pruning.prune == "chaotic":
        keep, extent = stretch <= 1, stretch
    elif pruning.prune == "neg":
        keep, extent = w > 0, -w
    else:
        keep, extent = w < 0, w
    others = (~keep).nonzero()[:, 0]
    if pruning.k is None or len(others) == 0:
        return keep
    if pruning.rule == "rand":
        chosen = torch.randint(len(others), (pruning.k,), generator=generator).to(w.device)
    else:
        chosen = extent[others].argsort(descending=True, stable=True)[: pruning.k]
    return torch.ones_like(keep).index_fill_(0, others[chosen], False)


class Pruned(NamedTuple):
    """A gradient without its pruned components, and the spectrum of its batch."""

    gradient: Tensor  # [S, P]
    kept: Tensor  # [S], share of |g|^2 before noise
    eigenvalue_min: Tensor  # [S]
    eigenvalue_max: Tensor  # [S]
    negative: Tensor  # [S], how many


def prune(
    gradient: Tensor, theta: Tensor, x: Tensor, y: Tensor, pruning: Pruning, sgd: Sgd, generators: list
) -> Pruned:
    """CGD's gradient of S networks at theta [S, P] on their batches; a generator per network for k and noise."""
    bend = curvature(theta, x, y, sgd.task)
    eigenvalues, eigenvectors = eigh(bend.hessian)
    masks = []
    for own, generator in zip(eigenvalues, generators, strict=True):
        masks.append(keep_mask(own, sgd.learning_rate, pruning, generator))
    keep = torch.stack(masks)
    pruned = project(gradient, keep, eigenvectors, bend.basis)
    kept = pruned.square().sum(1) / gradient.square().sum(1)
    if pruning.noise is not None:
        draws = [torch.randn(theta.shape[1], generator=generator) for generator in generators]
        noise = torch.stack(draws).to(eigenvalues)
        # Without k, neg and pos prune the directions without curvature as well, which have no eigenvector here
        prunes_flat = pruning.prune != "chaotic" and pruning.k is None
        if prunes_flat:
            noise = noise - project(noise, keep, eigenvectors, bend.basis)
        else:
            noise = project(noise, ~keep, eigenvectors, bend.basis)
        size = gradient.abs().mean(1, keepdim=True) if pruning.noise == "mean" else pruning.noise
        pruned = pruned + noise * size
    negative = (eigenvalues < -1e-12).sum(1)
    return Pruned(pruned, kept, eigenvalues[:, 0], eigenvalues[:, -1], negative)


# ======================================================================================
# Training
# ======================================================================================

SPECTRUM = ("kept", "eigenvalue_min", "eigenvalue_max", "negative")  # fields of Pruned


def means_of_bins(values: Tensor) -> Tensor:
    """[steps, S] -> [bins, S]: means over BIN steps each, without NaN."""
    missing = -len(values) % BIN
    padded = F.pad(values, (0, 0, 0, missing), value=math.nan)
    return padded.unflatten(0, (-1, BIN)).nanmean(1)


def train(
    problem: Problem,
    state: State,
    sgd: Sgd,
    first_step: int,
    steps: int,
    seeds: list[int],
    pruning: Pruning | None = None,
    keep_states_at: tuple[int, ...] = (),
) -> tuple[dict[int, State], dict[str, Tensor]]:
    """Networks [S, P] from `first_step` to `steps`, by SGD or, with `pruning`, by CGD.

    Returns the states before the steps `keep_states_at`, and curves: means over bins of 100 steps [bins, S] of batch
    loss, batch accuracy, kept share of |g|^2 (along SGD: what pruning chaotic directions would keep, now and then) and
    the spectrum's extremes; accuracies on all images after each epoch [epochs, S]. Raises InputError if it diverges.
    """
    began = time.perf_counter()
    networks = len(seeds)
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    by_step = {
        name: torch.full((steps - first_step, networks), math.nan, dtype=torch.float64)
        for name in ("loss", "accuracy", *SPECTRUM)
    }
    by_epoch = {"train_accuracy": [], "test_accuracy": []}
    states = {}

    def note_accuracies() -> None:
        train_accuracy, test_accuracy = problem.accuracies(state.theta, sgd.task)
        by_epoch["train_accuracy"].append(train_accuracy)
        by_epoch["test_accuracy"].append(test_accuracy)

    label = f"{pruning.prune if pruning else 'sgd'} from {first_step}"
    for step in tqdm(range(first_step, steps), desc=label, unit="step", **progress):
        if step in keep_states_at:
            states[step] = state
        if step > first_step and step % problem.steps_per_epoch(sgd.batch_size) == 0:
            note_accuracies()
        x, y = problem.batch(step, sgd.batch_size, networks)
        loss, accuracy, gradient = gradient_of(state.theta, x, y, sgd.task, step)
        row = step - first_step
        by_step["loss"][row] = loss
        by_step["accuracy"][row] = accuracy
        if pruning or step % BIN == 0:
            pruned = prune(gradient, state.theta, x, y, pruning or Pruning("chaotic"), sgd, generators)
            for name in SPECTRUM:
                by_step[name][row] = getattr(pruned, name)
            gradient = pruned.gradient if pruning else gradient
        state = sgd_step(state, gradient, sgd)
    if steps in keep_states_at:
        states[steps] = state
    if not state.theta.isfinite().all():
        raise InputError(f"the parameters are not finite after step {steps}: lower the learning rate")
    note_accuracies()

    curves = {name: means_of_bins(values) for name, values in by_step.items()}
    curves["seconds"] = time.perf_counter() - began
    curves["largest_eigenvalue"] = by_step["eigenvalue_max"].nan_to_num(-math.inf).amax(0)
    curves |= {name: torch.stack(rows) for name, rows in by_epoch.items()}
    return states, curves


# ======================================================================================
# Pieces of work that stay in a folder
# ======================================================================================


def stored(folder: str | Path | None, identity: dict, compute: Callable, device: str | torch.device):
    """compute(), or what an earlier, perhaps interrupted, command with the same `identity` left in `folder`.

    `identity`: all that the result depends on, as JSON has it, the data's content among them. Without a folder nothing
    is kept. The result must be made of tensors, numbers, texts, dicts, lists and tuples.
    """
    if folder is None:
        return compute()
    key = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]
    path = default_folder(folder, RUNS) / f"{key}.pt"
    if not path.exists():
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"can't write to --runs {path.parent}: {error.strerror or error}") from None
        save_atomically(path, compute())
    return load_state(path, torch.device(device))
