"""The global Lyapunov matrix of a training by SGD, its subspaces, and how far perturbed copies get.

L = Y^T Y, with Y the product of the tangent maps of all steps: its eigenvectors are displacements of the initial
parameters, its eigenvalues their squared growth. Eigenvalues above 1 are chaotic, below 1 convergent.
"""

from collections.abc import Iterator
from itertools import combinations_with_replacement
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from experiments.chaotic_training import Problem, Sgd, State, gradient_of, sgd_step
from experiments.curvature import Curvature, curvature, tangent_step
from lib.progress import progress

EDGE = 1e-6  # eigenvalues this close to 1 are neither chaotic nor convergent
COLUMNS = 256  # of Y in a block, and
WINDOW = 50  # steps that pass over a block before the next one: so that it stays in the processor's cache
KINDS = ("max_chaos", "randn_chaos", "max_convergence", "randn_convergence", "randn")  # of perturbations, in order

# ======================================================================================
# The matrix and its eigenpairs
# ======================================================================================


class Spectrum(NamedTuple):
    """Of L at some step: eigenvalues [P], ascending, and eigenvectors [P, P]."""

    step: int
    eigenvalues: Tensor
    eigenvectors: Tensor

    def exponents(self) -> Tensor:
        """log(eigenvalue) / 2 step, [P]: the growth of a displacement per step."""
        return self.eigenvalues.clamp_min(1e-300).log() / (2 * self.step)

    def masks(self) -> Tensor:
        """[2, P]: which eigenvectors span the chaotic and which the convergent subspace, as 1 and 0."""
        chaotic = self.eigenvalues > 1 + EDGE
        convergent = self.eigenvalues < 1 - EDGE
        return torch.stack([chaotic, convergent]).float()


def spectra(problem: Problem, state: State, sgd: Sgd, checkpoints: list[int]) -> Iterator[Spectrum]:
    """Train one network by SGD to the last of the checkpoints; the spectrum at each of them, at least 1.

    Y is propagated whole, in float32 (singular values under about 1e-5 are rounding), by blocks of columns.
    """
    size = state.theta.shape[1]
    identity = torch.eye(size, device=state.theta.device)
    blocks = [block[None].contiguous() for block in identity.split(COLUMNS, 1)]
    velocities = [torch.zeros_like(block) for block in blocks] if sgd.momentum else blocks
    window: list[Curvature] = []
    for step in tqdm(range(checkpoints[-1] + 1), desc="Lyapunov", unit="step", **progress):
        if len(window) == WINDOW or step in checkpoints:
            for block, velocity in zip(blocks, velocities, strict=True):
                for bend in window:
                    tangent_step(block, velocity, bend, sgd.learning_rate, sgd.momentum)
            window = []
        if step in checkpoints:
            product = torch.cat(blocks, -1)[0].double()
            yield Spectrum(step, *torch.linalg.eigh(product.T @ product))
        if step < checkpoints[-1]:
            x, y = problem.batch(step, sgd.batch_size, 1)
            gradient = gradient_of(state.theta, x, y, sgd.task, step).gradient
            window.append(curvature(state.theta.float(), x.float(), y, sgd.task))
            state = sgd_step(state, gradient, sgd)


# ======================================================================================
# Subspaces
# ======================================================================================


class Subspaces(NamedTuple):
    """`Spectrum.masks` [2, P] and eigenvectors [P, P], in float32 to spare memory."""

    masks: Tensor
    eigenvectors: Tensor


def similarity_of(one: Subspaces, other: Subspaces, draw: torch.Generator) -> Tensor:
    """[3, 2, 2]: |V^T W|^2 / min(dim V, dim W) of the chaotic and the convergent subspaces V of `one`, W of `other`;
    its baseline max(dim V, dim W) / P for random subspaces; and that of as many random eigenvectors.
    """
    size = one.eigenvectors.shape[0]
    overlap = (one.eigenvectors.T @ other.eigenvectors).square()
    dimensions_one = one.masks.sum(1)[:, None]
    dimensions_other = other.masks.sum(1)[None]
    smaller = torch.minimum(dimensions_one, dimensions_other).clamp_min(1)
    baseline = torch.maximum(dimensions_one, dimensions_other) / size
    shuffled_one = one.masks[:, torch.randperm(size, generator=draw).to(overlap.device)]
    shuffled_other = other.masks[:, torch.randperm(size, generator=draw).to(overlap.device)]
    measured = one.masks @ overlap @ other.masks.T / smaller
    control = shuffled_one @ overlap @ shuffled_other.T / smaller
    return torch.stack([measured, baseline, control]).cpu()


