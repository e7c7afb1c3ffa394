"""Two GELU neurons f(x) = sum_k b_k gelu(a_k x) under SGD with momentum and label noise (Stochastic Collapse, fig. 3).

Many pairs run in one float64 tensor. Beside each runs a *merged* network (both neurons equal) under label noise of
its own, with the linearised difference of its neurons carried along: its growth per step is the top Lyapunov exponent
of the permutation-invariant set, the predicted rate at which the two neurons merge.
"""

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from experiments.seed_records import deviation
from lib.errors import InputError
from lib.progress import progress


class GeluDerivatives(NamedTuple):
    """gelu(a x), its first and its second derivative in a."""

    value: Tensor
    slope: Tensor
    bend: Tensor


def gelu_derivatives(a: Tensor, x: Tensor) -> GeluDerivatives:
    """`a` and `x` broadcast. In closed form and in place where possible: this is the hot loop."""
    z = a * x
    square = z * z
    density = torch.exp(-0.5 * square).mul_(1 / math.sqrt(2 * math.pi))
    cumulative = torch.erf(z * math.sqrt(0.5)).add_(1).mul_(0.5)
    value = z * cumulative
    slope = torch.addcmul(cumulative, z, density).mul_(x)
    bend = square.neg_().add_(2).mul_(density).mul_(x * x)
    return GeluDerivatives(value, slope, bend)


def reference_noise(seeds: range, steps: int, points: int) -> Tensor:
    """[steps, seeds, points] label noises: the reference's own stream, which is re-seeded for each replica."""
    noise = torch.empty(len(seeds), steps * points)
    for row, seed in zip(noise, seeds, strict=True):
        generator = torch.Generator().manual_seed(seed)
        torch.empty(4).uniform_(generator=generator)  # spent on the initial weights of its layers
        for part in row.split(14):  # below 16 torch draws one by one, so the pieces' size doesn't matter
            part.normal_(generator=generator)
    return noise.view(len(seeds), steps, points).transpose(0, 1)


def starting_weights(start: Tensor, shape: tuple[int, int]) -> Tensor:
    """[a or b, neuron, network, condition, replica]: network 0 is the pair [a or b, neuron], 1 the merged one.

    The replicas come last, so that the inner loops are long.
    """
    merged = start.mean(1, keepdim=True).expand(2, 2)
    both = torch.stack([start, merged], 2)
    return both[..., None, None].repeat(1, 1, 1, *shape)


def pull_across_set(gelu: GeluDerivatives, b: Tensor, residual: Tensor, delta: Tensor, out: Tensor) -> None:
    """H delta into `out`, both [a or b, condition, replica]: H is the batch's Hessian of the merged network across the
    set, [[h_aa, h_ab], [h_ab, 0]]. b [condition, replica] and residual [points, condition, replica] are its own.
    """
    h_aa = b * (gelu.bend[:, 0, 1] * residual).sum(0)
    h_ab = (gelu.slope[:, 0, 1] * residual).sum(0)
    delta_a, delta_b = delta[0], delta[1]
    torch.mul(h_ab, delta_b, out=out[0]).addcmul_(h_aa, delta_a)
    torch.mul(h_ab, delta_a, out=out[1])


