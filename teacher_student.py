"""Linear teacher-student: large learning rates and noise collapse the noise modes (Stochastic Collapse, figure 5).

  diagonal    singular vectors fixed, 64 modes s = u v each learning its own singular value
              under label noise; learning rate 3, divided by 10 at step 50,000.            about 20 s
  minibatch   supplement: full 64 x 64 matrices under mini-batch SGD without label noise,
              batch sizes 1 to 1024; warm-up to learning rate 3, two drops.                about 40 s

  python teacher_student.py                   both, with the paper's settings, on one CPU core
  python teacher_student.py diagonal --quick

A teacher of rank 8 labels 1024 inputs with noise; the student fits signal and noise. Label noise
sigma lowers every singular value by learning_rate sigma^2 / 2 and removes the smaller ones;
dropping the rate lets the survivors recover: test loss is lowest soon after a noisy phase.
Every experiment is a function whose keyword defaults are the paper's settings. Change any of them:
  python teacher_student.py diagonal --set learning_rate=2.0 --out mine
  python figures.py --out mine
"""

import functools
import math

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from core import progress, run_script
from theory import diagonal_theory


@functools.cache
def teacher(seed: int = 0, dimension: int = 64, samples: int = 1024, rank: int = 8) -> dict[str, Tensor]:
    """The regression problem: y = X W + 0.5 N(0, 1) / sqrt(dimension), all float64.

    W [dimension, dimension] has singular values linspace(0.5, 1, rank), X [samples, dimension]
    orthonormal columns. X'y = left diag(values) right: `values` are what the student can learn,
    signal and label noise together. Drawn as the reference does (numpy seed 0), so the modes are
    those of the paper's figure.
    """
    random = np.random.RandomState(seed)

    def normal(*shape):
        return torch.from_numpy(random.normal(size=shape))

    def orthogonal(n):  # uniform: QR of a Gaussian with the signs of R's diagonal
        q, r = torch.linalg.qr(normal(n, n))
        return q * r.diagonal().sign()

    left, right = orthogonal(dimension), orthogonal(dimension)
    w = left[:, :rank] * torch.linspace(0.5, 1, rank, dtype=torch.float64) @ right[:rank]
    x = orthogonal(samples)[:, :dimension] @ orthogonal(dimension)
    y = x @ w + 0.5 * normal(samples, dimension) / math.sqrt(dimension)
    left, values, right = torch.linalg.svd(x.T @ y)
    return {"w": w, "x": x, "y": y, "left": left, "values": values, "right": right}


def losses(problem: dict[str, Tensor]):
    """Functions (train, test) of the modes s [..., dimension] for a student left diag(s) right.

    train = |X W' - y|^2 / (2 n m var(y)) as the paper; test = |W' - W|^2 / |W|^2, the relative
    error on isotropic inputs. The paper's test axis is the mean of (W' - W)^2 over n m var(y)
    `paper_test_factor` times ours.
    """
    y, w, values = problem["y"], problem["w"], problem["values"]
    floor = y.square().sum() - values.square().sum()
    overlap = (problem["left"].T @ w @ problem["right"].T).diagonal()
    size = w.square().sum()
    scale = y.var(correction=0) * y.numel()

    def train(s):
        return 0.5 * ((s - values.to(s)).square().sum(-1) + floor) / scale

    def test(s):
        return (s.square().sum(-1) - 2 * s @ overlap.to(s)) / size + 1

    return train, test, float(size / w.numel() / scale)


