"""The exact Hessian of a mini-batch's loss, for the small networks of *Chaotic Dynamics* and for many at once.

A mini-batch bends the loss of a large network in few directions only. For an MLP with one hidden layer they are known
in closed form: at batch size 8, 336 of the 5,350 of the network 256-20-10. So an exact spectrum takes milliseconds:

    hessian, basis = curvature(theta, x, y, Task("mlp", "sigmoid"))
    eigenvalues, eigenvectors = eigh(hessian)               # all eigenvalues but the zeros, [S, n]
    directions = basis.add(theta.new_zeros(*theta.shape, n), eigenvectors, 1.0)     # as parameters, [S, P, n]
"""

import math
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from lib.errors import InputError

# ======================================================================================
# The networks
# ======================================================================================

HIDDEN = 20
CLASSES = 10
INPUTS = 16 * 16 + 1  # an input is 256 pixels and a 1, whose weights are the biases
SHAPES = {  # weights of each layer, out x (fan-in + 1): 5,350 and 1,158 parameters
    "mlp": ((HIDDEN, INPUTS), (CLASSES, HIDDEN + 1)),
    "cnn": ((4, 9 + 1), (4, 36 + 1), (8, 36 + 1), (8, 72 + 1), (CLASSES, 8 + 1)),
}


class Activation(NamedTuple):
    """An activation function, and its two derivatives as functions of its *value* h."""

    function: Callable[[Tensor], Tensor]
    slope: Callable[[Tensor], Tensor]
    bend: Callable[[Tensor], Tensor]


ACTIVATIONS = {
    "sigmoid": Activation(torch.sigmoid, lambda h: h * (1 - h), lambda h: h * (1 - h) * (1 - 2 * h)),
    "relu": Activation(torch.relu, lambda h: (h > 0).to(h), torch.zeros_like),
}


class Task(NamedTuple):
    """Which network: mlp or cnn, with sigmoid or relu."""

    architecture: str
    activation: str


def initial(seed: int, task: Task) -> Tensor:
    """Flat float64 parameters [P], weights and biases uniform within +-1/sqrt(fan-in): torch's default.

    Raises InputError for an unknown network.
    """
    if task.architecture not in SHAPES or task.activation not in ACTIVATIONS:
        raise InputError(
            f"no {task.architecture} with {task.activation}: choose from {', '.join(SHAPES)}; {', '.join(ACTIVATIONS)}"
        )
    generator = torch.Generator().manual_seed(seed)
    layers = []
    for rows, columns in SHAPES[task.architecture]:
        uniform = torch.rand(rows, columns, generator=generator, dtype=torch.float64)
        layers.append((2 * uniform - 1) / math.sqrt(columns - 1))
    return torch.cat([layer.flatten() for layer in layers])


def layers_of(theta: Tensor, architecture: str) -> list[Tensor]:
    """Weights [..., out, fan-in + 1], views into flat parameters [..., P]."""
    shapes = SHAPES[architecture]
    parts = theta.split([rows * columns for rows, columns in shapes], dim=-1)
    return [part.unflatten(-1, shape) for part, shape in zip(parts, shapes, strict=True)]


def with_ones(h: Tensor) -> Tensor:
    """A 1 behind each vector, for the biases."""
    return F.pad(h, (0, 1), value=1.0)


def mlp_logits(theta: Tensor, x: Tensor, activation: str) -> Tensor:
    """Logits [..., b, 10] of MLPs [..., P] on images [..., b, 257]."""
    first, last = layers_of(theta, "mlp")
    hidden = ACTIVATIONS[activation].function(x @ first.mT)
    return with_ones(hidden) @ last.mT


def cnn_logits(theta: Tensor, x: Tensor, activation: str) -> Tensor:
    """Logits [b, 10] of one CNN [P] on images [b, 257]: four convolutions 3 x 3, max pooling 2 x 2 before all but the
    first of them and at the end, so that the image shrinks from 16 to 8, 4, 2, 1 pixels.
    """
    *convolutions, last = layers_of(theta, "cnn")
    h = x[:, :-1].unflatten(1, (1, 16, 16))
    for k, layer in enumerate(convolutions):
        if k > 0:
            h = F.max_pool2d(h, 2)
        kernel = layer[:, :-1].unflatten(1, (-1, 3, 3))
        bias = layer[:, -1]
        h = ACTIVATIONS[activation].function(F.conv2d(h, kernel, bias, padding=1))
    pooled = F.max_pool2d(h, 2).flatten(1)
    return with_ones(pooled) @ last.mT


