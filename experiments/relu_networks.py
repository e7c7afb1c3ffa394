"""Small ReLU networks of any depth with one output (*Sparse Features*): SGD in closed form, many runs in one tensor."""

from collections.abc import Callable, Iterable, Iterator
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from experiments.seed_records import jacobian_ranks, moments, records, sparsities, without_broken

# ======================================================================================
# Networks
# ======================================================================================


class Net(NamedTuple):
    """Sizes of inputs, hidden layers and output, and which layers have biases.

    Parameters [..., P]: layer by layer, weights [out, in] and then, where there are any, biases [out].
    """

    sizes: tuple[int, ...]
    biases: tuple[bool, ...]


class Layer(NamedTuple):
    """Views into flat parameters: weight [..., out, in], bias [..., out] or None."""

    weight: Tensor
    bias: Tensor | None


def layers_of(theta: Tensor, net: Net) -> list[Layer]:
    """The layers of networks with parameters [..., P]."""
    layers = []
    at = 0
    for (below, above), has_bias in zip(pairwise(net.sizes), net.biases, strict=True):
        weight = theta[..., at : at + below * above].unflatten(-1, (above, below))
        at += below * above
        bias = theta[..., at : at + above] if has_bias else None
        at += above if has_bias else 0
        layers.append(Layer(weight, bias))
    return layers


class Forward(NamedTuple):
    """Outputs [..., k] on k inputs, and the hidden activations of each layer [..., k, m]."""

    output: Tensor
    hidden: list[Tensor]


def affine(layer: Layer, values: Tensor) -> Tensor:
    """[..., k, in] -> [..., k, out]."""
    mapped = values @ layer.weight.mT
    return mapped if layer.bias is None else mapped + layer.bias[..., None, :]


def forward(theta: Tensor, x: Tensor, net: Net) -> Forward:
    """Of networks [..., P] on inputs [..., k, in]."""
    *hidden_layers, last = layers_of(theta, net)
    hidden = []
    values = x
    for layer in hidden_layers:
        values = affine(layer, values).relu()
        hidden.append(values)
    return Forward(affine(last, values)[..., 0], hidden)


def jacobian(theta: Tensor, x: Tensor, net: Net, hidden: list[Tensor]) -> Tensor:
    """Gradients [..., k, P] of the output by theta, as outer products, without autograd; `hidden` of `forward`."""
    layers = layers_of(theta, net)
    inputs = [x, *hidden]  # of each layer
    back = torch.ones_like(hidden[-1][..., :1])  # derivative of the output by what the layer gives
    parts = []
    for layer, below in zip(reversed(layers), reversed(inputs), strict=True):
        if layer.bias is not None:
            parts.append(back)
        parts.append((back[..., None] * below[..., None, :]).flatten(-2))
        back = (back @ layer.weight) * (below > 0)
    return torch.cat(parts[::-1], -1)


# ======================================================================================
# Learning rates and training
# ======================================================================================


class Schedule(NamedTuple):
    """Learning rates from gamma to peak as t^power until the share `decay` of the run, then peak / divisor.

    gamma and peak: numbers, or one per seed [K]. Without a decay gamma throughout. `delay`: steps by which the
    division comes later (the reference code divides before the step).
    """

    name: str
    gamma: float | np.ndarray
    decay: float = 0.0
    divisor: float = 1.0
    peak: float | np.ndarray | None = None  # gamma, without a ramp
    power: float = 1.0
    delay: int = 0

    def settings(self) -> dict:
        """For the results."""
        found = self._asdict()
        found["peak"] = self.gamma if self.peak is None else self.peak
        if not self.delay:
            found.pop("delay")
        return found

    def rates(self, steps: int) -> np.ndarray:
        """[steps, 1 or K]."""
        gamma = np.atleast_1d(self.gamma)
        peak = gamma if self.peak is None else np.atleast_1d(self.peak)
        step = np.arange(steps)[:, None]
        decay_step = int(self.decay * steps)
        share = np.minimum(step, decay_step) / max(decay_step, 1)
        rising = gamma + (peak - gamma) * share**self.power
        afterwards = peak / self.divisor if decay_step else gamma
        return np.where(step < decay_step + self.delay, rising, afterwards)