def similarities(subspaces: list[Subspaces], draw: torch.Generator) -> Tensor:
    """`similarity_of` all pairs of checkpoints: [3, checkpoints, checkpoints, 2, 2]."""
    count = len(subspaces)
    found = torch.zeros(3, count, count, 2, 2)
    for i, j in combinations_with_replacement(range(count), 2):
        similarity = similarity_of(subspaces[i], subspaces[j], draw)
        found[:, i, j] = similarity
        found[:, j, i] = similarity.mT
    return found


def perturbations(last: Spectrum, draws: int, draw: torch.Generator) -> Tensor:
    """Unit directions [2 + 3 draws, P] at step 0, by `KINDS`: the most chaotic eigenvector, random combinations of all
    chaotic ones, the most convergent one, random combinations of all convergent ones, random directions.
    """
    v = last.eigenvectors
    chaotic_mask, convergent_mask = last.masks()
    normal = torch.randn(draws, v.shape[0], generator=draw, dtype=torch.float64).to(v)
    components = normal @ v
    directions = torch.cat(
        [v.T[-1:], components * chaotic_mask @ v.T, v.T[:1], components * convergent_mask @ v.T, normal]
    )
    return F.normalize(directions, dim=1).cpu()


def kinds_of_copies(draws: int) -> list[str]:
    """The kind of each of the `perturbations`."""
    counts = {kind: 1 if kind.startswith("max") else draws for kind in KINDS}
    return [kind for kind in KINDS for _ in range(counts[kind])]


def lyapunov(problem: Problem, state: State, sgd: Sgd, checkpoints: list[int], draws: int, seed: int) -> dict:
    """What one training tells: exponents [checkpoints, P]; dimensions [checkpoints, 2] of the chaotic and the
    convergent subspace; similarity [3, checkpoints, checkpoints, 2, 2]; directions [2 + 3 draws, P]. On the CPU.
    """
    exponents, dimensions, subspaces = [], [], []
    for spectrum in spectra(problem, state, sgd, checkpoints):
        exponents.append(spectrum.exponents())
        dimensions.append(spectrum.masks().sum(1))
        subspaces.append(Subspaces(spectrum.masks(), spectrum.eigenvectors.float()))
    draw = torch.Generator().manual_seed(seed)
    return {
        "exponents": torch.stack(exponents).cpu(),
        "dimensions": torch.stack(dimensions).cpu(),
        "similarity": similarities(subspaces, draw),
        "directions": perturbations(spectrum, draws, draw),
    }


# ======================================================================================
# Copies
# ======================================================================================


class Parting(NamedTuple):
    """How far copies got from a run: times [T], distances [T, copies], `tangent` the same in the linearised dynamics,
    and the final parameters [1 + copies, P] of the run and its copies.
    """

    times: Tensor
    distance: Tensor
    tangent: Tensor
    theta: Tensor


def follow_copies(problem: Problem, state: State, sgd: Sgd, displacements: Tensor, steps: int, every: int) -> Parting:
    """Train one network and copies that start displaced from it [copies, P], on the same batches."""
    copies = state.theta + F.pad(displacements, (0, 0, 1, 0))  # the run itself first
    state = State(copies, torch.zeros_like(copies))
    v = displacements.T[None].contiguous()
    dv = torch.zeros_like(v)
    times, distances, tangents = [], [], []

    def record(step: int) -> None:
        times.append(torch.tensor(step))
        distances.append((state.theta[1:] - state.theta[:1]).norm(dim=1))
        tangents.append(v[0].norm(dim=0))

    for step in tqdm(range(steps), desc="perturbed copies", unit="step", **progress):
        if step % every == 0:
            record(step)
        x, y = problem.batch(step, sgd.batch_size, len(state.theta))
        gradient = gradient_of(state.theta, x, y, sgd.task, step).gradient
        tangent_step(v, dv, curvature(state.theta[:1], x[:1], y[:1], sgd.task), sgd.learning_rate, sgd.momentum)
        state = sgd_step(state, gradient, sgd)
    record(steps)
    return Parting(torch.stack(times), torch.stack(distances), torch.stack(tangents), state.theta)
