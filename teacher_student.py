"""Linear teacher-student: large learning rates and noise collapse the noise modes (Stochastic Collapse, figure 5).

  diagonal    singular vectors fixed, 64 modes s = u v each learning its own singular value under label
              noise 0, 5, 10, 15, 20; 256 replicas, 60,000 steps, learning rate 3, divided by 10 at
              step 50,000. Expect test losses of 1.51, 1.49, 1.37, 1.13, 0.71 at the end, in the
              paper's units of 1e-5.                                                       about 20 s
  minibatch   supplement: full 64 x 64 matrices under mini-batch SGD without label noise,
              batch sizes 1 to 1,024; warm-up to learning rate 3, drops at 50,000 and 53,000.   about 40 s

  python teacher_student.py                   both, with the paper's settings, on one CPU core
  python teacher_student.py diagonal --quick

A teacher of rank 8 labels 1,024 inputs with noise; the student fits signal and noise. Label noise
sigma lowers every singular value by learning_rate sigma^2 / 2 and removes the smaller ones;
dropping the rate lets the survivors recover: test loss is lowest soon after a noisy phase.
Every experiment is a function whose keyword defaults are the paper's settings. Change any of them:
  python teacher_student.py diagonal --set learning_rate=2.0 --out mine
  python figures.py --out mine
"""

import lib.interrupts  # noqa: F401  # isort: skip  (first: from here on Ctrl-C leaves no traceback)

import functools
import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from experiments.seed_records import deviation
from experiments.theory import diagonal_theory
from lib.command import run_script
from lib.errors import InputError
from lib.progress import progress
from lib.settings import Count, NotNegative, Positive, Seed, checked

# ======================================================================================
# The problem
# ======================================================================================


class Problem(NamedTuple):
    """A regression problem y = x w + noise; x'y = left diag(values) right. All float64."""

    w: Tensor  # [dimension, dimension]
    x: Tensor  # [samples, dimension], orthonormal columns
    y: Tensor  # [samples, dimension]
    left: Tensor
    values: Tensor  # [dimension]: what the student can learn, signal and label noise together
    right: Tensor


@functools.cache
def teacher(seed: int = 0, dimension: int = 64, samples: int = 1024, rank: int = 8) -> Problem:
    """The paper's problem: W has singular values linspace(0.5, 1, rank); y = X W + 0.5 N(0, 1) / sqrt(dimension).

    Drawn as the reference does (numpy seed 0), so the modes are those of the paper's figure.
    """
    random = np.random.RandomState(seed)

    def normal(*shape: int) -> Tensor:
        return torch.from_numpy(random.normal(size=shape))

    def orthogonal(n: int) -> Tensor:  # uniform: QR of a Gaussian with the signs of R's diagonal
        q, r = torch.linalg.qr(normal(n, n))
        return q * r.diagonal().sign()

    w_left = orthogonal(dimension)
    w_right = orthogonal(dimension)
    singular_values = torch.linspace(0.5, 1, rank, dtype=torch.float64)
    w = w_left[:, :rank] * singular_values @ w_right[:rank]
    x = orthogonal(samples)[:, :dimension] @ orthogonal(dimension)
    y = x @ w + 0.5 * normal(samples, dimension) / math.sqrt(dimension)
    left, values, right = torch.linalg.svd(x.T @ y)
    return Problem(w, x, y, left, values, right)


def loss_scale(problem: Problem) -> Tensor:
    """n m var(y), by which the paper divides both losses."""
    return problem.y.var(correction=0) * problem.y.numel()


def train_loss(problem: Problem, s: Tensor) -> Tensor:
    """|X W' - y|^2 / (2 n m var(y)), as the paper, of students W' = left diag(s) right; s [..., dimension]."""
    values = problem.values.to(s)
    floor = problem.y.square().sum() - problem.values.square().sum()  # what no student can fit
    return 0.5 * ((s - values).square().sum(-1) + floor) / loss_scale(problem)


def relative_test_loss(problem: Problem, s: Tensor) -> Tensor:
    """|W' - W|^2 / |W|^2, the relative error on isotropic inputs; the paper's is `paper_test_factor` times this."""
    overlap = (problem.left.T @ problem.w @ problem.right.T).diagonal().to(s)
    return (s.square().sum(-1) - 2 * s @ overlap) / problem.w.square().sum() + 1


def paper_test_factor(problem: Problem) -> float:
    """The paper's test axis is the mean of (W' - W)^2 over n m var(y)."""
    return float(problem.w.square().sum() / problem.w.numel() / loss_scale(problem))