def logits(theta: Tensor, x: Tensor, task: Task) -> Tensor:
    """Logits [S, b, 10] of S networks [S, P], each on its own images [S, b, 257]."""
    if task.architecture == "mlp":
        return mlp_logits(theta, x, task.activation)
    return torch.func.vmap(lambda one, images: cnn_logits(one, images, task.activation))(theta, x)


def losses(theta: Tensor, x: Tensor, y: Tensor, task: Task) -> tuple[Tensor, Tensor]:
    """Mean cross-entropy and share of right answers [S] of S networks [S, P], each on its images [S, b, 257]."""
    output = logits(theta, x, task)
    loss = F.cross_entropy(output.mT, y, reduction="none").mean(1)
    accuracy = (output.argmax(-1) == y).double().mean(1)
    return loss, accuracy


def accuracies(theta: Tensor, x: Tensor, y: Tensor, task: Task) -> Tensor:
    """Share of the images [N, 257] that each of S networks [S, P] classifies right: [S]."""
    found = []
    for one in theta:  # all at once would take S times the memory
        _, accuracy = losses(one[None], x[None], y[None], task)
        found.append(accuracy)
    return torch.cat(found)


# ======================================================================================
# Bases: an orthonormal Q [P, n] per network, never formed, of the directions in which its batch bends the loss
# ======================================================================================


class CoordinateBasis(NamedTuple):
    """Q picks some of the parameters, the same for all networks."""

    chosen: Tensor  # [n], indices

    def lower(self, v: Tensor) -> Tensor:
        """Q^T v: [S, P, c] -> [S, n, c]."""
        return v[:, self.chosen]

    def add(self, v: Tensor, c: Tensor, factor: float) -> Tensor:
        """Add factor Q c to v [S, P, columns] in place, c [S, n, columns]; returns v."""
        return v.index_add_(1, self.chosen, c, alpha=factor)


class MlpBasis(NamedTuple):
    """Directions of an MLP in three groups, as products of orthonormal vectors.

    `first`, of the first layer: each hidden unit x the span of the batch's inputs. `second`, of the second layer: the
    logit directions that the batch's residuals span x each of the hidden units and the 1. `third`: all other logit
    directions, but the shift of all logits, which softmax ignores, x the span of the batch's hidden vectors.
    """

    inputs: Tensor  # [S, 257, i]
    residuals: Tensor  # [S, classes, r]
    others: Tensor  # [S, classes, classes - 1 - r]
    hidden: Tensor  # [S, hidden + 1, j]

    @property
    def sizes(self) -> list[int]:
        """Number of directions in each group."""
        first = HIDDEN * self.inputs.shape[2]
        second = self.residuals.shape[2] * (HIDDEN + 1)
        third = self.others.shape[2] * self.hidden.shape[2]
        return [first, second, third]

    def lower(self, v: Tensor) -> Tensor:
        """Q^T v: [S, P, c] -> [S, n, c]."""
        networks, _, columns = v.shape
        cut = HIDDEN * INPUTS
        layer_1 = v[:, :cut].unflatten(1, (HIDDEN, INPUTS))
        layer_2 = v[:, cut:].reshape(networks, CLASSES, -1)
        first = self.inputs.mT[:, None] @ layer_1
        second = self.residuals.mT @ layer_2
        along_others = (self.others.mT @ layer_2).view(networks, self.others.shape[2], HIDDEN + 1, columns)
        third = self.hidden.mT[:, None] @ along_others
        return torch.cat([part.reshape(networks, -1, columns) for part in (first, second, third)], 1)

    def add(self, v: Tensor, c: Tensor, factor: float) -> Tensor:
        """Add factor Q c to v [S, P, columns] in place, c [S, n, columns]; returns v."""
        networks, _, columns = v.shape
        cut = HIDDEN * INPUTS
        first, second, third = c.split(self.sizes, 1)
        by_unit = first.unflatten(1, (HIDDEN, -1))
        for k in range(networks):  # one pass over memory for each
            layer_1 = v[k, :cut].unflatten(0, (HIDDEN, INPUTS))
            layer_1.baddbmm_(self.inputs[k].expand(HIDDEN, -1, -1), by_unit[k], alpha=factor)
        second = second.reshape(networks, self.residuals.shape[2], -1)
        third = third.reshape(networks, self.others.shape[2], self.hidden.shape[2], columns)
        third = (self.hidden[:, None] @ third).flatten(2)
        layer_2 = self.residuals @ second + self.others @ third
        v[:, cut:].add_(layer_2.view(networks, -1, columns), alpha=factor)
        return v