def diagonal(
    label_noises: tuple = (0.0, 5.0, 10.0, 15.0, 20.0),
    replicas: int = 256,
    learning_rate: float = 3.0,
    drop_step: int = 50_000,
    drop_factor: float = 0.1,
    steps: int = 60_000,
    every: int = 100,
    seed: int = 0,
    device: str | torch.device = "cpu",
) -> dict:
    """Modes s = u v under label noise: loss curves, learned singular values before and after the drop.

    Step: r = u v - s* + sigma xi, u -= eta r v, v -= eta r u, with eta = learning_rate / samples and
    one xi ~ N(0, 1) per mode and step. Both start at 1 and get the same noise, so u = v stays
    exactly true and s = u^2 is run. The label noises share their random numbers: each has its own
    law, and comparing them is sharper.
    """
    if not 0 < drop_step <= steps:
        raise ValueError(f"drop_step must lie within the {steps:,} steps, not at {drop_step:,}")
    problem = teacher()
    train, test, paper_test_factor = losses(problem)
    values = problem["values"].to(device, torch.float32)
    samples, modes = len(problem["x"]), len(values)
    generator = torch.Generator(device).manual_seed(seed)
    sigma = torch.tensor(label_noises, device=device)[:, None, None]
    u = torch.ones(len(label_noises), replicas, modes, device=device)
    factor, xi = torch.empty_like(u), torch.empty(replicas, modes, device=device)
    record = {"steps": [], "train": [], "train_std": [], "test": [], "test_std": [], "mean": [], "std": []}
    snapshots = {drop_step, *range(drop_step, steps + 1, max(1, (steps - drop_step) // 5)), steps}
    snapshot_steps = sorted(snapshots)
    for step in tqdm(range(steps + 1), desc="diagonal", **progress):
        if step % every == 0:
            s = u.square().double()
            for name, curve in (("train", train(s)), ("test", test(s))):
                record[name].append(curve.mean(1).cpu())
                record[f"{name}_std"].append(curve.std(1).cpu())
            record["steps"].append(step)
        if step in snapshots:
            s = u.square()
            record["mean"].append(s.mean(1).cpu())
            record["std"].append(s.std(1).cpu())
        if step % every == 0 or step == drop_step:
            eta = learning_rate / samples * (drop_factor if step >= drop_step else 1.0)
            base, noise = 1 + eta * values, -eta * sigma
        # u (1 - eta (u^2 - s* + sigma xi))
        torch.addcmul(base, u, u, value=-eta, out=factor)
        factor.addcmul_(noise, xi.normal_(generator=generator))
        u.mul_(factor)
    eta = learning_rate / samples
    return {
        "true": values,
        "label_noises": label_noises,
        "eta": eta,
        "threshold": [eta * noise**2 / 2 for noise in label_noises],
        "steps": record["steps"],
        **{name: torch.stack(record[name], 1) for name in ("train", "train_std", "test", "test_std")},
        "paper_test_factor": paper_test_factor,
        "snapshot_steps": snapshot_steps,
        "mean": torch.stack(record["mean"], 1),  # [label noise, snapshot, mode]
        "std": torch.stack(record["std"], 1),
        "theory": [
            diagonal_theory(values, noise, eta, drop_factor, drop_step, snapshot_steps) for noise in label_noises
        ],
    }


def minibatch(
    batch_sizes: tuple = (1, 4, 16, 64, 256, 1024),
    replicas: int = 4,
    learning_rate: float = 3.0,
    warmup_steps: int = 10_000,
    drop_steps: tuple = (50_000, 53_000),
    drop_factor: float = 0.1,
    steps: int = 60_000,
    every: int = 100,
    seed: int = 0,
    device: str | torch.device = "cpu",
) -> dict:
    """Full-matrix student W' = U V trained by SGD on mini-batches, drawn without replacement in epochs.

    U and V start at the singular vectors of X'y (all modes at 1, as in `diagonal`), so that the
    full batch is `diagonal` without label noise. `replicas` draw different batches.
    """
    problem = teacher()
    if any(len(problem["x"]) % size for size in batch_sizes):
        raise ValueError(f"batch sizes must divide the {len(problem['x'])} examples, not {list(batch_sizes)}")
    x, y, w, left, right = (problem[name].to(device, torch.float32) for name in ("x", "y", "w", "left", "right"))
    target, samples = x.T @ y, len(x)
    generator = torch.Generator(device).manual_seed(seed)
    students = []
    for size in batch_sizes:
        copies = 1 if size == samples else replicas  # the full batch has no noise
        students.append([size, left.repeat(copies, 1, 1), right.repeat(copies, 1, 1), None])
    curves = {"steps": [], "train": [], "train_std": [], "test": [], "test_std": []}
    spectra, snapshot_steps = [], sorted({min(drop_steps[0], steps), steps})
    floor = y.square().sum() - target.square().sum()
    scale = y.var(correction=0) * y.numel()
    for step in tqdm(range(steps + 1), desc="minibatch", **progress):
        if step % every == 0:
            products = [u @ v for _, u, v, _ in students]
            fits = [0.5 * ((p - target).square().sum((1, 2)) + floor) / scale for p in products]
            errors = [(p - w).square().sum((1, 2)) / w.square().sum() for p in products]
            for name, rows in (("train", fits), ("test", errors)):
                curves[name].append(torch.stack([row.mean() for row in rows]).cpu())
                curves[f"{name}_std"].append(torch.stack([row.std(correction=0) for row in rows]).cpu())
            curves["steps"].append(step)
        if step in snapshot_steps:
            spectra.append(torch.stack([torch.linalg.svdvals(u @ v).mean(0).cpu() for _, u, v, _ in students]))
        rate = learning_rate * min(1.0, (step + 1) / warmup_steps) * drop_factor ** sum(step >= d for d in drop_steps)
        for student in students:
            size, u, v, order = student
            if size == samples:  # X'X = 1
                error = torch.baddbmm(target.expand(len(u), -1, -1), u, v, beta=-1)
                du, dv = error @ v.mT, u.mT @ error
            else:
                start = step * size % samples
                if start == 0:
                    draws = torch.rand(len(u), samples, generator=generator, device=device)
                    student[3] = order = draws.argsort(1)
                rows = order[:, start : start + size]
                xb = x[rows]
                hidden = xb @ u
                error = torch.baddbmm(y[rows], hidden, v, beta=-1)
                du, dv = xb.mT @ (error @ v.mT), hidden.mT @ error
            u.add_(du, alpha=-rate / size)
            v.add_(dv, alpha=-rate / size)
    return {
        "batch_sizes": batch_sizes,
        "true": problem["values"],
        "teacher": torch.linalg.svdvals(problem["w"]),
        **{name: torch.stack(rows, 1) if name != "steps" else rows for name, rows in curves.items()},
        "snapshot_steps": snapshot_steps,
        "spectra": torch.stack(spectra, 1),  # [batch size, snapshot, mode]
    }


if __name__ == "__main__":
    run_script(
        __doc__,
        {"diagonal": diagonal, "minibatch": minibatch},
        quick={
            "diagonal": {"replicas": 16},
            "minibatch": {"replicas": 1, "warmup_steps": 1000, "drop_steps": (5000, 5300), "steps": 6000},
        },
    )
