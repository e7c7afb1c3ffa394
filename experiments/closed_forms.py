"""Where the collapse exponent is known: quartic well, single neuron, and the two neurons of toy_models.py."""

import torch
from torch import Tensor, nn

from collapse import collapse_exponent
from experiments.theory import log_growth

FIFTHS = 5  # the exponent leaves out the first of them


def two_layers(width: int, activation: nn.Module, first: list[float], second: list[float]) -> nn.Sequential:
    """x -> second . activation(first x), one input and one output, in float64."""
    model = nn.Sequential(nn.Linear(1, width, bias=False), activation, nn.Linear(width, 1, bias=False)).double()
    for layer, values in ((model[0], first), (model[2], second)):
        layer.weight.data.copy_(torch.tensor(values, dtype=torch.float64).view_as(layer.weight))
    return model


def half_square(output: Tensor, labels: Tensor) -> Tensor:
    return (output - labels).square().mean() / 2


def balanced_normals(steps: int, draw: torch.Generator) -> Tensor:
    """[steps + 1] quantiles of the normal distribution in random order, anew in each fifth of the steps.

    The same law as independent draws with less scatter, for maps that commute. One more for the last step, which
    the exponent leaves out.
    """
    count = steps // FIFTHS
    middles = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    quantiles = torch.special.ndtri(middles)
    quantiles /= quantiles.square().mean().sqrt()
    kicks = torch.cat([quantiles[torch.randperm(count, generator=draw)] for _ in range(FIFTHS)])
    return torch.cat([kicks, kicks[:1]])


def one_neuron(case: str, level: float, steps: int, x: Tensor, y: Tensor, draw: torch.Generator) -> dict:
    """A row of `closed_forms`: one neuron near zero under label noise along x, the one direction that acts."""
    if case == "quartic":
        # (w1 w2 - mu)^2 / 2 along w1 = w2 is the well: the neuron w2 w1 x at x = 1 with label mu + noise.
        step = 0.0025
        activation = nn.Identity()
        label_noise = level / step**0.5
        drift, noise = 1.5, level
    else:
        step = 0.01
        activation = nn.Tanh()
        label_noise = (level * len(x) / step) ** 0.5
        drift = float((x * y).mean())
        noise = (level * float(x.square().mean())) ** 0.5
    direction = x / x.norm()
    batches = [(x, y + label_noise * kick * direction) for kick in balanced_normals(steps, draw)]
    # Along the axis that grows most. The second neuron stays zero and does nothing: a network of one has no channels.
    model = two_layers(2, activation, [1e-9, 0.0], [1e-9, 0.0])
    sgd = torch.optim.SGD(model.parameters(), step)
    found = collapse_exponent(model, {"0": torch.tensor([0])}, batches, sgd, half_square, blocks=10)
    return {
        "case": case,
        "level": level,
        "exponent": found["exponent"] / step,
        "error": found["error"] / step,
        "expected": float(log_growth(drift, noise, step)[0][0]),
    }


def neuron_pair(rate: float, level: float, steps: int, x: Tensor, y: Tensor, draw: torch.Generator) -> dict:
    """A row of `closed_forms`: two neurons 1e-6 apart, whose own distance is followed on the same label noise."""
    model = two_layers(2, nn.GELU(), [0.8 + 1e-6, 0.8], [-0.5, -0.5])
    sgd = torch.optim.SGD(model.parameters(), rate, 0.9)
    batches = []
    for _ in range(steps):
        noise = torch.randn(8, 1, generator=draw, dtype=torch.float64)
        batches.append((x, y + level * noise))
    found = collapse_exponent(model, {"0": torch.tensor([[0, 1]])}, batches, sgd, half_square, blocks=8)
    distance = found["log_distance"][:, 0]
    is_above_rounding = (distance > -25).int()
    first = steps // FIFTHS
    last = int(is_above_rounding.cumprod(0).sum()) - 1
    return {
        "case": "pair",
        "learning_rate": rate,
        "level": level,
        "error": found["error"],
        "rate": found["exponent"],
        "exponent": found["growth"][first:last, 0].mean(),
        "expected": (distance[last] - distance[first]) / (last - first),
    }


def closed_forms(steps: int, pair_steps: int, seed: int) -> list[dict]:
    """Rows of exponent and what is expected: E log|1 + a dt + b dB| of the maps, or the pair's own rate."""
    draw = torch.Generator().manual_seed(seed)
    x = torch.randn(32, 1, generator=draw, dtype=torch.float64)
    y = x + 0.1 * torch.randn(32, 1, generator=draw, dtype=torch.float64)
    one = torch.ones(1, 1, dtype=torch.float64)
    rows = [one_neuron("quartic", zeta, steps, one, 1.5 * one, draw) for zeta in (1.0, 1.7321, 2.5)]
    rows += [one_neuron("neuron", eta, steps, x, y, draw) for eta in (1.0, 2.0, 4.0)]
    torch.manual_seed(0)
    x = torch.randn(8, 1).double()  # the reference's data: x, x test, y, y test
    torch.randn(8, 1)
    y = torch.randn(8, 1).double()
    for rate, level in ((0.1, 0.1), (0.2, 0.1), (0.3, 0.1), (0.1, 0.2)):
        rows.append(neuron_pair(rate, level, pair_steps, x, y, draw))
    return rows