Basis = CoordinateBasis | MlpBasis

# ======================================================================================
# Hessians
# ======================================================================================


class Curvature(NamedTuple):
    """The exact Hessian without its null space: H = Q hessian Q^T."""

    hessian: Tensor  # [S, n, n]
    basis: Basis  # Q


def curvature(theta: Tensor, x: Tensor, y: Tensor, task: Task) -> Curvature:
    """Exact Hessian of the loss of S networks [S, P] on their batches x [S, b, 257], y [S, b]."""
    if task.architecture == "mlp":
        return mlp_curvature(theta, x, y, task.activation)

    def loss_of_one(one: Tensor, images: Tensor, labels: Tensor) -> Tensor:
        loss, _ = losses(one[None], images[None], labels[None], task)
        return loss[0]

    second_derivative = torch.func.hessian(loss_of_one)
    hessian = torch.stack([second_derivative(*one) for one in zip(theta, x, y, strict=True)])
    is_alive = (hessian != 0).any(1).any(0)  # without dead units eigh is cheaper
    alive = is_alive.nonzero()[:, 0]
    return Curvature(hessian[:, alive[:, None], alive], CoordinateBasis(alive))


def outer(a: Tensor, b: Tensor) -> Tensor:
    """Outer products of the last dimensions, [..., p] and [..., q] -> [..., p q]."""
    return (a[..., :, None] * b[..., None, :]).flatten(-2)


def mlp_basis(x: Tensor, hidden: Tensor, residuals: Tensor) -> tuple[MlpBasis, Tensor, Tensor]:
    """The basis of a batch, and the coordinates of its inputs [S, b, i] and its hidden vectors [S, b, j] in it.

    x [S, b, 257]; hidden [S, b, 21], with a 1 behind; residuals [S, b, 10]: derivatives of the loss by the logits.
    """
    inputs, x_coordinates = torch.linalg.qr(x.mT)
    hidden_directions, hidden_coordinates = torch.linalg.qr(hidden.mT)
    # Residuals sum to 0: with the common shift in front, the rest of the basis is orthogonal to it
    rank = min(x.shape[1], CLASSES - 1)
    shift = torch.ones_like(residuals[:, :1]).mT
    frame = torch.linalg.qr(torch.cat([shift, residuals.mT[..., :rank]], -1), mode="complete").Q
    along_residuals, others = frame[..., 1:].split([rank, CLASSES - 1 - rank], -1)
    basis = MlpBasis(inputs, along_residuals, others, hidden_directions)
    return basis, x_coordinates.mT, hidden_coordinates.mT


def mlp_curvature(theta: Tensor, x: Tensor, y: Tensor, activation: str) -> Curvature:
    """`curvature` of the MLP in closed form: Gauss-Newton term J^T S J plus the residuals' term.

    The batch reaches the first layer only through the span of its b inputs, and the second only as described in
    `MlpBasis`. At b = 8 these are n = 160 + 168 + 8 = 336 directions of 5,350, and the curvature along the rest is 0.
    """
    batch = x.shape[1]
    act = ACTIVATIONS[activation]
    weights_1, weights_2 = layers_of(theta, "mlp")
    weights_2_without_bias = weights_2[..., :-1]
    h = act.function(x @ weights_1.mT)
    hidden = with_ones(h)
    p = (hidden @ weights_2.mT).softmax(-1)
    residuals = (p - F.one_hot(y, CLASSES)) / batch
    basis, x_coordinates, hidden_coordinates = mlp_basis(x, hidden, residuals)

    # Gauss-Newton: S = (diag p - p p^T) / b = root^T root is the Hessian by the logits of an example
    root = (torch.diag_embed(p.sqrt()) - p.sqrt()[..., None] * p[..., None, :]) / math.sqrt(batch)
    through_hidden = (root @ weights_2_without_bias[:, None]) * act.slope(h)[:, :, None]
    jacobian = torch.cat(
        [
            outer(through_hidden, x_coordinates[:, :, None]),
            outer(root @ basis.residuals[:, None], hidden[:, :, None]),
            outer(root @ basis.others[:, None], hidden_coordinates[:, :, None]),
        ],
        -1,
    ).flatten(1, 2)
    hessian = jacobian.mT @ jacobian
    add_residual_term(hessian, basis, residuals, weights_2_without_bias, act.slope(h), act.bend(h), x_coordinates)
    return Curvature(hessian, basis)


