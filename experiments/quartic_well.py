"""The quartic well d theta = -(theta^3 - mu theta) dt + zeta theta dB (Ito) of *Stochastic Collapse*, figure 1."""

import math

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from experiments.theory import log_growth
from lib.errors import InputError
from lib.progress import progress

HISTOGRAM_EDGES = np.linspace(-3, 3, 121)
RECORDS = 250  # of a run of trajectories


def simulate_trajectories(
    mu: float, zetas: tuple, trajectories: int, shown: int, steps: int, euler_step: float, generator: torch.Generator
) -> dict:
    """Euler-Maruyama from theta_0 = 2 N(0, 1), the same for all zetas: `shown` paths, a histogram of all.

    Returns times [T]; paths [zeta, path, T]; histogram [zeta, bin], probabilities over the second half of the run.
    """
    device = generator.device
    zeta = torch.tensor(zetas, device=device)[:, None]
    start = 2 * torch.randn(trajectories, generator=generator, device=device)
    theta = start.repeat(len(zetas), 1)
    factor = torch.empty_like(theta)
    every = max(1, steps // RECORDS)
    paths = [theta[:, :shown].cpu().clone()]
    bins = len(HISTOGRAM_EDGES) - 1
    counts = torch.zeros(len(zetas), bins)
    counted = 0
    for step in tqdm(range(1, steps + 1), desc="quartic: trajectories", **progress):
        # theta *= 1 + mu dt + zeta sqrt(dt) xi - theta^2 dt
        factor.normal_(generator=generator).mul_(zeta * math.sqrt(euler_step)).add_(1 + mu * euler_step)
        factor.addcmul_(theta, theta, value=-euler_step)
        theta.mul_(factor)
        if step % every == 0:
            paths.append(theta[:, :shown].cpu().clone())
        if step % every == 0 and step > steps // 2:
            counts += torch.stack([torch.histc(row, bins, -3, 3) for row in theta.cpu()])
            counted += trajectories
    if not theta.isfinite().all():
        raise InputError("theta is not finite: choose a lower euler_step")
    return {
        "times": np.arange(len(paths)) * every,
        "paths": torch.stack(paths, -1),
        "histogram": counts / max(counted, 1),
    }


def simulate_collapse(
    mu: float,
    zetas: np.ndarray,
    replicas: int,
    checkpoints: tuple,
    euler_step: float,
    coarse_steps: int,
    threshold: float,
    generator: torch.Generator,
) -> Tensor:
    """Share of the replicas with |theta| < threshold, [checkpoint, zeta], float64.

    y = 1 / theta^2 obeys a *linear* equation, so `coarse_steps` Euler steps become one exact multiplication
    y' = A (y + h) + h, with log A matched in mean and variance to the Euler chain (`log_growth`); the trapezoid for the
    source is the only approximation. In float64: y reaches 1e30 and more.
    """
    device = generator.device
    h = coarse_steps * euler_step
    growth, variance = log_growth(mu, zetas, euler_step)
    drift = torch.tensor(-2 * growth * h, device=device)[:, None]
    spread = torch.tensor(-2 * np.sqrt(variance * h), device=device)[:, None]
    theta = 2 * torch.randn(replicas, generator=generator, device=device, dtype=torch.float64)
    y = theta.pow(-2).repeat(len(zetas), 1)  # one theta_0 for all zetas
    noise = torch.empty_like(y, dtype=torch.float32)
    factor = torch.empty_like(y)
    collapsed = {}
    for step in tqdm(range(coarse_steps, max(checkpoints) + 1, coarse_steps), desc="quartic: collapse", **progress):
        noise.normal_(generator=generator)
        factor.copy_(noise).mul_(spread).add_(drift).exp_()
        y.add_(h).mul_(factor).add_(h)
        if step in checkpoints:
            collapsed[step] = (y > threshold**-2).double().mean(1)
    return torch.stack([collapsed[step] for step in checkpoints])
