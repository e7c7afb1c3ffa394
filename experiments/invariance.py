"""Invariant sets of deep networks, tried: SGD that starts on one stays on it, with any batches (Stochastic Collapse).

The sign-invariant set of a neuron: all that it gives on is 0. The permutation-invariant set of two neurons: they are
equal. In float64, so that what is left is rounding.
"""

import copy
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import core

CLASSES = 5
EXAMPLES = 64
FIRST, SECOND = 0, 1  # the neurons whose set it is


class Part(NamedTuple):
    """Parameters of a layer's neurons: one slice a neuron, in this dimension."""

    parameter: nn.Parameter
    dimension: int

    def of(self, neuron: int) -> Tensor:
        return self.parameter.detach().select(self.dimension, neuron)


class Neurons(NamedTuple):
    """A layer's neurons: all their parameters, and those that must be 0 for a neuron to be without effect."""

    parts: list[Part]
    silencing: list[Part]


class Case(NamedTuple):
    """A network to try, and a layer of it."""

    name: str
    make: Callable[[], nn.Module]
    layer: Callable[[nn.Module], Neurons]
    input_shape: tuple[int, ...]


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(12, 16), nn.GELU(), nn.Linear(16, 16), nn.GELU(), nn.Linear(16, CLASSES))


def mlp_layer(model: nn.Module) -> Neurons:
    """The first hidden layer."""
    parts = [Part(model[0].weight, 0), Part(model[0].bias, 0), Part(model[2].weight, 1)]
    return Neurons(parts, silencing=parts)


def vgg_layer(model: nn.Module) -> Neurons:
    """conv1."""
    first, second = model.features[0], model.features[2]
    parts = [Part(first.weight, 0), Part(first.bias, 0), Part(second.weight, 1)]
    return Neurons(parts, silencing=parts)


def resnet_layer(model: nn.Module) -> Neurons:
    """The inner channels of the first block; behind a batch norm incoming weights don't matter for a silent channel."""
    block = model.layer1[0]
    after = [Part(block.bn1.weight, 0), Part(block.bn1.bias, 0), Part(block.conv2.weight, 1)]
    return Neurons([Part(block.conv1.weight, 0), *after], silencing=after)


CASES = (
    Case("MLP", mlp, mlp_layer, (12,)),
    Case("VGG-16", lambda: core.vgg16(CLASSES, 4), vgg_layer, (3, 32, 32)),
    Case("ResNet-18", lambda: core.resnet18(CLASSES, 4), resnet_layer, (3, 32, 32)),
)
SETS = ("sign", "permutation")


def put_on_set(neurons: Neurons, which: str) -> None:
    """Silence the first neuron, or make the second one its copy."""
    parts = neurons.silencing if which == "sign" else neurons.parts
    for part in parts:
        if which == "sign":
            part.of(FIRST).zero_()
        else:
            part.of(SECOND).copy_(part.of(FIRST))


def push_off_set(neurons: Neurons, which: str, size: float, generator: torch.Generator) -> None:
    """Move the first neuron off the set in a random direction, to about this normalised distance."""
    parts = neurons.silencing if which == "sign" else neurons.parts
    typical = joined(parts, SECOND).square().mean().sqrt()
    for part in parts:
        slice_of_first = part.of(FIRST)
        noise = torch.randn(slice_of_first.shape, generator=generator, dtype=torch.float64)
        slice_of_first.add_(size * typical * noise)


def joined(parts: list[Part], neuron: int) -> Tensor:
    """A neuron's parameters, as one vector."""
    return torch.cat([part.of(neuron).flatten() for part in parts])


def distance_to_set(neurons: Neurons, which: str) -> float:
    """Normalised: the silencing parameters' norm over that of the neuron beside; or |p - q| / sqrt(|p|^2 + |q|^2)."""
    if which == "sign":
        silent = joined(neurons.silencing, FIRST).norm()
        return (silent / joined(neurons.silencing, SECOND).norm()).item()
    p = joined(neurons.parts, FIRST)
    q = joined(neurons.parts, SECOND)
    return ((p - q).norm() / torch.hypot(p.norm(), q.norm())).item()


def train_and_watch(
    model: nn.Module,
    case: Case,
    which: str,
    learning_rate: float,
    momentum: float,
    weight_decay: float,
    steps: int,
    batch_size: int,
    seed: int,
) -> tuple[float, float]:
    """Largest normalised distance to the set along a training on random images, and the weights' relative change."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(EXAMPLES, *case.input_shape, generator=generator, dtype=torch.float64)
    labels = torch.randint(CLASSES, (EXAMPLES,), generator=generator)
    optimizer = torch.optim.SGD(model.parameters(), learning_rate, momentum, weight_decay=weight_decay)
    neurons = case.layer(model)
    before = nn.utils.parameters_to_vector(model.parameters()).detach().clone()
    largest = distance_to_set(neurons, which)
    for _ in range(steps):
        batch = torch.randint(EXAMPLES, (batch_size,), generator=generator)
        loss = F.cross_entropy(model(images[batch]), labels[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        largest = max(largest, distance_to_set(neurons, which))
    after = nn.utils.parameters_to_vector(model.parameters()).detach()
    return largest, ((after - before).norm() / before.norm()).item()


def try_set(case: Case, which: str, offset: float, seed: int, **training) -> dict:
    """A row of the result: a network on the set, and as `control` the same network started `offset` off it."""
    torch.manual_seed(seed)
    model = case.make().double()
    put_on_set(case.layer(model), which)
    control = copy.deepcopy(model)
    push_off_set(case.layer(control), which, offset, torch.Generator().manual_seed(seed))
    largest, moved = train_and_watch(model, case, which, seed=seed, **training)
    control_largest, _ = train_and_watch(control, case, which, seed=seed, **training)
    return {
        "network": case.name,
        "set": which,
        "momentum": training["momentum"],
        "weight_decay": training["weight_decay"],
        "steps": training["steps"],
        "largest": largest,
        "moved": moved,
        "control": control_largest,
    }
