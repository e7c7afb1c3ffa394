"""A solver without random numbers for the quartic well, to hold closed forms and simulations against."""

import math

import numpy as np
import torch


def fokker_planck(growth, variance, times, threshold, cell=0.15):
    """P(|theta| < threshold) at the times, theta_0 = 2 N(0, 1): log|theta| on a grid, with drift growth - exp(2x).

    Jump rates between neighbouring cells that keep detailed balance; made symmetric by sqrt(density) and solved by
    eigenvectors.
    """
    x = np.arange(-90, 3.0, cell)
    edges = (x[1:] + x[:-1]) / 2
    potential = (np.exp(2 * x) / 2 - growth * x) * 2 / variance  # of the stationary density exp(-potential)
    rate = variance / 2 / cell**2
    keep = edges < 2.5
    up = (rate * np.exp(-np.diff(potential) / 2))[keep]
    down = (rate * np.exp(np.diff(potential) / 2))[keep]
    cells = keep.sum() + 1
    x, potential = x[:cells], potential[:cells]

    symmetric = np.diag(-np.append(up, 0) - np.append(0, down))
    beside = np.diag(np.full(cells - 1, rate), 1)
    values, vectors = (part.numpy() for part in torch.linalg.eigh(torch.from_numpy(symmetric + beside + beside.T)))

    root_density = np.exp((potential - potential[-20]) / 2)
    start = np.exp(-(np.exp(2 * x) / 8) + x)  # theta_0's density, of log|theta|
    start = start / start.sum() * root_density
    collapsed = (x < math.log(threshold)) / root_density
    found = []
    for time in times:
        probability = collapsed @ vectors @ (np.exp(values * time) * (vectors.T @ start))
        found.append(min(max(probability, 0.0), 1.0))
    return found
