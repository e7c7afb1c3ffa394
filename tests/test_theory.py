"""Tests of the closed forms in experiments/theory.py, against solvers and samples."""

import math

import numpy as np
import pytest
import torch

from experiments import theory
from tests.fokker_planck import fokker_planck


def test_log_growth_is_the_mean_log_of_the_euler_factor():
    mean, variance = theory.log_growth(1.5, np.array([0.5, 2.0, 3.0]), 0.01)
    xi = np.random.default_rng(0).normal(size=(3, 400_000))
    logs = np.log(np.abs(1 + 1.5 * 0.01 + np.array([[0.5], [2.0], [3.0]]) * 0.1 * xi)) / 0.01
    assert np.all(abs(mean - logs.mean(1)) < 4 * logs.std(1) / math.sqrt(400_000))
    assert np.allclose(variance, logs.var(1) * 0.01, rtol=0.02)
    mean, variance = theory.log_growth(1.5, np.array([2.0]), 1e-6)
    assert mean[0] == pytest.approx(1.5 - 2, abs=1e-4) and variance[0] == pytest.approx(4, rel=1e-4)


@pytest.mark.parametrize("zeta", [1.8, 2.0, 2.4, 2.9])
def test_the_reflected_brownian_motion_solves_fokker_planck(zeta):
    growth, variance = 1.5 - zeta**2 / 2, zeta**2
    times = (25, 50, 100, 200)
    exact = fokker_planck(growth, variance, times, 1e-15)
    closed = [theory.reflected_collapse(np.array([growth]), np.array([variance]), t, 1e-15).item() for t in times]
    assert np.abs(np.subtract(exact, closed)).max() < 0.01


def test_stationary_density_integrates_to_one_and_ends_at_the_threshold():
    edges = np.linspace(-6, 6, 241)
    for zeta in (0.1, 1.0, 1.5, 1.7):
        masses = theory.stationary_masses(1.5, zeta, edges)
        assert masses.sum() == pytest.approx(1, abs=1e-6) and np.allclose(masses, masses[::-1], atol=1e-9)
    assert theory.stationary_masses(1.5, 1.7321, edges) is None
    assert theory.stationary_masses(1.5, 0.0, edges) is None  # two points without width
    assert theory.stationary_masses(1.5, 1e-200, edges) is None
    # zeta = 1: density proportional to |theta| exp(-theta^2), whose integral is known
    masses = theory.stationary_masses(1.5, 1.0, edges)
    right = np.exp(-(edges[120:-1] ** 2)) - np.exp(-(edges[121:] ** 2))
    assert np.allclose(masses[120:], right / 2, atol=1e-5)


def test_the_logistic_solves_its_equation():
    start, target = torch.rand(50, dtype=torch.float64), torch.linspace(-0.5, 1, 50, dtype=torch.float64)
    s = start.clone()
    for _ in range(20_000):
        s += 1e-4 * 2 * s * (target - s)
    assert torch.allclose(theory.logistic(start, target, 2.0), s, rtol=1e-3)
    zero = theory.logistic(start, torch.zeros(50, dtype=torch.float64), 2.0)
    assert torch.allclose(zero, start / (1 + 4 * start))
