"""How fast the house is, against the literal way and against the floor, as ratios measured side by side.

  quartic, neuron, pair, diagonal   the whole experiment at the paper's settings; literal: a Python step
            loop, one noise level or one run at a time, timed on a stretch and scaled to the whole job
  training  VGG-16, 128 images a step, at widths 8, 16 and 64, on generated images; literal: torchvision's transforms
            in a DataLoader, float32, eager, one `.item()` a step; floor: the network's own step on a fixed batch
  metric    the independent-neuron count of all 15 layers of a VGG-16; literal: all pairs of neurons in
            Python, timed on a stretch of the pairs
  cgd       one exact CGD step of the MLP; literal: torch.func.hessian of all 5,350 parameters and its eigh,
            float64, a minute a step; floor: eigh of a 336 x 336 matrix
  sparse    teacher-student of Sparse Features, all runs and measurements; literal: one run at a time, autograd,
            its training steps alone; floor: the updates of the parameters
  networks  how many of torchvision's classifiers, and where they are installed of timm's and transformers'
            networks, are followed, followed whole, and extracted exactly; beside it torch-pruning
  tasks     the same of torchvision's networks for segmentation, videos and detection
  exponent  a step of SGD with the exponents of 100 pairs, in steps without, by the size of the maps
  report    seconds of a ResNet-50's and a VGG-19's groups, report without the rank, and with it

  python benchmark.py                  all: networks takes an hour, the others ten minutes on one core
  python benchmark.py metric --quick   one round

Literal and ours alternate in one process on one thread, and time is processor time, so that a busy
machine spoils neither. `floor` is the time to draw our normals (for the metric: its matrix products).
"""

import lib.interrupts  # noqa: F401  # isort: skip  (first: from here on Ctrl-C leaves no traceback)

import functools
import time
from collections.abc import Callable

import torch

import core
import sparse_features
import teacher_student
import toy_models
from experiments import curvature as exact
from experiments import literal
from experiments.chaotic_training import Pruning, keep_mask
from experiments.networks import networks, tasks
from experiments.timing import compare
from experiments.timing_exponent import exponent_cost
from experiments.timing_report import report_cost
from experiments.timing_training import training
from lib.command import run_script
from lib.errors import InputError
from lib.settings import Count, Seed, checked


def draw_normals(times: int, *shape: int) -> None:
    """What any way to simulate the noise has to do: `times` tensors of normals."""
    buffer = torch.empty(shape)
    for _ in range(times):
        buffer.normal_()


def of_processor(experiment: Callable) -> Callable:
    """The experiment, refused on a GPU: it is timed by the processor's clock."""

    @functools.wraps(experiment)
    def measured(*, device="cpu", **settings):
        if torch.device(device).type != "cpu":
            raise InputError("this benchmark measures processor time: give --device cpu")
        return experiment(device=device, **settings)

    return measured


def quartic(rounds: Count = 3, steps: Count = 3000, seed: Seed = 0, device="cpu") -> dict:
    def floor():
        draw_normals(10_000, 3, 4000)
        draw_normals(800, 100, 1000)

    return compare(lambda: literal.quartic(steps).seconds_of_the_whole, toy_models.quartic, floor, rounds)


def neuron(rounds: Count = 2, steps: Count = 500, seed: Seed = 0, device="cpu") -> dict:
    def floor():
        draw_normals(5000, 2, 50, 1000)
        draw_normals(3500, 2, 40, 500)

    return compare(lambda: literal.neuron(steps).seconds_of_the_whole, toy_models.neuron, floor, rounds)


def pair(rounds: Count = 3, steps: Count = 2000, seed: Seed = 0, device="cpu") -> dict:
    """The whole experiment, and as `published` the paper's 80 runs alone (ours: with their merged networks still)."""

    def literal_pair(runs):
        return literal.pair(steps, runs).seconds_of_the_whole

    # ours runs 10 conditions x 64 seeds, and as many merged networks, whose tangent isn't counted
    whole = compare(lambda: literal_pair(2 * 10 * 64), toy_models.pair, lambda: draw_normals(10_001, 64, 2, 8), rounds)
    published_alone = functools.partial(toy_models.pair, extra_replicas=0)
    published = compare(lambda: literal_pair(10 * 8), published_alone, lambda: draw_normals(10_001, 8, 2, 8), rounds)
    return whole | {"published": published}


def diagonal(rounds: Count = 3, steps: Count = 10_000, seed: Seed = 0, device="cpu") -> dict:
    problem = teacher_student.Problem(*(tensor.float() for tensor in teacher_student.teacher()))

    def literal_way():
        return literal.diagonal(steps, problem).seconds_of_the_whole

    return compare(literal_way, teacher_student.diagonal, lambda: draw_normals(60_001, 256, 64), rounds)