class Problem(NamedTuple):
    """K seeds, each with a network's start [K, P], data x [K, n, d], y [K, n], test data, and the order of its examples
    [steps, K]; `rank_inputs` [K, p, d]: where the Jacobian's rank is taken.
    """

    net: Net
    start: Tensor
    x: Tensor
    y: Tensor
    x_test: Tensor
    y_test: Tensor
    rank_inputs: Tensor
    order: Tensor


def train(problem: Problem, rates: np.ndarray, times: Iterable[int]) -> Iterator[tuple[int, Tensor]]:
    """(step, theta [G, K, P]) before the step, at each of `times`, of SGD on one example a step, loss (f - y)^2.

    `rates` [steps, G, K]: G schedules for each of the K seeds. theta changes in place.
    """
    groups, seeds = rates.shape[1:]
    theta = problem.start.expand(groups, *problem.start.shape).clone()
    every_seed = torch.arange(seeds, device=theta.device)
    double_rates = torch.as_tensor(2 * rates, dtype=theta.dtype, device=theta.device)[..., None]
    times = set(times)
    last = max(times)
    for step in range(last + 1):
        if step in times:
            yield step, theta
        if step == last:
            return
        example = problem.order[step]
        x = problem.x[every_seed, example][:, None]
        y = problem.y[every_seed, example][:, None]
        output, hidden = forward(theta, x, problem.net)
        gradient = jacobian(theta, x, problem.net, hidden)[..., 0, :]
        theta.addcmul_(gradient, (output - y) * double_rates[step], value=-1)


def all_rates(schedules: list[Schedule], steps: int, seeds: int) -> np.ndarray:
    """[steps, schedules, seeds]."""
    columns = [schedule.rates(steps) + np.zeros(seeds) for schedule in schedules]
    return np.stack(columns, 1)


class Runs(NamedTuple):
    """`records` of the schedules; parameters [G, K, P] at chosen times and at the end."""

    records: list[dict]
    kept: list[Tensor]
    theta: Tensor


def look_at(theta: Tensor, problem: Problem, correlation: float) -> dict[str, Tensor]:
    """Numbers [G, K]: losses, sparsity of each layer's features, rank of the Jacobian (threshold 1e-4). On the CPU."""
    net = problem.net
    on_train = forward(theta, problem.x, net)
    on_test = forward(theta, problem.x_test, net)
    look = {
        "train": (on_train.output - problem.y).square().mean(-1),
        "test": (on_test.output - problem.y_test).square().mean(-1),
    }
    for k, features in enumerate(on_train.hidden):
        look[f"sparsity_{k + 1}"] = sparsities(features, correlation)
    ranks = []
    for one in theta:  # all groups at once would take too much memory
        hidden = forward(one, problem.rank_inputs, net).hidden
        ranks.append(jacobian_ranks(jacobian(one, problem.rank_inputs, net, hidden), 1e-4))
    look["rank"] = torch.stack(ranks)
    return without_broken({name: values.cpu() for name, values in look.items()})


def train_and_look(
    problem: Problem,
    schedules: list[Schedule],
    steps: int,
    points: int,
    correlation: float,
    keep_at: Iterable[int] = (),
) -> Runs:
    """Train K seeds with each of the schedules. `correlation`: above it features count as duplicates."""
    rates = all_rates(schedules, steps, len(problem.start))
    times = moments(steps, points)
    keep_at = set(keep_at)
    looks, kept = [], []
    for step, theta in train(problem, rates, keep_at | set(times)):
        if step in keep_at:
            kept.append(theta.clone())
        if step in times:
            looks.append(look_at(theta, problem, correlation))
    return Runs(records([schedule.settings() for schedule in schedules], times, looks), kept, theta)


# ======================================================================================
# Teacher and student
# ======================================================================================


