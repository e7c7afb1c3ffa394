"""The exact Hessian of a mini-batch's loss, for the small networks of *Chaotic Dynamics* and for many at once.

A mini-batch bends the loss of a large network in few directions only. For an MLP with one hidden layer they are known
in closed form: at batch size 8, 336 of the 5,350 of the network 256-20-10. So an exact spectrum takes milliseconds:

    hessian, lower, add = curvature(theta, x, y, ("mlp", "sigmoid"))
    w, v = eigh(hessian)                                    # all eigenvalues but the zeros
    directions = add(theta.new_zeros(*theta.shape, v.shape[2]), v, 1.0)     # and their eigenvectors [S, P, n]
"""

import math
import os
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial

import torch
import torch.nn.functional as F
from torch import Tensor

HIDDEN, INPUTS, CLASSES = 20, 16 * 16 + 1, 10  # an input is 256 pixels and a 1, whose weights are the biases
SHAPES = {  # weights of each layer, out x (fan-in + 1): 5,350 and 1,158 parameters
    "mlp": ((HIDDEN, INPUTS), (CLASSES, HIDDEN + 1)),
    "cnn": ((4, 9 + 1), (4, 36 + 1), (8, 36 + 1), (8, 72 + 1), (CLASSES, 8 + 1)),
}
ACTIVATIONS = {  # function, and its derivatives in terms of its value
    "sigmoid": (torch.sigmoid, lambda h: h * (1 - h), lambda h: h * (1 - h) * (1 - 2 * h)),
    "relu": (torch.relu, lambda h: (h > 0).to(h), torch.zeros_like),
}