def sparse(rounds: Count = 2, steps: Count = 5000, seed: Seed = 0, device="cpu") -> dict:
    def floor():
        for part in literal.RELU_JOB:
            theta = torch.zeros(part.schedules, 64, part.parameters, dtype=torch.float64)
            step = torch.ones_like(theta)
            rate = torch.ones_like(theta[..., :1])
            for _ in range(part.steps):
                theta.addcmul_(step, rate, value=-1)

    literal.relu(100)  # what only the first steps pay
    return compare(lambda: literal.relu(steps).seconds_of_the_whole, sparse_features.relu, floor, rounds)


def metric(rounds: Count = 5, pairs: Count = 2000, seed: Seed = 0, device="cpu") -> dict:
    torch.manual_seed(seed)
    groups = core.neuron_groups(core.vgg16(), torch.zeros(1, 3, 32, 32))
    layers = [group.vectors() for group in groups]

    def ours():
        for vectors in layers:
            core.independent_neurons(vectors)

    def floor():
        for vectors in layers:
            vectors @ vectors.T

    ours()
    return compare(lambda: literal.metric(layers, pairs), ours, floor, rounds)


def cgd(rounds: Count = 2, repeats: Count = 50, batch_size: Count = 8, seed: Seed = 0, device="cpu") -> dict:
    """Processor seconds of one step, as medians over alternating rounds, and their ratio.

    `agreement` is the largest difference of the two pruned gradients, relative to the largest component.
    Raises RuntimeError if it exceeds 1e-5: a speed-up of something else is none.
    """
    task = exact.Task("mlp", "sigmoid")
    rule = Pruning("chaotic")
    learning_rate = 1e-3
    draw = torch.Generator().manual_seed(seed)
    theta = 2 * exact.initial(seed, task)[None]
    x = exact.with_ones(torch.randn(1, batch_size, 256, generator=draw, dtype=torch.float64))
    y = torch.randint(10, (1, batch_size), generator=draw)

    def loss(one):
        value, _ = exact.losses(one[None], x, y, task)
        return value[0]

    gradient = torch.func.grad(loss)(theta[0])
    updates = {}

    def literal():
        eigenvalues, eigenvectors = torch.linalg.eigh(torch.func.hessian(loss)(theta[0]))
        # The 5,014 flat directions come out as rounding noise of either sign; the gradient has no part in them.
        keep = keep_mask(eigenvalues, learning_rate, rule)
        updates["literal"] = eigenvectors @ (keep * (eigenvectors.T @ gradient))

    def ours():
        hessian, basis = exact.curvature(theta, x, y, task)
        eigenvalues, eigenvectors = exact.eigh(hessian)
        keep = keep_mask(eigenvalues[0], learning_rate, rule)
        updates["ours"] = exact.project(gradient[None], keep[None], eigenvectors, basis)[0]

    matrix = torch.randn(336, 336, generator=draw, dtype=torch.float64)

    def floor():
        torch.linalg.eigh(matrix + matrix.T)

    def one_of_many(way):
        start = time.process_time()
        for _ in range(repeats):
            way()
        return (time.process_time() - start) / repeats

    result = compare(literal, lambda: one_of_many(ours), lambda: one_of_many(floor), rounds)
    difference = (updates["literal"] - updates["ours"]).abs().max()
    agreement = (difference / updates["ours"].abs().max()).item()
    if agreement > 1e-5:
        raise RuntimeError(f"the updates differ by {agreement:.1e}: this is no comparison")
    return result | {"agreement": agreement}


EXPERIMENTS = {
    "quartic": of_processor(quartic),
    "neuron": of_processor(neuron),
    "pair": of_processor(pair),
    "diagonal": of_processor(diagonal),
    "training": training,
    "metric": of_processor(metric),
    "cgd": of_processor(cgd),
    "networks": networks,
    "tasks": tasks,
    "exponent": exponent_cost,
    "report": report_cost,
    "sparse": of_processor(sparse),
}

if __name__ == "__main__":
    experiments = {name: checked(experiment) for name, experiment in EXPERIMENTS.items()}
    quick = {name: {"rounds": 1} for name in experiments}
    quick["report"]["networks"] = ("resnet18",)
    quick["networks"] = {"names": ("resnet18", "mobilenet_v2", "LlamaForCausalLM")}
    quick["tasks"] = {"names": ("lraspp_mobilenet_v3_large",)}
    run_script(__doc__, experiments, quick, prefix="benchmark_", undrawn=tuple(experiments))