def simulate_pairs(
    x: Tensor,
    y: Tensor,
    start: Tensor,
    learning_rates: Tensor,
    label_noises: Tensor,
    noise_of_first: Tensor,
    replicas: int,
    momentum: float,
    every: int,
    burn_in: int,
    draws: torch.Generator,
) -> tuple[Tensor, Tensor]:
    """SGD of pairs and of merged networks, `replicas` of each condition.

    x, y [points]; start [a or b, neuron]; learning_rates, label_noises [conditions]; noise_of_first [steps, points,
    first replicas]: the label noises of the first replicas' pairs, all others come from `draws`.

    Returns the squared distances of the pairs [conditions, replicas, times], each `every` steps, and the exponents of
    the merged networks [conditions, replicas] per step, after `burn_in` steps.
    """
    steps, points, first_replicas = noise_of_first.shape
    shape = (len(learning_rates), replicas)
    device = x.device
    rate = learning_rates[:, None]
    sigma = label_noises[:, None] / points
    x = x.view(-1, 1, 1, 1, 1)
    y = y.view(-1, 1, 1, 1)

    weights = starting_weights(start, shape)
    velocity = torch.zeros_like(weights)
    force = torch.empty_like(weights)
    # The linearised difference of the merged neurons, [a or b, condition, replica]
    delta = torch.randn(2, *shape, generator=draws, dtype=torch.float64, device=device)
    delta_velocity = torch.zeros_like(delta)
    pull = torch.empty_like(delta)
    growth = torch.zeros(shape, dtype=torch.float64, device=device)
    noise = torch.empty(points, 2, 1, replicas, dtype=torch.float32, device=device)
    # Views: all of these change in place
    a, b = weights[0], weights[1]
    b_merged = b[0, 1]
    force_a, force_b = force[0], force[1]

    distances = []
    for step in tqdm(range(steps), desc="pair", **progress):
        if step % every == 0:
            distances.append((weights[:, 0, 0] - weights[:, 1, 0]).square().sum(0).cpu())
            # The difference is linear: bring its length back to 1, and keep the logarithm
            length = torch.sqrt(delta.square().sum(0) + delta_velocity.square().sum(0))
            delta.div_(length)
            delta_velocity.div_(length)
            if step > burn_in:
                growth += length.log()
        noise.normal_(generator=draws)
        noise[:, 0, 0, :first_replicas] = noise_of_first[step]
        gelu = gelu_derivatives(a, x)
        residual = (b * gelu.value).sum(1).sub_(y).div_(points).sub_(sigma * noise)

        pull_across_set(gelu, b_merged, residual[:, 1], delta, out=pull)
        delta_velocity.mul_(momentum).add_(pull)
        delta.addcmul_(rate, delta_velocity, value=-1)

        residual = residual[:, None]  # the same for both neurons
        torch.sum(gelu.slope.mul_(residual), 0, out=force_a).mul_(b)
        torch.sum(gelu.value.mul_(residual), 0, out=force_b)
        velocity.mul_(momentum).add_(force)
        weights.addcmul_(rate, velocity, value=-1)

    has_diverged = ~weights.isfinite().flatten(0, 2).all(0).all(1)  # [conditions]
    if has_diverged.any():
        highest = learning_rates[has_diverged].min()
        raise InputError(f"the weights are not finite at learning rate {highest:g}: choose lower learning_rates")

    times = np.arange(len(distances)) * every
    measured_from = times[times <= burn_in][-1]
    exponents = growth / (times[-1] - measured_from)
    return torch.stack(distances, -1), exponents


def pair_rates(distances: Tensor, exponents: Tensor, every: int, burn_in: int, block: int = 100) -> dict[str, Tensor]:
    """Growth of log(squared distance) per step in the linear regime beside twice the predicted exponent.

    distances [conditions, replicas, times], recorded each `every` steps; exponents [conditions,
    replicas] per step. Blocks of `block` steps count if they start with a squared distance in
    (1e-24, 1e-3), above rounding and small enough to linearise. Standard errors are over replicas;
    NaN where no replica was ever that close, or the distance has stopped changing (no label noise).
    """
    logs = distances[:, :, burn_in // every :: block // every].log()
    starts, ends = logs[..., :-1], logs[..., 1:]
    linear = (starts < math.log(1e-3)) & (starts > math.log(1e-24)) & torch.isfinite(ends)
    gains = torch.where(linear, ends - starts, 0).sum(-1) / block
    counts = linear.double().sum(-1)
    rate = gains.sum(1) / counts.sum(1)
    deviations = gains - rate[:, None] * counts  # of each replica: they are independent, its blocks are not
    error = deviations.square().sum(1).sqrt() / counts.sum(1)
    predicted = 2 * exponents
    return {
        "rate": rate,
        "rate_error": error,
        "rate_theory": predicted.mean(1),
        "rate_theory_error": deviation(predicted, 1) / predicted.shape[1] ** 0.5,
    }