class Drawn(NamedTuple):
    """One seed's problem; x [n, d], test x [1000, d], parameters of teacher and student, order of examples [steps]."""

    x: np.ndarray
    x_test: np.ndarray
    teacher: np.ndarray
    student: np.ndarray
    order: np.ndarray


class Pair(NamedTuple):
    """Networks of teacher and student, and how a problem is drawn: draw(stream of data, stream of student, steps)."""

    teacher: Net
    student: Net
    draw: Callable[[np.random.RandomState, np.random.RandomState, int], Drawn]


def unit_rows(draw: np.random.RandomState, *shape: int) -> np.ndarray:
    """Normal rows of norm 1."""
    rows = draw.randn(*shape)
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


def draw_two_layers(data: np.random.RandomState, own: np.random.RandomState, steps: int) -> Drawn:
    """A teacher of 3 units and a student of 20 on the circle; the student's output starts at 0."""
    x = unit_rows(data, 15, 2)
    x_test = unit_rows(data, 1000, 2)
    teacher_rows = unit_rows(data, 3, 2)
    teacher_signs = np.sign(data.randn(3))
    teacher = np.concatenate([teacher_rows.ravel(), teacher_signs])
    student = np.concatenate([0.5 * own.randn(40), np.zeros(20)])
    return Drawn(x, x_test, teacher, student, own.randint(15, size=steps))


def draw_three_layers(data: np.random.RandomState, own: np.random.RandomState, steps: int) -> Drawn:
    """Teacher and student on the sphere; biases uniform, +-1 / sqrt(fan-in)."""

    def parameters(net: Net, scale: float, draw: np.random.RandomState) -> np.ndarray:
        parts = []
        for below, above in pairwise(net.sizes):
            parts.append(scale * draw.randn(below * above))
            parts.append(draw.uniform(-1, 1, above) / np.sqrt(below))
        return np.concatenate(parts)

    x = unit_rows(data, 50, 5)
    x_test = unit_rows(data, 1000, 5)
    order = own.randint(50, size=steps)
    teacher = parameters(THREE_LAYERS.teacher, 1.0, data)
    student = parameters(THREE_LAYERS.student, 0.8, own)
    return Drawn(x, x_test, teacher, student, order)


TWO_LAYERS = Pair(Net((2, 3, 1), (False, False)), Net((2, 20, 1), (False, False)), draw_two_layers)
THREE_LAYERS = Pair(Net((5, 2, 2, 1), (True,) * 3), Net((5, 10, 10, 1), (True,) * 3), draw_three_layers)


def teacher_student(
    pair: Pair, steps: int, seeds: Iterable[int], device: str | torch.device, data_seed: int | None = None
) -> tuple[Problem, Tensor]:
    """The problem of each seed, as one, and its teachers [K, P'].

    Each seed draws teacher, data and student from one stream; with `data_seed` teacher and data are drawn once, from
    that, and are the same for all students.
    """
    drawn = []
    for seed in seeds:
        own = np.random.RandomState(seed)
        data = own if data_seed is None else np.random.RandomState(data_seed)
        drawn.append(pair.draw(data, own, steps))
    together = Drawn(*(torch.from_numpy(np.stack(arrays)).to(device) for arrays in zip(*drawn, strict=True)))
    y = forward(together.teacher, together.x, pair.teacher).output
    y_test = forward(together.teacher, together.x_test, pair.teacher).output
    parameters = together.student.shape[1]
    problem = Problem(
        net=pair.student,
        start=together.student,
        x=together.x,
        y=y,
        x_test=together.x_test,
        y_test=y_test,
        rank_inputs=together.x_test[:, :parameters],
        order=together.order.T,
    )
    return problem, together.teacher


def neurons(theta: Tensor) -> dict[str, Tensor]:
    """Of a two-layer network on the plane, without biases: rows w |a| [m, 2], and the signs of a."""
    units = theta.numel() // 3
    w = theta[: 2 * units].view(-1, 2)
    a = theta[2 * units :]
    sizes = torch.where(a == 0, 1.0, a.abs())  # before training all a are 0: then the rows alone
    return {"rows": w * sizes[:, None], "signs": a.sign()}