# ======================================================================================
# Singular vectors fixed
# ======================================================================================


def check_finite(student: Tensor) -> None:
    """Raises InputError for a student whose training has diverged."""
    if not student.isfinite().all():
        raise InputError("the student's weights are not finite: choose a lower learning_rate")


LARGEST = 14  # modes: those that survive at every label noise of the paper


@checked
def diagonal(
    label_noises: tuple[NotNegative, ...] = (0.0, 5.0, 10.0, 15.0, 20.0),
    replicas: Count = 256,
    learning_rate: Positive = 3.0,
    drop_step: Count = 50_000,
    drop_factor: Positive = 0.1,
    steps: Count = 60_000,
    every: Count = 100,
    seed: Seed = 0,
    device: str | torch.device = "cpu",
) -> dict:
    """Modes s = u v under label noise: loss curves, learned singular values before and after the drop.

    Step: r = u v - s* + sigma xi, u -= eta r v, v -= eta r u, with eta = learning_rate / samples and
    one xi ~ N(0, 1) per mode and step. Both start at 1 and get the same noise, so u = v stays
    exactly true and s = u^2 is run. The label noises share their random numbers: each has its own
    law, and comparing them is sharper.
    """
    if drop_step > steps:
        raise InputError(f"drop_step must lie within the {steps:,} steps, not at {drop_step:,}")
    problem = teacher()
    values = problem.values.to(device, torch.float32)
    modes = len(values)
    eta_before = learning_rate / len(problem.x)
    snapshot_every = max(1, (steps - drop_step) // 5)
    snapshot_steps = sorted({*range(drop_step, steps + 1, snapshot_every), steps})

    generator = torch.Generator(device).manual_seed(seed)
    sigma = torch.tensor(label_noises, device=device)[:, None, None]
    u = torch.ones(len(label_noises), replicas, modes, device=device)
    factor = torch.empty_like(u)
    xi = torch.empty(replicas, modes, device=device)
    recorded_steps = []
    curves = {"train": [], "train_std": [], "test": [], "test_std": []}  # each of [label noise]
    means, deviations = [], []
    for step in tqdm(range(steps + 1), desc="diagonal", **progress):
        if step % every == 0:
            s = u.square().double()
            for name, loss in (("train", train_loss(problem, s)), ("test", relative_test_loss(problem, s))):
                curves[name].append(loss.mean(1).cpu())
                curves[f"{name}_std"].append(deviation(loss, 1).cpu())
            recorded_steps.append(step)
        if step in snapshot_steps:
            s = u.square()
            means.append(s.mean(1).cpu())
            deviations.append(deviation(s, 1).cpu())
        if step == drop_step:
            shift = (values - u.square())[..., :LARGEST].mean(-1)
            shift_error = deviation(shift, 1).cpu() / math.sqrt(replicas)
        eta = eta_before * (drop_factor if step >= drop_step else 1.0)
        # u *= 1 - eta (u^2 - s* + sigma xi)
        torch.addcmul(1 + eta * values, u, u, value=-eta, out=factor)
        factor.addcmul_(-eta * sigma, xi.normal_(generator=generator))
        u.mul_(factor)
    check_finite(u)

    theory = [
        diagonal_theory(values, noise, eta_before, drop_factor, drop_step, snapshot_steps) for noise in label_noises
    ]
    return {
        "true": values,
        "label_noises": label_noises,
        "eta": eta_before,
        "threshold": [eta_before * noise**2 / 2 for noise in label_noises],
        "steps": recorded_steps,
        **{name: torch.stack(rows, 1) for name, rows in curves.items()},
        "paper_test_factor": paper_test_factor(problem),
        "snapshot_steps": snapshot_steps,
        "mean": torch.stack(means, 1),  # [label noise, snapshot, mode]
        "std": torch.stack(deviations, 1),
        "shift_error": shift_error,  # s.e. of the mean s* - s of the largest modes at the drop, [label noise]
        "theory": theory,
    }


# ======================================================================================
# Full matrices, mini-batches
# ======================================================================================


class Students:
    """Copies W' = u v of one batch size, [copies, dimension, dimension] each, and the order of their examples."""

    def __init__(self, problem: Problem, batch_size: int, copies: int):
        self.batch_size = batch_size
        self.u = problem.left.repeat(copies, 1, 1)
        self.v = problem.right.repeat(copies, 1, 1)
        self.order = None

    def gradients(self, problem: Problem, step: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Gradients of half the batch's squared error, a sum over its examples, by u and by v.

        An epoch's examples come in a new order, without replacement.
        """
        u, v = self.u, self.v
        samples = len(problem.x)
        if self.batch_size == samples:  # then X'X = 1 saves the inputs
            target = problem.x.T @ problem.y
            error = torch.baddbmm(target.expand(len(u), -1, -1), u, v, beta=-1)
            return error @ v.mT, u.mT @ error
        first = step * self.batch_size % samples
        if first == 0:
            draws = torch.rand(len(u), samples, generator=generator, device=u.device)
            self.order = draws.argsort(1)
        rows = self.order[:, first : first + self.batch_size]
        x = problem.x[rows]
        hidden = x @ u
        error = torch.baddbmm(problem.y[rows], hidden, v, beta=-1)
        return x.mT @ (error @ v.mT), hidden.mT @ error


def spectra_of(groups: list[Students]) -> Tensor:
    """Singular values of the students, means over the copies: [group, mode]. InputError for diverged ones."""
    rows = []
    for students in groups:
        product = students.u @ students.v
        check_finite(product)
        rows.append(torch.linalg.svdvals(product).mean(0).cpu())
    return torch.stack(rows)


@checked
def minibatch(
    batch_sizes: tuple[Count, ...] = (1, 4, 16, 64, 256, 1024),
    replicas: Count = 4,
    learning_rate: Positive = 3.0,
    warmup_steps: Count = 10_000,
    drop_steps: tuple[Count, ...] = (50_000, 53_000),
    drop_factor: Positive = 0.1,
    steps: Count = 60_000,
    every: Count = 100,
    seed: Seed = 0,
    device: str | torch.device = "cpu",
) -> dict:
    """Full-matrix student W' = U V trained by SGD on mini-batches, drawn without replacement in epochs.

    U and V start at the singular vectors of X'y (all modes at 1, as in `diagonal`), so that the
    full batch is `diagonal` without label noise. `replicas` draw different batches.
    """
    exact = teacher()
    samples = len(exact.x)
    if any(samples % size for size in batch_sizes):
        raise InputError(f"batch sizes must divide the {samples} examples, not {list(batch_sizes)}")
    problem = Problem(*(one.to(device, torch.float32) for one in exact))
    target = problem.x.T @ problem.y
    floor = problem.y.square().sum() - target.square().sum()
    scale = loss_scale(problem)
    generator = torch.Generator(device).manual_seed(seed)
    groups = []
    for size in batch_sizes:
        copies = 1 if size == samples else replicas  # the full batch has no noise
        groups.append(Students(problem, size, copies))

    snapshot_steps = sorted({min(drop_steps[0], steps), steps})
    recorded_steps, spectra = [], []
    curves = {"train": [], "train_std": [], "test": [], "test_std": []}  # each of [batch size]
    for step in tqdm(range(steps + 1), desc="minibatch", **progress):
        if step % every == 0:
            products = [students.u @ students.v for students in groups]
            fits = [0.5 * ((p - target).square().sum((1, 2)) + floor) / scale for p in products]
            errors = [(p - problem.w).square().sum((1, 2)) / problem.w.square().sum() for p in products]
            for name, rows in (("train", fits), ("test", errors)):
                curves[name].append(torch.stack([row.mean() for row in rows]).cpu())
                curves[f"{name}_std"].append(torch.stack([row.std(correction=0) for row in rows]).cpu())
            recorded_steps.append(step)
        if step in snapshot_steps:
            spectra.append(spectra_of(groups))
        warmup = min(1.0, (step + 1) / warmup_steps)
        drops = sum(step >= drop for drop in drop_steps)
        rate = learning_rate * warmup * drop_factor**drops
        for students in groups:
            by_u, by_v = students.gradients(problem, step, generator)
            students.u.add_(by_u, alpha=-rate / students.batch_size)
            students.v.add_(by_v, alpha=-rate / students.batch_size)
    return {
        "batch_sizes": batch_sizes,
        "true": exact.values,
        "teacher": torch.linalg.svdvals(exact.w),
        "steps": recorded_steps,
        **{name: torch.stack(rows, 1) for name, rows in curves.items()},
        "snapshot_steps": snapshot_steps,
        "spectra": torch.stack(spectra, 1),  # [batch size, snapshot, mode]
    }


QUICK = {
    "diagonal": {"replicas": 16},
    "minibatch": {"replicas": 1, "warmup_steps": 1000, "drop_steps": (5000, 5300), "steps": 6000},
}

if __name__ == "__main__":
    run_script(__doc__, {"diagonal": diagonal, "minibatch": minibatch}, QUICK)
