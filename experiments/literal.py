"""The literal ways, which benchmark.py compares ours with: the reference's loops as written, one run at a time.

Each does a stretch of the work and tells how large the whole job is.
"""

import itertools
import math
import time
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Stretch(NamedTuple):
    """`seconds` of processor time for `steps` of a job that has `whole` of them."""

    seconds: float
    steps: int
    whole: int

    @property
    def seconds_of_the_whole(self) -> float:
        return self.seconds * self.whole / self.steps


def quartic(steps: int) -> Stretch:
    """NumPy, one noise level at a time: 1000 trajectories, every state kept as the reference does."""
    zeta, mu, dt = 1.5, 1.5, 0.0025
    theta = 2 * np.random.randn(1000)
    states = np.empty((steps + 1, 1000))
    start = time.process_time()
    for step in range(steps):
        states[step] = theta
        noise = np.random.randn(1000)
        drift = -(theta**3 - mu * theta)
        theta = theta + drift * dt + zeta * theta * math.sqrt(dt) * noise
    return Stretch(time.process_time() - start, steps, 100 * 80_000)


def neuron(steps: int) -> Stretch:
    """One noise level at a time: 1000 trajectories, 32 data points, 32 normals each, Euler-Maruyama."""
    points, dt, eta = 32, 0.01, 2.0
    x = torch.randn(points)
    y = x + 0.1 * torch.randn(points)
    w1 = 1e-3 * torch.randn(1000, 1)
    w2 = 1e-3 * torch.randn(1000, 1)
    start = time.process_time()
    for _ in range(steps):
        activation = torch.tanh(w1 * x)
        slope = w2 * (1 - activation * activation) * x
        residual = w2 * activation - y
        kick = math.sqrt(eta * dt / points) * torch.randn(1000, points)
        change1 = -dt * (residual * slope).mean(1, keepdim=True) + (slope * kick).sum(1, keepdim=True)
        change2 = -dt * (residual * activation).mean(1, keepdim=True) + (activation * kick).sum(1, keepdim=True)
        w1 = w1 + change1
        w2 = w2 + change2
    return Stretch(time.process_time() - start, steps, 50 * 100_000)


def pair(steps: int, whole_runs: int) -> Stretch:
    """One run at a time: two linear layers, autograd, torch.optim.SGD, a fresh label noise per step."""
    x = torch.randn(8, 1)
    y = torch.randn(8, 1)
    first = nn.Linear(1, 2, bias=False)
    second = nn.Linear(2, 1, bias=False)
    optimizer = torch.optim.SGD([*first.parameters(), *second.parameters()], lr=0.1, momentum=0.9)
    start = time.process_time()
    for _ in range(steps):
        optimizer.zero_grad()
        output = second(F.gelu(first(x)))
        loss = 0.5 * (output - y - 0.1 * torch.randn(8, 1)).square().mean()
        loss.backward()
        optimizer.step()
        with torch.no_grad():  # the distance of the two neurons, which the reference records
            (first.weight[0] - first.weight[1]).square() + (second.weight[0, 0] - second.weight[0, 1]).square()
    return Stretch(time.process_time() - start, steps, whole_runs * 10_001)


def diagonal(steps: int, problem) -> Stretch:
    """One seed and label noise at a time: u and v apart, losses by matrix products every 100 steps.

    `problem`: of `teacher_student.teacher`, in float32.
    """
    u = torch.ones(64)
    v = torch.ones(64)
    start = time.process_time()
    for step in range(steps):
        residual = u * v - problem.values + 10 * torch.randn(64)
        new_u = u - 3 / 1024 * residual * v
        v = v - 3 / 1024 * residual * u
        u = new_u
        if step % 100 == 0:
            student = problem.left * (u * v) @ problem.right
            (problem.x @ student - problem.y).square().sum().item()
            (student - problem.w).square().mean().item()
    return Stretch(time.process_time() - start, steps, 5 * 256 * 60_001)


class ReluPart(NamedTuple):
    """A part of `sparse_features.relu`: schedules of 64 students each, and each student's parameters."""

    steps: int
    schedules: int
    parameters: int


RELU_JOB = (
    ReluPart(14_126, 13 + 7, 60),  # two layers; one data set for all students
    ReluPart(7063, 8 + 8, 60),  # the search for the largest stable step, twice
    ReluPart(10_001, 7 + 4, 181),  # three layers; one data set for all students
)


def relu(steps: int) -> Stretch:
    """One run at a time: the two-layer student, the smaller of both, one example a step, autograd, torch.optim.SGD."""
    model = nn.Sequential(nn.Linear(2, 20, bias=False), nn.ReLU(), nn.Linear(20, 1, bias=False))
    x = torch.randn(15, 2)
    y = torch.randn(15, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    start = time.process_time()
    for _ in range(steps):
        one = np.random.choice(15, 1, replace=False)
        loss = (model(x[one]) - y[one]).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    whole = 64 * sum(part.schedules * part.steps for part in RELU_JOB)
    return Stretch(time.process_time() - start, steps, whole)


def metric(layers: list[Tensor], pairs: int) -> float:
    """Seconds for all pairs of neurons of all layers in Python, from the first `pairs` pairs of each."""
    seconds = 0.0
    for vectors in layers:
        neurons = len(vectors)
        done = 0
        redundant_with = {}
        start = time.process_time()
        for i, j in itertools.islice(itertools.combinations(range(neurons), 2), pairs):
            a, b = vectors[i], vectors[j]
            distance = 2 * (a - b).square().sum() / (a.square().sum() + b.square().sum() + 1e-8)
            if distance < 0.1 and j not in redundant_with:
                redundant_with[j] = i
            done += 1
        stretch = Stretch(time.process_time() - start, done, neurons * (neurons - 1) // 2)
        seconds += stretch.seconds_of_the_whole
    return seconds