def initial(seed: int, task: tuple[str, str]) -> Tensor:
    """Flat float64 parameters [P], weights and biases uniform within +-1/sqrt(fan-in): torch's default.

    A task is (architecture, activation); ValueError unless they are mlp or cnn, sigmoid or relu.
    """
    if task[0] not in SHAPES or task[1] not in ACTIVATIONS:
        raise ValueError(f"no {task[0]} with {task[1]}: choose from {', '.join(SHAPES)} and {', '.join(ACTIVATIONS)}")
    draw = partial(torch.rand, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return torch.cat([((2 * draw(a, b) - 1) / math.sqrt(b - 1)).flatten() for a, b in SHAPES[task[0]]])


def layers_of(theta: Tensor, architecture: str) -> list[Tensor]:
    """Weights [..., out, fan-in + 1], views into flat parameters [..., P]."""
    parts = theta.split([a * b for a, b in SHAPES[architecture]], dim=-1)
    return [part.unflatten(-1, shape) for part, shape in zip(parts, SHAPES[architecture], strict=True)]


def logits(theta: Tensor, x: Tensor, architecture: str, activation: str) -> Tensor:
    """Logits [..., b, 10] of networks with flat parameters [..., P] on images [..., b, 257]; the CNN one at a time."""
    act = ACTIVATIONS[activation][0]
    first, *middle, last = layers_of(theta, architecture)
    if architecture == "mlp":
        h = act(x @ first.mT)
    else:  # 16, 8, 4, 2, 1 pixels wide
        h = x[:, :-1].unflatten(1, (1, 16, 16))
        for layer in (first, *middle):
            h = F.max_pool2d(h, 2) if layer is not first else h
            h = act(F.conv2d(h, layer[:, :-1].unflatten(1, (-1, 3, 3)), layer[:, -1], padding=1))
        h = F.max_pool2d(h, 2).flatten(1)
    return F.pad(h, (0, 1), value=1.0) @ last.mT


def losses(theta: Tensor, x: Tensor, y: Tensor, task: tuple[str, str]) -> tuple[Tensor, Tensor]:
    """Mean cross-entropy and share of right answers [S] of S networks [S, P], each on its images [S, b, 257]."""
    network = partial(logits, architecture=task[0], activation=task[1])
    output = network(theta, x) if task[0] == "mlp" else torch.func.vmap(network)(theta, x)
    return F.cross_entropy(output.mT, y, reduction="none").mean(1), (output.argmax(-1) == y).double().mean(1)


def outer(a: Tensor, b: Tensor) -> Tensor:
    return (a[..., :, None] * b[..., None, :]).flatten(-2)


def accuracies(theta: Tensor, x: Tensor, y: Tensor, task: tuple[str, str]) -> Tensor:
    """Share of the images [N, 257] that each of S networks [S, P] classifies right: [S]."""
    return torch.cat([losses(one[None], x[None], y[None], task)[1] for one in theta])


def curvature(theta: Tensor, x: Tensor, y: Tensor, task: tuple[str, str]):
    """Exact Hessian of the loss of S networks [S, P] on their batches x [S, b, 257], y [S, b], without its null space.

    Returns Q^T H Q [S, n, n] for an orthonormal Q [P, n] that is not formed, but given as two functions:
    lower(v) is Q^T v, [S, P, c] -> [S, n, c]; add(v, c, factor) adds factor Q c to v in place and returns v.
    """
    if task[0] == "mlp":
        return mlp_curvature(theta, x, y, task[1])
    second = torch.func.hessian(lambda one, x, y: losses(one[None], x[None], y[None], task)[0][0])
    hessian = torch.stack([second(*one) for one in zip(theta, x, y, strict=True)])
    alive = (hessian != 0).any(1).any(0).nonzero()[:, 0]  # without dead units eigh is cheaper
    part = hessian[:, alive[:, None], alive]
    return part, lambda v: v[:, alive], lambda v, c, factor: v.index_add_(1, alive, c, alpha=factor)


def mlp_curvature(theta: Tensor, x: Tensor, y: Tensor, activation: str):
    """`curvature` of the MLP in closed form: Gauss-Newton term J^T S J plus the residuals' term.

    The batch reaches the first layer only through the span of its b inputs, and the second only through (span of the
    b residuals) x (hidden units) and (all other logit directions but their common shift) x (span of the b hidden
    vectors). At b = 8 these are n = 160 + 168 + 8 = 336 directions of 5,350, and the curvature along the rest is 0.
    """
    w1, w2 = layers_of(theta, "mlp")
    (s, b, _), (k, m), cut = x.shape, w2.shape[1:], w1[0].numel()
    function, slope, bend = ACTIVATIONS[activation]
    hidden = function(x @ w1.mT)
    h = F.pad(hidden, (0, 1), value=1.0)
    p = (h @ w2.mT).softmax(-1)
    r = (p - F.one_hot(y, k)) / b  # derivative by the logits
    (qx, u), (qh, t) = torch.linalg.qr(x.mT), torch.linalg.qr(h.mT)  # x = (qx u)^T, h = (qh t)^T
    rank, i, j, u, t = min(b, k - 1), u.shape[1], t.shape[1], u.mT, t.mT
    shift_first = torch.cat([torch.ones_like(r[:, :1]).mT, r.mT[..., :rank]], -1)
    fr, fq = torch.linalg.qr(shift_first, mode="complete").Q[..., 1:].split([rank, k - 1 - rank], -1)
    sizes = [HIDDEN * i, rank * m, (k - 1 - rank) * j]
    root = (torch.diag_embed(p.sqrt()) - p.sqrt()[..., None] * p[..., None, :]) / math.sqrt(b)  # S = root^T root
    through = (root @ w2[:, None, :, :-1]) * slope(hidden)[:, :, None]
    pairs = (through, u), (root @ fr[:, None], h), (root @ fq[:, None], t)
    jacobian = torch.cat([outer(a, c[:, :, None]) for a, c in pairs], -1).flatten(1, 2)
    hessian = jacobian.mT @ jacobian
    block, side = hessian[:, : sizes[0], : sizes[0]], hessian[:, sizes[0] : sizes[0] + sizes[1], : sizes[0]]
    bent = ((r @ w2[..., :-1] * bend(hidden)).mT @ outer(u, u)).unflatten(-1, (i, i))  # [S, hidden, i, i]
    block.unflatten(2, (-1, i)).unflatten(1, (-1, i)).diagonal(0, 1, 3).add_(bent.permute(0, 2, 3, 1))
    cross = (slope(hidden).mT @ outer(r @ fr, u)).unflatten(-1, (rank, i))  # [S, hidden, residual, i]
    side.unflatten(2, (-1, i)).unflatten(1, (rank, m))[:, :, :-1].diagonal(0, 2, 3).add_(cross.permute(0, 2, 3, 1))
    hessian[:, : sizes[0], sizes[0] : sizes[0] + sizes[1]] = side.mT

    def lower(v):
        v1, v2, c = v[:, :cut].unflatten(1, (HIDDEN, -1)), v[:, cut:].reshape(s, k, -1), v.shape[-1]
        parts = [qx.mT[:, None] @ v1, fr.mT @ v2, qh.mT[:, None] @ (fq.mT @ v2).view(s, k - 1 - rank, m, c)]
        return torch.cat([part.reshape(s, -1, c) for part in parts], 1)

    def add(v, c, factor):
        c1, c2, c3 = c.split(sizes, 1)
        for to, q, one in zip(v, qx, c1.unflatten(1, (HIDDEN, -1)), strict=True):  # one pass over memory each
            to[:cut].unflatten(0, (HIDDEN, -1)).baddbmm_(q.expand(HIDDEN, -1, -1), one, alpha=factor)
        c3 = (qh[:, None] @ c3.reshape(s, k - 1 - rank, j, c.shape[-1])).flatten(2)
        v[:, cut:].add_((fr @ c2.reshape(s, rank, -1) + fq @ c3).view(s, k * m, -1), alpha=factor)
        return v

    return hessian, lower, add


@cache
def pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(os.cpu_count(), initializer=torch.set_num_threads, initargs=(1,))


def eigh(hessian: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues [S, n] and eigenvectors [S, n, n]: nine tenths of a CGD step's time, so one network per core."""
    if hessian.is_cuda or len(hessian) == 1:
        return torch.linalg.eigh(hessian)
    return tuple(map(torch.stack, zip(*pool().map(torch.linalg.eigh, hessian), strict=True)))


def project(vector: Tensor, mask: Tensor, v: Tensor, lower, add) -> Tensor:
    """Orthogonal projection of `vector` [S, P] onto the eigenvectors v [S, n, n] that `mask` [S, n] marks."""
    inside = v @ (mask[..., None] * (v.mT @ lower(vector[..., None])))
    return add(torch.zeros_like(vector)[..., None], inside, 1.0)[..., 0]


def tangent_step(v: Tensor, dv: Tensor, hessian: Tensor, lower, add, learning_rate: float, momentum: float) -> None:
    """Tangent map of an SGD step, in place: v [S, P, c] displaces the parameters, dv the momentum.

    dv' = momentum dv + H v, v' = v - lr dv'; the reference code's recursion under momentum is another one.
    """
    if momentum:
        v.sub_(add(dv.mul_(momentum), hessian @ lower(v), 1.0), alpha=learning_rate)
    else:
        add(v, hessian @ lower(v), -learning_rate)