def add_residual_term(
    hessian: Tensor,
    basis: MlpBasis,
    residuals: Tensor,
    weights_2: Tensor,
    slope: Tensor,
    bend: Tensor,
    x_coordinates: Tensor,
) -> None:
    """Add, in place, the second derivatives of the logits times the residuals to the MLP's Gauss-Newton term.

    Twice by the first layer they act within a hidden unit; by the first and the second layer, between a unit's inputs
    and its outgoing weights; twice by the second layer they vanish, as the logits are linear in it.
    """
    i = x_coordinates.shape[2]
    r = basis.residuals.shape[2]
    first, second, _ = basis.sizes
    end_of_second = first + second

    within_first = hessian[:, :first, :first]
    pairs_of_inputs = outer(x_coordinates, x_coordinates)
    bent = ((residuals @ weights_2 * bend).mT @ pairs_of_inputs).unflatten(-1, (i, i))  # [S, hidden, i, i]
    blocks = within_first.unflatten(2, (HIDDEN, i)).unflatten(1, (HIDDEN, i))  # [S, hidden, i, hidden, i]
    blocks.diagonal(0, 1, 3).add_(bent.permute(0, 2, 3, 1))

    between = hessian[:, first:end_of_second, :first]
    pairs = outer(residuals @ basis.residuals, x_coordinates)
    crossed = (slope.mT @ pairs).unflatten(-1, (r, i))  # [S, hidden, residual, i]
    blocks = between.unflatten(2, (HIDDEN, i)).unflatten(1, (r, HIDDEN + 1))  # [S, residual, hidden + 1, hidden, i]
    blocks[:, :, :-1].diagonal(0, 2, 3).add_(crossed.permute(0, 2, 3, 1))
    hessian[:, :first, first:end_of_second] = between.mT


# ======================================================================================
# What is done with them
# ======================================================================================


@cache
def pool() -> ThreadPoolExecutor:
    """A thread per core, each for one network's eigenvectors."""
    return ThreadPoolExecutor(os.cpu_count(), initializer=torch.set_num_threads, initargs=(1,))


def eigh(hessian: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues [S, n], ascending, and eigenvectors [S, n, n]: nine tenths of a CGD step's time."""
    if hessian.is_cuda or len(hessian) == 1:
        return torch.linalg.eigh(hessian)
    found = list(pool().map(torch.linalg.eigh, hessian))
    eigenvalues = torch.stack([one.eigenvalues for one in found])
    eigenvectors = torch.stack([one.eigenvectors for one in found])
    return eigenvalues, eigenvectors


def project(vector: Tensor, mask: Tensor, eigenvectors: Tensor, basis: Basis) -> Tensor:
    """Orthogonal projection of `vector` [S, P] onto the eigenvectors [S, n, n] that `mask` [S, n] marks."""
    components = eigenvectors.mT @ basis.lower(vector[..., None])
    inside = eigenvectors @ (mask[..., None] * components)
    return basis.add(torch.zeros_like(vector)[..., None], inside, 1.0)[..., 0]


def tangent_step(v: Tensor, dv: Tensor, bend: Curvature, learning_rate: float, momentum: float) -> None:
    """Tangent map of an SGD step, in place: v [S, P, c] displaces the parameters, dv the momentum.

    dv' = momentum dv + H v, v' = v - lr dv'; the reference code's recursion under momentum is another one.
    """
    bent = bend.hessian @ bend.basis.lower(v)
    if momentum:
        dv.mul_(momentum)
        bend.basis.add(dv, bent, 1.0)
        v.sub_(dv, alpha=learning_rate)
    else:
        bend.basis.add(v, bent, -learning_rate)
